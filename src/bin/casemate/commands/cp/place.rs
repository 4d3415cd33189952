//! One side of a copy, as it stands on the command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::which::{Which, which};

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path in a session.
    Session(Which, String),
    /// A path of this machine.
    Local(PathBuf),
    /// Standard input or output.
    Stream,
}

/// Reads `SESSION:PATH`, `-` or a path of this machine. A colon after a slash belongs to a path.
pub fn place(text: &str) -> Result<Place, String> {
    if text == "-" {
        return Ok(Place::Stream);
    }
    if text.is_empty() {
        return Err("an empty path".to_owned());
    }
    match text.split_once(':') {
        Some((session, path)) if !session.contains('/') => {
            let which = which(session).map_err(|error| {
                format!("{session} is {error}; a path of this machine is written ./{text}")
            })?;
            let path = if path.is_empty() { "." } else { path };
            Ok(Place::Session(which, path.to_owned()))
        }
        _ => Ok(Place::Local(PathBuf::from(text))),
    }
}

/// The name that a path gives to what it leads to; `None` for one that ends in `/.`, `..` or the root,
/// which stand for what is in a directory.
pub fn own_name(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(0, |at| at + 1);
    let name = bytes.get(..end)?.rsplit(|byte| *byte == b'/').next()?;
    let is_name = !matches!(name, b"" | b"." | b"..");
    is_name.then(|| OsStr::from_bytes(name))
}

/// The directory and the name of what a path leads to.
pub fn split(path: &Path) -> Option<(PathBuf, OsString)> {
    let name = own_name(path)?.to_owned();
    let parent = path.parent().unwrap_or(Path::new("."));
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    Some((parent.to_owned(), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_is_a_sessions() {
        let id = "ses_00000000000000000000000001";
        let session =
            |text: &str, path: &str| Ok(Place::Session(which(text).unwrap(), path.into()));
        assert_eq!(place(&format!("{id}:/a:b")), session(id, "/a:b"));
        assert_eq!(place("dev:x"), session("dev", "x"));
        assert_eq!(place("dev:"), session("dev", "."));
        assert_eq!(place("-"), Ok(Place::Stream));
        for local in ["./a:b", "/a:b", "a", "a/b:c"] {
            assert_eq!(place(local), Ok(Place::Local(local.into())));
        }
        assert!(place("A:b").unwrap_err().contains("./A:b"));
        assert!(place("").is_err() && place(":a").is_err());
    }

    #[test]
    fn a_name_is_the_last_that_a_path_says() {
        for (path, name) in [
            ("a", Some("a")),
            ("/x/a/", Some("a")),
            ("a/.", None),
            (".", None),
            ("a/..", None),
            ("/", None),
            ("..a", Some("..a")),
        ] {
            assert_eq!(own_name(Path::new(path)), name.map(OsStr::new), "{path}");
        }
        let parts = |path| split(Path::new(path)).unwrap();
        assert_eq!(parts("a"), (".".into(), "a".into()));
        assert_eq!(parts("/a"), ("/".into(), "a".into()));
        assert_eq!(parts("x/a/"), ("x".into(), "a".into()));
    }
}
