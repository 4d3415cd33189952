//! From when until when a certificate is valid: the one thing that is read of it here, and nothing is believed of the rest.
//!
//! A reader of DER (X.690) that goes down one path: `Certificate`, `tbsCertificate`, `validity` (RFC 5280 section 4.1).

use crate::base::clock::Timestamp;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, explicit: the version.
const VERSION: u8 = 0xa0;

/// When a certificate holds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From here.
    pub from: Timestamp,
    /// Until here.
    pub until: Timestamp,
}

impl Validity {
    /// Whether it holds at this time.
    #[must_use]
    pub fn holds(self, now: Timestamp) -> bool {
        self.from <= now && now <= self.until
    }

    /// Reads it out of a certificate; `None` when that is none.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let (certificate, _) = inside(certificate, SEQUENCE)?;
        let (signed, _) = inside(certificate, SEQUENCE)?;
        let rest = inside(signed, VERSION).map_or(signed, |(_, rest)| rest);
        let (_, rest) = inside(rest, INTEGER)?;
        let (_, rest) = inside(rest, SEQUENCE)?;
        let (_, rest) = inside(rest, SEQUENCE)?;
        let (validity, _) = inside(rest, SEQUENCE)?;
        let (from, rest) = time(validity)?;
        let (until, _) = time(rest)?;
        Some(Self { from, until })
    }
}

/// What a value of this tag holds, and what comes after it.
fn inside(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let mut length = usize::from(first & 0x7f);
    if first & 0x80 != 0 {
        // More than 16 MiB is no certificate.
        if length == 0 || length > 3 {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(length)?;
        length = bytes
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    rest.split_at_checked(length)
}

/// A time in the two spellings that RFC 5280 section 4.1.2.5 knows, always UTC and to the second.
fn time(bytes: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (text, rest, century) = if let Some((text, rest)) = inside(bytes, UTC_TIME) {
        // 50 is 1950, 49 is 2049.
        let is_old = text.first().is_some_and(|digit| *digit >= b'5');
        (text, rest, if is_old { "19" } else { "20" })
    } else {
        let (text, rest) = inside(bytes, GENERALIZED_TIME)?;
        (text, rest, "")
    };
    let text = std::str::from_utf8(text).ok()?;
    let digits = format!("{century}{}", text.strip_suffix('Z')?);
    if digits.len() != 14 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| digits.get(from..to);
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?
    );
    let time = serde_json::from_value(serde_json::Value::String(text)).ok()?;
    Some((time, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        serde_json::from_value(text.into()).unwrap()
    }

    #[test]
    fn both_spellings_of_a_time_are_read() {
        for (tag, text, meant) in [
            (UTC_TIME, "260102030405Z", "2026-01-02T03:04:05Z"),
            (UTC_TIME, "491231235959Z", "2049-12-31T23:59:59Z"),
            (UTC_TIME, "500101000000Z", "1950-01-01T00:00:00Z"),
            (GENERALIZED_TIME, "20500101000000Z", "2050-01-01T00:00:00Z"),
        ] {
            let der = [&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            assert_eq!(time(&der), Some((at(meant), &[][..])), "{text}");
        }
        for text in [
            "",
            "Z",
            "260102030405",
            "2601020304Z",
            "269902030405Z",
            "26010203040\u{e9}Z",
        ] {
            let der = [
                &[UTC_TIME, u8::try_from(text.len()).unwrap()],
                text.as_bytes(),
            ]
            .concat();
            assert_eq!(time(&der), None, "{text}");
        }
    }

    #[test]
    fn a_certificate_says_how_long_it_holds() {
        let mut parameters = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2020, 2, 29);
        parameters.not_after = rcgen::date_time_ymd(2051, 3, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let validity = Validity::of(certificate.der()).unwrap();
        assert_eq!(validity.from, at("2020-02-29T00:00:00Z"));
        assert_eq!(validity.until, at("2051-03-01T00:00:00Z"));
        for (when, holds) in [
            ("2020-02-28T23:59:59Z", false),
            ("2020-02-29T00:00:00Z", true),
            ("2051-03-01T00:00:00Z", true),
            ("2051-03-01T00:00:01Z", false),
        ] {
            assert_eq!(validity.holds(at(when)), holds, "{when}");
        }
        for length in 0..120 {
            assert_eq!(Validity::of(&certificate.der()[..length]), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Validity::of(&bytes);
            let _ = time(&bytes);
        }
    }
}
