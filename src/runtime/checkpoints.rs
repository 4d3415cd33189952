//! What the OCI runtime's wrapper says of checkpoints, in the text of its version. Pure.
//!
//! The other side is `packaging/libexec/casemate-runsc`.

use crate::model::sandbox::Checkpoint;

/// What our OCI runtime takes for an order to take a checkpoint of a sandbox, which ends with it.
pub(super) const CHECKPOINT_SIGNAL: u8 = 61;

/// The checkpoints that there are, by the version's text: a line for each, `checkpoint: NAME BYTES`.
pub(super) fn read(version: &str) -> Vec<Checkpoint> {
    let lines = version
        .lines()
        .filter_map(|line| line.strip_prefix("checkpoint: "));
    lines
        .filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            Some(Checkpoint {
                name: name.to_owned(),
                size_bytes: bytes.parse().ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_read_and_others_left() {
        let version = "runsc version 1\nvolumes: yes\ncheckpoint: ses_a.checkpoint 17\ncheckpoint: b\ncheckpoint: c x\n";
        let read = read(version);
        assert_eq!(read.len(), 1);
        assert_eq!(
            (&*read[0].name, read[0].size_bytes),
            ("ses_a.checkpoint", 17)
        );
    }
}
