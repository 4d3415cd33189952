//! Whether a record is what was written: each line follows from the one before it, and what was signed is so.
//!
//! Pure, for the daemon and for whoever has nothing but a file and a public key. It stops at the first line that is wrong,
//! and says as well as can be told what was done to it; for that it looks at the line after it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::record::{
    Checkpoint, Digest, GENESIS, SignedCheckpoint, digest_after, parse_anchor, split,
};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The line is neither a record nor a checkpoint.
    Unreadable,
    /// The line, or the one before it, does not say what it said.
    Changed,
    /// Records before this line are missing.
    Removed,
    /// The line was not there.
    Inserted,
    /// The line stands in another's place.
    Swapped,
    /// Records after this line are missing.
    Cut,
    /// A checkpoint that was signed says otherwise.
    Rewritten,
    /// The checkpoint was not signed by the key, or not as it stands.
    Signature,
    /// The checkpoint was signed by another key.
    OtherKey,
    /// The checkpoint is of another installation.
    OtherInstallation,
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The line, counted from one.
    pub line: u64,
    /// The position that it stands at, or should.
    pub seq: i64,
    /// What was done to it.
    pub fault: Fault,
    /// The same in a sentence.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// What was found to be right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Records.
    pub records: u64,
    /// The position before the first of them.
    #[serde(default)]
    pub after: i64,
    /// Signed checkpoints.
    pub checkpoints: u64,
    /// The position of the last record.
    pub seq: i64,
    /// The last record that a checkpoint covers; what is after it is chained and not yet signed.
    pub signed_seq: i64,
}

/// What a signature is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// It is the key's.
    Yes,
    /// It is nobody's.
    No,
    /// The checkpoint names another key.
    ByAnother,
}

/// Checks signatures.
pub type CheckSignature<'a> = &'a (dyn Fn(&SignedCheckpoint) -> Signed + Sync);

/// Takes lines in their order.
pub struct Verifier<'a> {
    check: CheckSignature<'a>,
    line: u64,
    seq: i64,
    digest: Digest,
    held: Option<Item>,
    installation: Option<String>,
    ends_signed: bool,
    /// Whether a file was read already that this one must join.
    joins: bool,
    verified: Verified,
}

enum Item {
    Record {
        body: String,
        seq: i64,
        digest: Digest,
    },
    Checkpoint(Box<SignedCheckpoint>),
    Unreadable,
}

impl Item {
    fn read(line: &str) -> Self {
        if let Some((body, digest)) = split(line) {
            // A record begins with its position, whatever else it says.
            let seq = body
                .strip_prefix("{\"seq\":")
                .and_then(|rest| rest.split_once(','))
                .and_then(|(seq, _)| seq.parse().ok());
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok();
            return match seq {
                Some(seq) if is_json => Self::Record {
                    body: body.to_owned(),
                    seq,
                    digest,
                },
                _ => Self::Unreadable,
            };
        }
        match SignedCheckpoint::parse(line) {
            Some(checkpoint) => Self::Checkpoint(Box::new(checkpoint)),
            None => Self::Unreadable,
        }
    }

    const fn seq(&self) -> Option<i64> {
        match self {
            Self::Record { seq, .. } => Some(*seq),
            _ => None,
        }
    }

    fn follows(&self, expected: i64, before: &Digest) -> bool {
        match self {
            Self::Record { body, seq, digest } => {
                *seq == expected && digest_after(before, body) == *digest
            }
            _ => false,
        }
    }
}

impl<'a> Verifier<'a> {
    /// Of a chain from its first record on.
    #[must_use]
    pub fn new(check: CheckSignature<'a>) -> Self {
        Self::after(check, 0, GENESIS)
    }

    /// Of a chain from the record after `seq` on, whose digest is known.
    #[must_use]
    pub fn after(check: CheckSignature<'a>, seq: i64, digest: Digest) -> Self {
        Self {
            check,
            line: 0,
            seq,
            digest,
            held: None,
            installation: None,
            ends_signed: false,
            joins: false,
            verified: Verified {
                seq,
                after: seq,
                ..Verified::default()
            },
        }
    }

    /// The next line, without its line break.
    ///
    /// # Errors
    /// What is wrong with the line before it.
    pub fn push(&mut self, line: &str) -> Result<(), Finding> {
        if self.line == 0
            && self.held.is_none()
            && let Some((seq, digest)) = parse_anchor(line)
        {
            self.line = 1;
            if self.joins && (seq, digest) != (self.seq, self.digest) {
                let text = format!(
                    "the file begins after record {seq}, and what is before it ends with record {}: they do not join; give the files in their order, each once",
                    self.seq
                );
                let fault = if seq > self.seq {
                    Fault::Removed
                } else {
                    Fault::Inserted
                };
                return Err(self.finding(self.seq + 1, fault, text));
            }
            (self.seq, self.digest, self.verified.seq) = (seq, digest, seq);
            self.verified.after = seq;
            return Ok(());
        }
        let next = Item::read(line);
        let held = self.held.replace(next);
        self.judge(held)
    }

    /// No more lines: the end of what there is now. What no checkpoint covers yet is well if it is chained.
    ///
    /// # Errors
    /// What is wrong with the last line.
    pub fn finish(mut self) -> Result<Verified, Finding> {
        let held = self.held.take();
        self.judge(held)?;
        Ok(self.verified)
    }

    /// No more lines: the end of a file, which must be signed.
    ///
    /// # Errors
    /// What is wrong with the last line; [`Fault::Cut`] when it is no checkpoint.
    pub fn finish_file(mut self) -> Result<Verified, Finding> {
        let held = self.held.take();
        self.judge(held)?;
        if !self.ends_signed {
            let text = "the file does not end with a signed checkpoint: its end is missing";
            self.line += 1;
            return Err(self.finding(self.seq + 1, Fault::Cut, text));
        }
        Ok(self.verified)
    }

    /// No more lines of this file, which must be signed; what comes next is the file that goes on where this one ends.
    ///
    /// # Errors
    /// As [`Verifier::finish_file`].
    pub fn next_file(mut self) -> Result<(Verified, Self), Finding> {
        let held = self.held.take();
        self.judge(held)?;
        let mut next = Self::after(self.check, self.seq, self.digest);
        next.installation = self.installation.take();
        next.joins = true;
        Ok((self.finish_file()?, next))
    }

    fn finding(&self, seq: i64, fault: Fault, text: impl Into<String>) -> Finding {
        Finding {
            line: self.line,
            seq,
            fault,
            text: text.into(),
        }
    }

    /// Judges a line; what follows it is in `held`.
    fn judge(&mut self, item: Option<Item>) -> Result<(), Finding> {
        let Some(item) = item else { return Ok(()) };
        self.line += 1;
        let expected = self.seq + 1;
        self.ends_signed = false;
        match &item {
            Item::Unreadable => Err(self.finding(
                expected,
                Fault::Unreadable,
                "this is neither a record nor a checkpoint",
            )),
            Item::Checkpoint(checkpoint) => self.judge_checkpoint(checkpoint),
            Item::Record { seq, digest, .. } if item.follows(expected, &self.digest) => {
                self.seq = *seq;
                self.digest = *digest;
                self.verified.seq = *seq;
                self.verified.records += 1;
                Ok(())
            }
            Item::Record { seq, .. } => Err(self.blame(*seq, expected)),
        }
    }

    /// What was done to a line that does not follow from the one before it.
    fn blame(&self, seq: i64, expected: i64) -> Finding {
        let next = self.held.as_ref();
        let next_seq = next.and_then(Item::seq);
        let next_follows = next.is_some_and(|next| next.follows(expected, &self.digest));
        let (fault, text) = if seq < expected {
            let text = format!(
                "record {seq} stands here although record {expected} is due: it was put in"
            );
            (Fault::Inserted, text)
        } else if seq == expected && next_follows {
            let text = format!("record {seq} is followed by the true record {seq}: it was put in");
            (Fault::Inserted, text)
        } else if seq == expected {
            let text = format!(
                "record {seq} does not follow from what is before it: it, or the line before it, was changed"
            );
            (Fault::Changed, text)
        } else if next_follows && seq > expected + 1 {
            let text = format!("record {seq} stands before record {expected}: it was put in");
            (Fault::Inserted, text)
        } else if next_seq.is_some_and(|next| next != seq + 1) {
            let text =
                format!("record {seq} stands where record {expected} was: they were swapped");
            (Fault::Swapped, text)
        } else {
            let last = seq - 1;
            let text = if last == expected {
                format!("record {expected} is missing")
            } else {
                format!("records {expected} to {last} are missing")
            };
            (Fault::Removed, text)
        };
        self.finding(expected, fault, text)
    }

    fn judge_checkpoint(&mut self, signed: &SignedCheckpoint) -> Result<(), Finding> {
        let Checkpoint {
            seq,
            digest,
            installation,
            key,
            count,
            ..
        } = &signed.checkpoint;
        match (self.check)(signed) {
            Signed::Yes => {}
            Signed::No => {
                let text = format!("the checkpoint of record {seq} is not what the key signed");
                return Err(self.finding(*seq, Fault::Signature, text));
            }
            Signed::ByAnother => {
                let text =
                    format!("the checkpoint of record {seq} was signed by another key, {key}");
                return Err(self.finding(*seq, Fault::OtherKey, text));
            }
        }
        if *self
            .installation
            .get_or_insert_with(|| installation.clone())
            != *installation
        {
            let text = format!(
                "the checkpoint of record {seq} is of another installation, {installation}"
            );
            return Err(self.finding(*seq, Fault::OtherInstallation, text));
        }
        if *seq > self.seq {
            let text = format!(
                "a checkpoint was signed when there were {count} records, and {} is the last one here: the others are missing",
                self.seq
            );
            return Err(self.finding(self.seq + 1, Fault::Cut, text));
        }
        if *seq < self.seq {
            let text = format!(
                "the checkpoint of record {seq} stands after record {}",
                self.seq
            );
            return Err(self.finding(*seq, Fault::Swapped, text));
        }
        if *digest != self.digest {
            let text = format!(
                "the checkpoint of record {seq} was signed over another digest: the records up to it were rewritten"
            );
            return Err(self.finding(*seq, Fault::Rewritten, text));
        }
        self.verified.checkpoints += 1;
        self.verified.signed_seq = *seq;
        self.ends_signed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Pieces, anchor, hex};
    use super::*;
    use crate::base::clock::Timestamp;
    use proptest::prelude::*;

    /// "Signed" here is: the signature is the length of what is signed, 64 times.
    fn check(signed: &SignedCheckpoint) -> Signed {
        let [byte] = u8::try_from(signed.signed.len() % 256)
            .unwrap()
            .to_be_bytes();
        if signed.checkpoint.key != "ours" {
            Signed::ByAnother
        } else if signed.signature == [byte; 64] {
            Signed::Yes
        } else {
            Signed::No
        }
    }

    fn checkpoint(seq: i64, digest: Digest, key: &str) -> String {
        let checkpoint = Checkpoint {
            installation: "ins_x".into(),
            seq,
            digest,
            count: seq,
            at: Timestamp::from_millis(9),
            key: key.into(),
        };
        let [byte] = u8::try_from(checkpoint.unsigned().len() % 256)
            .unwrap()
            .to_be_bytes();
        checkpoint.line(&[byte; 64])
    }

    /// So many records from one on, and the digest of each.
    fn records(count: i64, salt: &str) -> (Vec<String>, Vec<Digest>) {
        let mut digest = GENESIS;
        let event = format!("{{\"kind\":\"x\",\"salt\":\"{salt}\"}}");
        (1..=count)
            .map(|seq| {
                let pieces = Pieces {
                    seq,
                    id: "evt_x",
                    at: Timestamp::from_millis(seq),
                    stage: "fact",
                    intent: None,
                    principal: "p",
                    session: None,
                    event: &event,
                    outcome: None,
                };
                digest = digest_after(&digest, &pieces.body());
                (pieces.line(&digest), digest)
            })
            .unzip()
    }

    /// Ten records and their checkpoint.
    fn file() -> Vec<String> {
        let (mut lines, digests) = records(10, "");
        lines.push(checkpoint(10, digests[9], "ours"));
        lines
    }

    fn verify(lines: &[String]) -> Result<Verified, Finding> {
        let mut verifier = Verifier::new(&check);
        for line in lines {
            verifier.push(line)?;
        }
        verifier.finish_file()
    }

    #[track_caller]
    fn expect(lines: &[String], line: u64, seq: i64, fault: Fault) {
        let finding = verify(lines).unwrap_err();
        assert_eq!(
            (finding.line, finding.seq, finding.fault),
            (line, seq, fault),
            "{finding}"
        );
    }

    #[test]
    fn what_is_whole_is_said_to_be() {
        let verified = verify(&file()).unwrap();
        assert_eq!((verified.records, verified.checkpoints), (10, 1));
        assert_eq!((verified.seq, verified.signed_seq), (10, 10));
    }

    #[test]
    fn each_thing_that_can_be_done_is_named() {
        let edit = |change: &dyn Fn(&mut Vec<String>)| {
            let mut lines = file();
            change(&mut lines);
            lines
        };
        let changed = edit(&|lines| lines[4] = lines[4].replace("\"p\"", "\"q\""));
        expect(&changed, 5, 5, Fault::Changed);
        expect(&edit(&|lines| drop(lines.remove(4))), 5, 5, Fault::Removed);
        expect(
            &edit(&|lines| drop(lines.drain(2..6))),
            3,
            3,
            Fault::Removed,
        );
        expect(&edit(&|lines| drop(lines.remove(0))), 1, 1, Fault::Removed);
        expect(
            &edit(&|lines| lines.insert(5, lines[2].clone())),
            6,
            6,
            Fault::Inserted,
        );
        let (forged, _) = records(10, "forged");
        expect(
            &edit(&|lines| lines.insert(4, forged[4].clone())),
            5,
            5,
            Fault::Inserted,
        );
        expect(
            &edit(&|lines| lines.insert(4, forged[8].clone())),
            5,
            5,
            Fault::Inserted,
        );
        expect(&edit(&|lines| lines.swap(3, 4)), 4, 4, Fault::Swapped);
        expect(&edit(&|lines| lines.swap(2, 7)), 3, 3, Fault::Swapped);
        expect(&edit(&|lines| lines.truncate(7)), 8, 8, Fault::Cut);
        expect(&edit(&|lines| drop(lines.drain(7..10))), 8, 8, Fault::Cut);
        expect(
            &edit(&|lines| lines[3] = "{}".into()),
            4,
            4,
            Fault::Unreadable,
        );
        expect(&edit(&|lines| lines[3].push('x')), 4, 4, Fault::Unreadable);
        expect(&[], 1, 1, Fault::Cut);
        // Whoever chains it anew has no signature for it.
        let rewritten = edit(&|lines| {
            lines.splice(..10, forged.clone());
        });
        expect(&rewritten, 11, 10, Fault::Rewritten);
    }

    #[test]
    fn a_checkpoint_counts_when_the_key_signed_it() {
        let (lines, digests) = records(10, "");
        let with = |line: String| [lines.clone(), vec![line]].concat();
        expect(
            &with(checkpoint(10, digests[9], "theirs")),
            11,
            10,
            Fault::OtherKey,
        );
        let good = checkpoint(10, digests[9], "ours");
        let signature = SignedCheckpoint::parse(&good).unwrap().signature;
        let bad = good.replace(&hex(&signature), &hex(&[0; 64]));
        expect(&with(bad), 11, 10, Fault::Signature);
        expect(
            &with(checkpoint(9, digests[8], "ours")),
            11,
            9,
            Fault::Swapped,
        );
        let mut two = with(good.clone());
        two.push(good.replace("ins_x", "ins_y"));
        expect(&two, 12, 10, Fault::OtherInstallation);
    }

    #[test]
    fn a_part_says_what_it_follows() {
        let (lines, digests) = records(10, "");
        let mut part = vec![anchor(4, &digests[3])];
        part.extend_from_slice(&lines[4..]);
        part.push(checkpoint(10, digests[9], "ours"));
        assert_eq!(verify(&part).unwrap().records, 6);
        // Moving its beginning shows, as each digest is of all before it.
        part.remove(1);
        expect(&part, 2, 5, Fault::Removed);
    }

    #[test]
    fn archives_join() {
        let (lines, digests) = records(10, "");
        let mut both = lines[..4].to_vec();
        both.push(checkpoint(4, digests[3], "ours"));
        both.extend_from_slice(&lines[4..]);
        both.push(checkpoint(10, digests[9], "ours"));
        assert_eq!(verify(&both).unwrap().checkpoints, 2);
    }

    proptest! {
        #[test]
        fn no_byte_can_be_changed(line in 0_usize..10, at: prop::sample::Index, byte: u8) {
            let mut lines = file();
            let mut bytes = lines[line].clone().into_bytes();
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
            lines[line] = text;
            prop_assert!(verify(&lines).is_err());
        }

        #[test]
        fn nothing_panics(lines: Vec<String>) {
            let _ = verify(&lines);
        }
    }
}
