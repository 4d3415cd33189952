//! What a new key or token may do, and for how long: options that several commands take.

use std::collections::BTreeSet;

use casemate::model::grant::{Role, Scope};
use clap::Args;

/// What whoever has a new key may do, and until when.
#[derive(Args)]
pub struct Granted {
    /// What whoever has it is in the team: member, team-admin or auditor
    #[arg(long, default_value_t = Role::Member)]
    pub role: Role,
    /// Of what the role may do, only this, such as sessions:read; may be repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// How long it is valid: seconds, or with m, h or d, as in 30d; until it is revoked when absent
    #[arg(long = "expires-in", value_name = "TIME", value_parser = seconds)]
    pub expires_in_s: Option<u64>,
}

impl Granted {
    /// What it is narrowed to, if to anything.
    pub fn scopes(&self) -> Option<BTreeSet<Scope>> {
        narrowed(&self.scopes)
    }
}

/// The scopes that were named, if any were.
pub fn narrowed(scopes: &[Scope]) -> Option<BTreeSet<Scope>> {
    (!scopes.is_empty()).then(|| scopes.iter().copied().collect())
}

/// Reads a time: seconds, or a number with `m`, `h` or `d`.
pub fn seconds(text: &str) -> Result<u64, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let unit = units.iter().find(|(letter, _)| text.ends_with(*letter));
    let (digits, unit) = match unit {
        Some((letter, unit)) => (text.strip_suffix(*letter).unwrap_or(text), *unit),
        None => (text, 1),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "write seconds, or a number with m, h or d".to_owned())?;
    match number.checked_mul(unit) {
        Some(0) => Err("is no time at all".to_owned()),
        // A thousand years: what is later is as good as never.
        Some(seconds) if seconds <= 31_557_600_000 => Ok(seconds),
        _ => Err("is too long".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, expected) in [
            ("90", 90),
            ("90s", 90),
            ("2m", 120),
            ("12h", 43_200),
            ("30d", 2_592_000),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "d",
            "1w",
            "-1d",
            "0",
            "0h",
            "1.5h",
            "1 d",
            "99999999999999999999",
            "400000000d",
        ] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
