//! What is made of the guest's documents before anybody sees them: each is held to its bounds, whoever sent it.
//!
//! Numbers and sizes are bounded here. Texts may still say anything: whoever prints one escapes it.

use super::LinkError;
use crate::file::{FileEntry, FileEvent, FileKind};
use crate::limits::{
    MAX_CODE_BYTES, MAX_ETAG_BYTES, MAX_FILE_BYTES, MAX_HOSTNAME_BYTES, MAX_LISTED_WORD_BYTES,
    MAX_LISTED_WORDS, MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, MAX_METADATA_COUNT, MAX_PATH_BYTES,
    MAX_TAG_BYTES, MAX_USER_BYTES,
};
use crate::process::ProcessInfo;
use crate::refusal::Refusal;
use crate::usage::Usage;
use crate::warm_up::Identity;

/// A file's entry within its bounds.
///
/// # Errors
/// [`LinkError::Protocol`].
pub fn entry(entry: FileEntry) -> Result<FileEntry, LinkError> {
    let metadata: usize = entry
        .metadata
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_sane = entry.path.len() <= MAX_PATH_BYTES
        && fits(entry.target.as_deref(), MAX_PATH_BYTES)
        && fits(entry.owner.as_deref(), MAX_USER_BYTES)
        && fits(entry.group.as_deref(), MAX_USER_BYTES)
        && entry.size_bytes <= MAX_FILE_BYTES
        && entry.mode <= 0o7777
        && (1..=MAX_ETAG_BYTES).contains(&entry.etag.len())
        && entry.etag.bytes().all(plain)
        && entry.metadata.len() <= MAX_METADATA_COUNT
        && metadata <= MAX_METADATA_BYTES
        && (entry.kind != FileKind::Symlink || entry.target.is_some());
    sane(is_sane, "a file's entry over its bounds").map(|()| entry)
}

/// An event of a watch within its bounds.
///
/// # Errors
/// [`LinkError::Protocol`].
pub fn event(event: FileEvent) -> Result<FileEvent, LinkError> {
    let is_sane = event.path.len() <= MAX_PATH_BYTES && fits(event.to.as_deref(), MAX_PATH_BYTES);
    sane(is_sane, "a path over its bound").map(|()| event)
}

/// What is known of a process, within its bounds.
///
/// # Errors
/// [`LinkError::Protocol`].
pub fn process(info: ProcessInfo) -> Result<ProcessInfo, LinkError> {
    let short = |word: &String| word.len() <= MAX_LISTED_WORD_BYTES;
    let is_sane = info.argv.len() <= MAX_LISTED_WORDS
        && info.argv.iter().all(short)
        && fits(info.tag.as_deref(), MAX_TAG_BYTES)
        && fits(info.cwd.as_deref(), MAX_PATH_BYTES)
        && info.user.len() <= MAX_USER_BYTES
        && info.stdout_from <= info.stdout_to
        && info.stderr_from <= info.stderr_to;
    sane(is_sane, "a process over its bounds").map(|()| info)
}

/// What a sandbox uses, within its bounds.
///
/// # Errors
/// [`LinkError::Protocol`].
pub fn usage(usage: Usage) -> Result<Usage, LinkError> {
    let is_sane = usage.hostname.len() <= MAX_HOSTNAME_BYTES;
    sane(is_sane, "a host name over its bound").map(|()| usage)
}

/// Who a sandbox is, within its bounds.
///
/// # Errors
/// [`LinkError::Protocol`].
pub fn identity(identity: Identity) -> Result<Identity, LinkError> {
    let is_sane = identity.hostname.len() <= MAX_HOSTNAME_BYTES;
    sane(is_sane, "a host name over its bound").map(|()| identity)
}

/// Makes an error of the guest's refusal; its texts may end in logs and on terminals, so they are cleaned.
pub fn refusal(refusal: Refusal) -> LinkError {
    let Refusal { code, message } = refusal;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if code.is_empty() || code.len() > MAX_CODE_BYTES || !code.bytes().all(plain) {
        return LinkError::Protocol("a refusal without a proper code".into());
    }
    let message = message.chars().take(MAX_MESSAGE_BYTES / 4);
    let message = message
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    LinkError::Refused { code, message }
}

fn fits(text: Option<&str>, max_bytes: usize) -> bool {
    text.is_none_or(|text| text.len() <= max_bytes)
}

fn sane(is_sane: bool, otherwise: &str) -> Result<(), LinkError> {
    if is_sane {
        Ok(())
    } else {
        Err(LinkError::Protocol(otherwise.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_hostile_refusal_is_cleaned_or_rejected() {
        let refused = |code: &str, message: &str| {
            refusal(Refusal {
                code: code.into(),
                message: message.into(),
            })
        };
        let cleaned = refused("not_found", &format!("\x1b[31m\n{}", "x".repeat(5000)));
        match cleaned {
            LinkError::Refused { code, message } => {
                assert_eq!(code, "not_found");
                assert!(message.starts_with(" [31m x") && message.len() <= MAX_MESSAGE_BYTES);
            }
            other => panic!("{other:?}"),
        }
        for code in ["", "Not Found", "a\nb", &"x".repeat(65)] {
            assert!(matches!(refused(code, ""), LinkError::Protocol(_)));
        }
    }

    fn plain_entry() -> FileEntry {
        FileEntry {
            path: "/tmp/a".into(),
            is_exact: true,
            kind: FileKind::File,
            size_bytes: 1,
            mode: 0o644,
            uid: 0,
            owner: None,
            gid: 0,
            group: None,
            modified_ms: 0,
            etag: "1-2".into(),
            target: None,
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn an_entry_over_any_bound_is_rejected() {
        assert!(entry(plain_entry()).is_ok());
        let changes: [fn(&mut FileEntry); 10] = [
            |e| e.path = "x".repeat(4097),
            |e| e.target = Some("x".repeat(4097)),
            |e| e.owner = Some("x".repeat(65)),
            |e| e.group = Some("x".repeat(65)),
            |e| e.size_bytes = MAX_FILE_BYTES + 1,
            |e| e.mode = 0o10000,
            |e| e.etag = "a\r\nb".into(),
            |e| e.etag.clear(),
            |e| e.metadata = BTreeMap::from([("a".into(), "x".repeat(8192))]),
            |e| e.kind = FileKind::Symlink,
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut bad = plain_entry();
            change(&mut bad);
            assert!(matches!(entry(bad), Err(LinkError::Protocol(_))), "{at}");
        }
    }
}
