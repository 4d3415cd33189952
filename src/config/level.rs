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
    EnvFilter::builder().parse(text).map_err(|_| InvalidLevel)
}

#[cfg(test)]
mod tests {
    use super::*;

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
