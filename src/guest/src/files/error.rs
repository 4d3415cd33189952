//! What the kernel's errors mean to whoever asked.

use std::collections::BTreeMap;
use std::io;

use casemate_link::file::{BadPlace, check_metadata};
use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;

use crate::child::refusal;

/// Says what was being done when the kernel refused: never what is in a file.
pub(crate) trait Doing<T> {
    /// Makes a refusal of an error.
    fn doing(self, what: &str) -> Result<T, Refusal>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, what: &str) -> Result<T, Refusal> {
        self.map_err(|errno| explain(what, errno))
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: &str) -> Result<T, Refusal> {
        self.map_err(|error| explain(what, errno(&error)))
    }
}

/// The kernel's number of an error; one that is none of the kernel's counts as a fault of the device.
pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

pub(crate) fn explain(what: &str, errno: Errno) -> Refusal {
    let code = match errno {
        // A path that leads through something else than a directory leads to nothing.
        Errno::ENOENT | Errno::ENOTDIR => code::FILE_NOT_FOUND,
        Errno::EEXIST | Errno::ENOTEMPTY => code::FILE_EXISTS,
        Errno::EISDIR | Errno::ELOOP | Errno::ENXIO => code::WRONG_FILE_KIND,
        Errno::EACCES | Errno::EPERM | Errno::EROFS => code::FILE_DENIED,
        Errno::ENOSPC | Errno::EFBIG | Errno::EDQUOT => code::DISK_FULL,
        Errno::EMFILE | Errno::ENFILE => code::BUSY,
        _ => code::FILE_FAILED,
    };
    refusal(code, &format!("{what}: {}", errno.desc()))
}

pub(crate) fn bad(problem: BadPlace) -> Refusal {
    refusal(code::BAD_SPEC, &problem.to_string())
}

pub(crate) fn wrong_kind(message: &str) -> Refusal {
    refusal(code::WRONG_FILE_KIND, message)
}

/// Mode bits that no file has.
pub(crate) fn check_mode(mode: Option<u32>) -> Result<(), Refusal> {
    match mode {
        Some(mode) if mode > 0o7777 => Err(bad(BadPlace::TooBig("mode"))),
        _ => Ok(()),
    }
}

/// What a file is to have beside its bytes.
pub(crate) fn check_attributes(
    mode: Option<u32>,
    metadata: Option<&BTreeMap<String, String>>,
) -> Result<(), Refusal> {
    check_mode(mode)?;
    metadata.map_or(Ok(()), |metadata| check_metadata(metadata).map_err(bad))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_kernel_has_its_code() {
        let code = |errno| explain("trying", errno).code;
        assert_eq!(code(Errno::ENOENT), code::FILE_NOT_FOUND);
        assert_eq!(code(Errno::ENOTDIR), code::FILE_NOT_FOUND);
        assert_eq!(code(Errno::ENOTEMPTY), code::FILE_EXISTS);
        assert_eq!(code(Errno::ELOOP), code::WRONG_FILE_KIND);
        assert_eq!(code(Errno::EROFS), code::FILE_DENIED);
        for full in [Errno::ENOSPC, Errno::EFBIG, Errno::EDQUOT] {
            assert_eq!(code(full), code::DISK_FULL);
        }
        assert_eq!(code(Errno::EIO), code::FILE_FAILED);
        assert!(
            explain("opening it", Errno::EIO)
                .message
                .starts_with("opening it: ")
        );
    }
}
