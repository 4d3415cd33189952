//! The record as text that a stranger can check: one line for each event, each line's digest over the one before it.
//!
//! ```text
//! {"seq":7,"id":"evt_…","at":"…","stage":"fact","principal":"…","event":{…},"digest":"<64 hex digits>"}
//! \______________________________ body ________________________________/
//! digest = SHA-256(hexadecimal digest of the line before, "\n", body)
//! ```
//!
//! The first line's predecessor is [`GENESIS`]. A checkpoint says which digest the chain had at a position, and is signed:
//!
//! ```text
//! {"checkpoint":{"installation":"ins_…","seq":7,"digest":"…","count":7,"at":"…","key":"…"},"signature":"<128 hex digits>"}
//! \_____________________________________ what is signed _________________________________/
//! ```
//!
//! What left the database for an archive file is said by a line of the same shape, signed too:
//!
//! ```text
//! {"archive":{"installation":"ins_…","first":1,"last":7,"digest":"…","file":"…",…,"key":"…"},"signature":"<128 hex digits>"}
//! ```
//!
//! `docs/audit.md` promises all three to those who check; nothing here may change what is written.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::base::clock::Timestamp;

/// SHA-256 of a line and all before it.
pub type Digest = [u8; 32];

/// What the first line follows.
pub const GENESIS: Digest = [0; 32];

/// Between a line's body and its digest.
const DIGEST: &str = ",\"digest\":\"";

/// Between what is signed and its signature.
const SIGNATURE: &str = ",\"signature\":\"";

/// What ends a line.
const END: &str = "\"}";

/// A record as it is kept, in pieces. `event` and `outcome` are JSON, which goes into the line as it is: a later version
/// that would write them otherwise must not change what was written.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a> {
    /// Its position.
    pub seq: i64,
    /// Its name.
    pub id: &'a str,
    /// When it was written.
    pub at: Timestamp,
    /// `intent`, `outcome` or `fact`.
    pub stage: &'a str,
    /// The intent that an outcome belongs to.
    pub intent: Option<&'a str>,
    /// Who asked.
    pub principal: &'a str,
    /// The session it is about.
    pub session: Option<&'a str>,
    /// What, as JSON.
    pub event: &'a str,
    /// How it ended, as JSON.
    pub outcome: Option<&'a str>,
}

impl Pieces<'_> {
    /// The line up to its digest.
    #[must_use]
    pub fn body(&self) -> String {
        let mut body = String::with_capacity(256 + self.event.len());
        // Writing to a String cannot fail.
        let _ = write!(body, "{{\"seq\":{}", self.seq);
        let mut text = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                let _ = write!(body, ",\"{name}\":{}", serde_json::Value::from(value));
            }
        };
        text("id", Some(self.id));
        text("at", Some(&self.at.to_string()));
        text("stage", Some(self.stage));
        text("intent", self.intent);
        text("principal", Some(self.principal));
        text("session", self.session);
        let _ = write!(body, ",\"event\":{}", self.event);
        if let Some(outcome) = self.outcome {
            let _ = write!(body, ",\"outcome\":{outcome}");
        }
        body
    }

    /// The whole line.
    #[must_use]
    pub fn line(&self, digest: &Digest) -> String {
        let mut line = self.body();
        line.push_str(DIGEST);
        line.push_str(&hex(digest));
        line.push_str(END);
        line
    }
}

/// The digest of a line's body that follows `before`.
#[must_use]
pub fn digest_after(before: &Digest, body: &str) -> Digest {
    let mut sum = Sha256::new();
    sum.update(hex(before));
    sum.update(b"\n");
    sum.update(body);
    sum.finalize().into()
}

/// SHA-256, to name a key or to recognise what must not be shown.
#[must_use]
pub fn sum(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// SHA-256 of what comes in pieces.
#[derive(Clone, Debug, Default)]
pub struct Summing(Sha256);

impl Summing {
    /// The next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sum of all of them.
    #[must_use]
    pub fn finish(self) -> Digest {
        self.0.finalize().into()
    }
}

/// A line's body and digest; `None` when it is no line of a record.
#[must_use]
pub fn split(line: &str) -> Option<(&str, Digest)> {
    let (body, digest) = line.strip_suffix(END)?.rsplit_once(DIGEST)?;
    Some((body, unhex(digest)?))
}

/// What the chain was at one position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose record it is.
    pub installation: String,
    /// The position of the last line that it covers.
    pub seq: i64,
    /// That line's digest.
    pub digest: Digest,
    /// How many lines it covers, from the first on.
    pub count: i64,
    /// When it was signed.
    pub at: Timestamp,
    /// Names the key: [`key_name`].
    pub key: String,
}

/// A checkpoint as it was read, not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// The bytes that were signed.
    pub signed: String,
    /// Ed25519 (RFC 8032).
    pub signature: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointLine {
    checkpoint: Said,
    #[serde(rename = "signature")]
    _signature: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    installation: String,
    seq: i64,
    digest: String,
    count: i64,
    at: Timestamp,
    key: String,
}

impl Checkpoint {
    /// What is signed: the line up to its signature.
    #[must_use]
    pub fn unsigned(&self) -> String {
        format!(
            "{{\"checkpoint\":{{\"installation\":\"{}\",\"seq\":{},\"digest\":\"{}\",\"count\":{},\"at\":\"{}\",\"key\":\"{}\"}}",
            self.installation,
            self.seq,
            hex(&self.digest),
            self.count,
            self.at,
            self.key
        )
    }

    /// The whole line.
    #[must_use]
    pub fn line(&self, signature: &[u8]) -> String {
        signed_line(&self.unsigned(), signature)
    }
}

fn signed_line(unsigned: &str, signature: &[u8]) -> String {
    format!("{unsigned}{SIGNATURE}{}{END}", hex(signature))
}

/// What was signed of a line, and its signature.
fn split_signed(line: &str) -> Option<(&str, Vec<u8>)> {
    let (signed, signature) = line.strip_suffix(END)?.rsplit_once(SIGNATURE)?;
    Some((signed, bytes(signature)?))
}

impl SignedCheckpoint {
    /// Reads a line; `None` when it is no checkpoint.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let said = serde_json::from_str::<CheckpointLine>(line)
            .ok()?
            .checkpoint;
        let (signed, signature) = split_signed(line)?;
        Some(Self {
            checkpoint: Checkpoint {
                installation: said.installation,
                seq: said.seq,
                digest: unhex(&said.digest)?,
                count: said.count,
                at: said.at,
                key: said.key,
            },
            signed: signed.to_owned(),
            signature,
        })
    }
}

/// What left the database for a file: records `first` to `last`. What is left begins after `last`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Whose record it is.
    pub installation: String,
    /// The position of its first record.
    pub first: i64,
    /// The position of its last.
    pub last: i64,
    /// The digest of its last record, in hexadecimal digits: what the next one follows.
    pub digest: String,
    /// When its first record was made.
    pub from: Timestamp,
    /// When its last record was made.
    pub to: Timestamp,
    /// The file's name.
    pub file: String,
    /// The file's length.
    pub size_bytes: u64,
    /// SHA-256 of the file as it is, in hexadecimal digits.
    pub sha256: String,
    /// When it was signed.
    pub at: Timestamp,
    /// Names the key: [`key_name`].
    pub key: String,
}

/// What an archive's line says as it was read, not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedArchive {
    /// What it says.
    pub archive: Archive,
    /// The bytes that were signed.
    pub signed: String,
    /// Ed25519 (RFC 8032).
    pub signature: Vec<u8>,
}

impl Archive {
    /// What is signed: the line up to its signature.
    ///
    /// # Errors
    /// None: all of it can be written as JSON.
    pub fn unsigned(&self) -> serde_json::Result<String> {
        Ok(format!("{{\"archive\":{}", serde_json::to_string(self)?))
    }

    /// The whole line of what [`Archive::unsigned`] gave.
    #[must_use]
    pub fn line(unsigned: &str, signature: &[u8]) -> String {
        signed_line(unsigned, signature)
    }

    /// The digest of its last record; `None` when what stands there is none.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        unhex(&self.digest)
    }
}

impl SignedArchive {
    /// Reads a line; `None` when it is not that of an archive.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Line {
            archive: Archive,
            #[serde(rename = "signature")]
            _signature: String,
        }
        let archive = serde_json::from_str::<Line>(line).ok()?.archive;
        let (signed, signature) = split_signed(line)?;
        Some(Self {
            archive,
            signed: signed.to_owned(),
            signature,
        })
    }
}

/// The first line of a file that begins in the middle: what its first record follows.
#[must_use]
pub fn anchor(seq: i64, digest: &Digest) -> String {
    format!(
        "{{\"after\":{{\"seq\":{seq},\"digest\":\"{}\"}}}}",
        hex(digest)
    )
}

/// Reads [`anchor`].
#[must_use]
pub fn parse_anchor(line: &str) -> Option<(i64, Digest)> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Anchor {
        after: After,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct After {
        seq: i64,
        digest: String,
    }
    let after = serde_json::from_str::<Anchor>(line).ok()?.after;
    Some((after.seq, unhex(&after.digest)?))
}

/// The name of a public key: the beginning of its SHA-256.
#[must_use]
pub fn key_name(public: &[u8]) -> String {
    let mut name = hex(&sum(public));
    name.truncate(16);
    name
}

/// Lowercase hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| {
        DIGITS
            .get(usize::from(nibble))
            .map_or('0', |c| char::from(*c))
    };
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

fn unhex(text: &str) -> Option<Digest> {
    bytes(text)?.try_into().ok()
}

/// Reads [`hex`]; only lowercase, so that one value has one spelling.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Pieces<'static> {
        Pieces {
            seq: 1,
            id: "evt_x",
            at: Timestamp::from_millis(0),
            stage: "fact",
            intent: None,
            principal: "a \"quoted\"\nname",
            session: None,
            event: r#"{"kind":"x","digest":"no"}"#,
            outcome: None,
        }
    }

    #[test]
    fn a_line_is_what_it_was_promised_to_be() {
        let body = r#"{"seq":1,"id":"evt_x","at":"1970-01-01T00:00:00.000Z","stage":"fact","principal":"a \"quoted\"\nname","event":{"kind":"x","digest":"no"}"#;
        assert_eq!(pieces().body(), body);
        let digest = digest_after(&GENESIS, body);
        // What sha256sum says of 64 zeros, a line break and the body.
        assert_eq!(
            hex(&digest),
            "a37d3b0eea0459431b9c12d43068b9f9fe420ae3759c7ec8e3054cd72fc243bb"
        );
        let line = pieces().line(&digest);
        assert_eq!(split(&line), Some((body, digest)));
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["principal"], "a \"quoted\"\nname");
    }

    #[test]
    fn what_is_no_line_is_none() {
        for text in [
            "",
            "{}",
            "\"}",
            ",\"digest\":\"00\"}",
            ",\"digest\":\"zz\"}",
        ] {
            assert_eq!(split(text), None, "{text}");
        }
        let upper = format!("{{,\"digest\":\"{}\"}}", "AB".repeat(32));
        assert_eq!(split(&upper), None);
        assert!(split(&upper.to_lowercase()).is_some());
    }

    #[test]
    fn an_archive_s_line_reads_back() {
        let archive = Archive {
            installation: "ins_x".into(),
            first: 1,
            last: 7,
            digest: hex(&[9; 32]),
            from: Timestamp::from_millis(0),
            to: Timestamp::from_millis(1000),
            file: "audit-1-7.jsonl.zst".into(),
            size_bytes: 99,
            sha256: hex(&[8; 32]),
            at: Timestamp::from_millis(2000),
            key: key_name(&[1; 32]),
        };
        let unsigned = archive.unsigned().unwrap();
        let line = Archive::line(&unsigned, &[3; 64]);
        let read = SignedArchive::parse(&line).unwrap();
        assert_eq!(read.archive, archive);
        assert_eq!(read.archive.digest(), Some([9; 32]));
        assert_eq!((read.signed, read.signature), (unsigned, vec![3; 64]));
        assert_eq!(SignedCheckpoint::parse(&line), None);
        assert_eq!(SignedArchive::parse(&line.replace("first", "one")), None);
        let mut summing = Summing::default();
        summing.update(b"ab");
        summing.update(b"c");
        assert_eq!(summing.finish(), sum(b"abc"));
    }

    #[test]
    fn checkpoints_and_anchors_read_back() {
        let checkpoint = Checkpoint {
            installation: "ins_x".into(),
            seq: 7,
            digest: [9; 32],
            count: 7,
            at: Timestamp::from_millis(1000),
            key: key_name(&[1; 32]),
        };
        let line = checkpoint.line(&[3; 64]);
        let read = SignedCheckpoint::parse(&line).unwrap();
        assert_eq!(read.checkpoint, checkpoint);
        assert_eq!(read.signed, checkpoint.unsigned());
        assert_eq!(read.signature, [3; 64]);
        assert_eq!(
            SignedCheckpoint::parse(&line.replace("count", "number")),
            None
        );
        assert_eq!(parse_anchor(&anchor(3, &[1; 32])), Some((3, [1; 32])));
        assert_eq!(parse_anchor(&line), None);
    }
}
