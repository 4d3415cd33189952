//! A file's metadata: extended attributes of its own (xattr(7)), below a prefix of ours.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};

use casemate_link::file::check_metadata;
use casemate_link::limits::{MAX_METADATA_BYTES, MAX_METADATA_COUNT};
use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;

use super::error::{Doing, errno};
use crate::child::refusal;
use crate::sys::{self, Attributed};

const PREFIX: &str = "user.casemate.";

/// Bytes of all names that Linux gives at most (`XATTR_LIST_MAX`).
const MAX_LIST_BYTES: usize = 64 * 1024;

/// Reads a file's metadata. What the user may not read, or the file system does not keep, is none; what does not fit the
/// protocol, because a program made it, is left out.
pub(crate) fn read(file: Attributed<'_>) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::new();
    let Some(names) = names(file) else {
        return metadata;
    };
    let mut bytes = 0;
    for full in names.split_inclusive(|byte| *byte == 0) {
        let Ok(full) = CStr::from_bytes_with_nul(full) else {
            continue;
        };
        let Some(name) = full
            .to_str()
            .ok()
            .and_then(|name| name.strip_prefix(PREFIX))
        else {
            continue;
        };
        let mut value = vec![0; MAX_METADATA_BYTES];
        let Ok(length) = sys::read_attribute(file, full, &mut value) else {
            continue;
        };
        value.truncate(length);
        let Ok(value) = String::from_utf8(value) else {
            continue;
        };
        bytes += name.len() + value.len();
        let one = BTreeMap::from([(name.to_owned(), value)]);
        if bytes > MAX_METADATA_BYTES
            || metadata.len() >= MAX_METADATA_COUNT
            || check_metadata(&one).is_err()
        {
            break;
        }
        metadata.extend(one);
    }
    metadata
}

/// Gives a file this metadata instead of what it has.
pub(crate) fn replace(
    file: Attributed<'_>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    for full in names(file)
        .unwrap_or_default()
        .split_inclusive(|byte| *byte == 0)
    {
        let Ok(full) = CStr::from_bytes_with_nul(full) else {
            continue;
        };
        let name = full
            .to_str()
            .ok()
            .and_then(|name| name.strip_prefix(PREFIX));
        if name.is_some_and(|name| !metadata.contains_key(name)) {
            sys::remove_attribute(file, full).doing("removing metadata")?;
        }
    }
    for (name, value) in metadata {
        let full = CString::new(format!("{PREFIX}{name}"))
            .map_err(|_| refusal(code::BAD_SPEC, "a name in metadata holds a NUL byte"))?;
        if let Err(error) = sys::write_attribute(file, &full, value.as_bytes()) {
            return Err(match errno(&error) {
                Errno::EOPNOTSUPP => {
                    refusal(code::FILE_FAILED, "the file system there keeps no metadata")
                }
                errno => super::error::explain("setting metadata", errno),
            });
        }
    }
    Ok(())
}

/// The names of all extended attributes; `None` where there are none or they cannot be read.
fn names(file: Attributed<'_>) -> Option<Vec<u8>> {
    // Most files have none, and the kernel says so for nothing.
    let length = sys::list_attributes(file, &mut [])
        .ok()
        .filter(|length| *length > 0)?;
    let mut names = vec![0; length.min(MAX_LIST_BYTES)];
    let length = sys::list_attributes(file, &mut names).ok()?;
    names.truncate(length);
    Some(names)
}
