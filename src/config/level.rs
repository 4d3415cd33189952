//! What is logged, as directives: `info`, or `info,casemate::session=debug`.

use tracing_subscriber::EnvFilter;

/// The text does not say what to log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a level (off, error, warn, info, debug, trace) or a list such as info,casemate::session=debug"
)]
pub struct InvalidLevel;

/// Longest list of directives, in bytes.
const MAX_BYTES: usize = 1024;

/// Says something of every HTTP/2 frame below `info`, and so lets whoever is at the other end write into our log as fast as
/// he can send. It has to be asked for by its name.
const QUIET: &str = "h2=info";

/// Reads directives, stricter than [`EnvFilter`] does: that takes `inof` for the name of a module
/// and then logs nothing else.
///
/// # Errors
/// [`InvalidLevel`].
pub fn parse(text: &str) -> Result<EnvFilter, InvalidLevel> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    if text.is_empty() || text.len() > MAX_BYTES {
        return Err(InvalidLevel);
    }
    for directive in text.split(',') {
        // Filters on the fields of spans may hold commas and are of no use to an operator.
        let level = directive.rsplit('=').next().unwrap_or_default();
        let module = directive.strip_suffix(level).unwrap_or_default();
        let is_module = module
            .trim_end_matches('=')
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b));
        if !LEVELS.contains(&level) || !is_module || module == "=" {
            return Err(InvalidLevel);
        }
    }
    let text = format!("{QUIET},{text}");
    EnvFilter::builder().parse(text).map_err(|_| InvalidLevel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_logged_only_when_asked_for_by_name() {
        let h2 = |text: &str| {
            let filter = parse(text).unwrap().to_string();
            let directives = filter.split(',').map(str::to_owned);
            directives
                .filter(|one| one.starts_with("h2="))
                .collect::<Vec<_>>()
        };
        assert_eq!(h2("debug"), ["h2=info"]);
        assert_eq!(h2("info,h2=trace"), ["h2=trace"]);
    }

    #[test]
    fn levels_and_modules_are_understood() {
        for good in [
            "info",
            "off",
            "warn,casemate=debug",
            "info,casemate::session=trace,h2=off",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "inof",
            "INFO!",
            "info,",
            "=info",
            "casemate=",
            "a b=info",
            "[x{y=1}]=info",
            "info;debug",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
