//! The documents about files. Paths are those of the sandbox: absolute, or below the home of the user who acts. Each
//! operation is done with that user's rights, inside the sandbox, so no path can lead anywhere else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits;

/// A path, and who acts on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// The path.
    pub path: String,
    /// Name or number of the user who acts; absent: the sandbox's `user`.
    #[serde(default)]
    pub user: Option<String>,
}

/// Why a request about files cannot be carried. Names the field, never a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPlace {
    /// The path is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A text holds a NUL, which no system call can carry.
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    /// A text, a list or a number is over its bound in [`limits`].
    #[error("{0} is over its bound")]
    TooBig(&'static str),
    /// The name of a metadata entry has other characters than lower-case letters, digits, `-`, `_` and `.`.
    #[error("a name in metadata has other characters than a-z, 0-9, '-', '_' and '.'")]
    MetadataName,
}

impl Place {
    /// A path, acted on by the sandbox's `user`.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            user: None,
        }
    }

    /// Checks every bound that does not depend on the sandbox. The daemon asks before it sends, the guest before it acts.
    ///
    /// # Errors
    /// The first [`BadPlace`] found.
    pub fn validate(&self) -> Result<(), BadPlace> {
        check_path("path", &self.path)?;
        match self.user.as_deref() {
            Some("") => Err(BadPlace::Empty("user")),
            Some(user) if user.len() > limits::MAX_USER_BYTES => Err(BadPlace::TooBig("user")),
            Some(user) if user.contains('\0') => Err(BadPlace::Nul("user")),
            _ => Ok(()),
        }
    }
}

/// Checks a path's bounds.
///
/// # Errors
/// [`BadPlace`] with the name of the field.
pub fn check_path(field: &'static str, path: &str) -> Result<(), BadPlace> {
    if path.is_empty() {
        return Err(BadPlace::Empty(field));
    }
    // The system counts the NUL at the end.
    if path.len() >= limits::MAX_PATH_BYTES {
        return Err(BadPlace::TooBig(field));
    }
    if path.contains('\0') {
        return Err(BadPlace::Nul(field));
    }
    Ok(())
}

/// Checks a file's metadata: count, names, sizes.
///
/// # Errors
/// [`BadPlace`].
pub fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), BadPlace> {
    let plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.')
    };
    let bytes: usize = metadata
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if metadata.len() > limits::MAX_METADATA_COUNT || bytes > limits::MAX_METADATA_BYTES {
        return Err(BadPlace::TooBig("metadata"));
    }
    if metadata.keys().any(|name| {
        name.is_empty() || name.len() > limits::MAX_METADATA_NAME_BYTES || !name.bytes().all(plain)
    }) {
        return Err(BadPlace::MetadataName);
    }
    Ok(())
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, a socket or a device.
    #[serde(other)]
    Other,
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its absolute path; bytes that are not UTF-8 are replaced, and `is_exact` is false.
    pub path: String,
    /// Whether `path` names it exactly.
    pub is_exact: bool,
    /// What it is.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Permission bits, set-user-id, set-group-id and sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// The owner's name, when the sandbox has one for it.
    #[serde(default)]
    pub owner: Option<String>,
    /// Group.
    pub gid: u32,
    /// The group's name, when the sandbox has one for it.
    #[serde(default)]
    pub group: Option<String>,
    /// Last change of the content, in milliseconds since 1970.
    pub modified_ms: i64,
    /// Changes whenever the content does: made of inode, size and time.
    pub etag: String,
    /// Where a symbolic link leads.
    #[serde(default)]
    pub target: Option<String>,
    /// Metadata that a client gave it.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// Head of a request to [`crate::route::FILE_STAT`]; the answer is one item, a [`FileEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatRequest {
    /// Of what.
    #[serde(flatten)]
    pub place: Place,
    /// Whether a symbolic link stands for what it leads to.
    pub follow: bool,
}

/// Head of a request to [`crate::route::FILE_LIST`]; the answer is a [`FileEntry`] an item, parents before what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRequest {
    /// Which directory.
    #[serde(flatten)]
    pub place: Place,
    /// Levels below it: 1 is what is in it. At most [`limits::MAX_LIST_DEPTH`].
    pub depth: u32,
    /// Entries at most; one more says that there are more. At most [`limits::MAX_LISTED_FILES`].
    pub limit: u32,
}

/// Head of a request to [`crate::route::FILE_READ`], in an [`Offer`]; the answer's head is the [`Taken`] [`FileEntry`], then
/// come its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// Which file; symbolic links are followed, anything but a regular file is refused.
    #[serde(flatten)]
    pub place: Place,
    /// The part to read; absent: all of it.
    #[serde(default)]
    pub range: Option<ReadRange>,
}

/// A request for a file's bytes, and the channel on which they may go: a number that the guest dials with when there are
/// enough of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer<R> {
    /// What is asked for.
    #[serde(flatten)]
    pub request: R,
    /// The channel; absent: the bytes go over the transfer's own stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<u64>,
}

/// Head of the answer to an [`Offer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken<A> {
    /// The answer proper.
    #[serde(flatten)]
    pub answer: A,
    /// Whether the bytes go over the channel that was offered. A guest that does not know of channels does not say so.
    #[serde(default)]
    pub on_channel: bool,
}

/// Answers nothing but whether it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

/// A part of a file, as HTTP asks for it (RFC 9110 section 14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadRange {
    /// From an offset, at most so many bytes; without a number all that follow.
    From(u64, Option<u64>),
    /// The last so many bytes.
    Last(u64),
}

impl ReadRange {
    /// Offset and length of the part in a file of this size; `None` when it lies outside.
    pub fn within(self, size: u64) -> Option<(u64, u64)> {
        match self {
            Self::From(offset, length) if offset < size => {
                Some((offset, length.unwrap_or(u64::MAX).min(size - offset)))
            }
            Self::Last(length) if length > 0 && size > 0 => {
                let length = length.min(size);
                Some((size - length, length))
            }
            Self::From(..) | Self::Last(_) => None,
        }
    }
}

/// Head of a request to [`crate::route::FILE_WRITE`], in an [`Offer`]: its bytes follow, then the end. The answer's head
/// comes as soon as bytes may, [`Taken`] or an empty document; its one item, when all is in place, is the [`FileEntry`].
///
/// The bytes go to a temporary file beside it, which takes its name at the end: whoever reads it sees the old content or
/// the new. A write that is cut short, or for which there is no space, leaves the old.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// Which file; a symbolic link is followed.
    #[serde(flatten)]
    pub place: Place,
    /// Permission bits; absent: those of the file that is replaced, or 0644.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Add to what is there, in place and not atomically.
    #[serde(default)]
    pub append: bool,
    /// Make directories that are missing.
    #[serde(default)]
    pub create_parents: bool,
    /// Whether the bytes must be on the disk before the answer.
    #[serde(default)]
    pub sync: bool,
    /// What must be so for it to be replaced.
    #[serde(default)]
    pub only_if: Option<WriteCondition>,
    /// Metadata to give it, instead of what it had.
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// What must be so for a file to be replaced; checked right before it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteCondition {
    /// There is none.
    Absent,
    /// There is one.
    Present,
    /// Its [`FileEntry::etag`] is one of these.
    Etag(Vec<String>),
}

/// Head of a request to [`crate::route::FILE_MKDIR`]; the answer is one item, a [`Made`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MkdirRequest {
    /// Which directory.
    #[serde(flatten)]
    pub place: Place,
    /// Permission bits; absent: 0755.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Make directories on the way that are missing.
    #[serde(default)]
    pub parents: bool,
}

/// A directory that is there now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The directory.
    pub entry: FileEntry,
    /// Whether it was not there before.
    pub created: bool,
}

/// Head of a request to [`crate::route::FILE_MOVE`]; the answer is one item, the [`FileEntry`] under its new name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRequest {
    /// What is moved; a symbolic link itself.
    #[serde(flatten)]
    pub place: Place,
    /// Its new path.
    pub to: String,
    /// Whether a file that is there may be replaced.
    #[serde(default)]
    pub overwrite: bool,
    /// Make directories on the way that are missing.
    #[serde(default)]
    pub create_parents: bool,
}

/// Head of a request to [`crate::route::FILE_REMOVE`]; the answer has no item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveRequest {
    /// What is removed; a symbolic link itself.
    #[serde(flatten)]
    pub place: Place,
    /// Whether a directory goes with all that is in it; otherwise only an empty one goes.
    #[serde(default)]
    pub recursive: bool,
}

/// Head of a request to [`crate::route::FILE_LINK`]; the answer is one item, the link's [`FileEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRequest {
    /// Where the symbolic link is made.
    #[serde(flatten)]
    pub place: Place,
    /// Where it leads: any text, as symlink(2) takes it.
    pub target: String,
}

/// Head of a request to [`crate::route::FILE_SET`]; the answer is one item, the [`FileEntry`] after it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetRequest {
    /// Of what; a symbolic link is followed.
    #[serde(flatten)]
    pub place: Place,
    /// Permission bits.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Name or number of the owner.
    #[serde(default)]
    pub owner: Option<String>,
    /// Name or number of the group.
    #[serde(default)]
    pub group: Option<String>,
    /// Metadata, instead of what it has.
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Head of a request to [`crate::route::FILE_WATCH`]. The answer's head is an empty document once it watches; then comes
/// a [`FileEvent`] an item, until the daemon hangs up or the directory is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// Which directory, or file.
    #[serde(flatten)]
    pub place: Place,
    /// Whether directories below it are watched too.
    #[serde(default)]
    pub recursive: bool,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// It is new.
    Create,
    /// Its content changed.
    Write,
    /// It is gone.
    Remove,
    /// It has another name now, or is gone from what is watched.
    Rename,
    /// Its mode, owner or metadata changed.
    Chmod,
    /// More happened than could be told: look again at everything.
    Overflow,
}

/// One thing that happened below what is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEvent {
    /// What.
    pub change: FileChange,
    /// To which file: its path relative to what is watched; empty for that itself.
    pub path: String,
    /// [`FileChange::Rename`]: its new path, where that is watched too.
    #[serde(default)]
    pub to: Option<String>,
    /// Whether it is a directory.
    #[serde(default)]
    pub is_directory: bool,
}

/// Head of a request to [`crate::route::ARCHIVE_READ`]; the answer's head is the [`FileEntry`] of the root, then comes a
/// tar stream (POSIX, with GNU or PAX long names) of all below it, paths relative to it. A file alone is an archive of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRequest {
    /// Which directory or file.
    #[serde(flatten)]
    pub place: Place,
}

/// Head of a request to [`crate::route::ARCHIVE_WRITE`]: a tar stream follows, then the end. The answer's head is an empty
/// document; its one item, when all is in place, an [`ArchiveSummary`].
///
/// No entry leaves the directory, by `..`, by an absolute path, or through a symbolic link that is there or came before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackRequest {
    /// Into which directory; made if it is missing.
    #[serde(flatten)]
    pub place: Place,
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ArchiveSummary {
    /// Entries of all kinds.
    pub entries: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Devices and other entries that were passed over.
    pub skipped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded() {
        let at = |path: &str| Place::new(path).validate();
        assert_eq!(at("/tmp/a"), Ok(()));
        assert_eq!(at("../x"), Ok(()));
        assert_eq!(at(""), Err(BadPlace::Empty("path")));
        assert_eq!(at("/a\0b"), Err(BadPlace::Nul("path")));
        assert_eq!(at(&"x".repeat(4096)), Err(BadPlace::TooBig("path")));
        let place = Place {
            user: Some(String::new()),
            ..Place::new("/")
        };
        assert_eq!(place.validate(), Err(BadPlace::Empty("user")));
    }

    #[test]
    fn metadata_is_bounded_and_named_plainly() {
        let check =
            |name: &str, value: &str| check_metadata(&[(name.to_owned(), value.to_owned())].into());
        assert_eq!(check("project-id", "Ä b"), Ok(()));
        for bad in ["", "A", "a b", "a/b", &"x".repeat(101)] {
            assert_eq!(check(bad, ""), Err(BadPlace::MetadataName), "{bad}");
        }
        assert_eq!(
            check("a", &"x".repeat(9000)),
            Err(BadPlace::TooBig("metadata"))
        );
        let many = (0..33).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(check_metadata(&many), Err(BadPlace::TooBig("metadata")));
    }

    #[test]
    fn parts_are_cut_to_the_file() {
        assert_eq!(ReadRange::From(2, Some(3)).within(10), Some((2, 3)));
        assert_eq!(ReadRange::From(2, Some(30)).within(10), Some((2, 8)));
        assert_eq!(ReadRange::From(2, None).within(10), Some((2, 8)));
        assert_eq!(ReadRange::From(10, None).within(10), None);
        assert_eq!(ReadRange::From(u64::MAX, Some(u64::MAX)).within(10), None);
        assert_eq!(ReadRange::Last(3).within(10), Some((7, 3)));
        assert_eq!(ReadRange::Last(30).within(10), Some((0, 10)));
        assert_eq!(ReadRange::Last(0).within(10), None);
        assert_eq!(ReadRange::Last(1).within(0), None);
    }

    #[test]
    fn a_newer_peers_file_kind_is_other() {
        assert_eq!(
            serde_json::from_str::<FileKind>("\"door\"").unwrap(),
            FileKind::Other
        );
    }
}
