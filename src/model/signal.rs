//! Signals by name, as people and programs write them (signal(7), the numbers of x86-64 and most others).

/// The names of the signals from 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The highest signal (`SIGRTMAX`).
const MAX: i32 = 64;

/// Reads `SIGTERM`, `TERM`, `term` or `15`.
#[must_use]
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let place = NAMES.iter().position(|known| *known == name)?;
    i32::try_from(place + 1).ok()
}

/// A signal as [`parse`] reads it: its name without `SIG`, or its number where it has none.
#[must_use]
pub fn name(signal: i32) -> String {
    let place = usize::try_from(signal).ok().and_then(|n| n.checked_sub(1));
    let known = place.and_then(|place| NAMES.get(place));
    known.map_or_else(|| signal.to_string(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, signal) in [
            ("SIGTERM", 15),
            ("kill", 9),
            ("INT", 2),
            ("34", 34),
            ("SIGSYS", 31),
        ] {
            assert_eq!(parse(text), Some(signal), "{text}");
            assert_eq!(parse(&name(signal)), Some(signal), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIGSIG", "TERMINATE", "9 "] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
