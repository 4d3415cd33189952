//! Where the API key comes from: the environment or a file, never an argument, which every user of
//! the machine could read in the process list.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use casemate::base::exit::Exit;
use casemate::base::secret::Secret;

use crate::failure::Failure;

/// The variable that holds the key.
pub const VARIABLE: &str = "CASEMATE_API_KEY";

/// Longest key file: a key has fewer than 200 bytes, a token fewer than this.
const MAX_KEY_BYTES: u64 = 16 * 1024;

/// The key: from the file where one is named, else from the environment.
///
/// # Errors
/// A sentence that tells how to make one.
pub fn find(file: Option<&Path>, environment: Option<OsString>) -> Result<Secret<String>, Failure> {
    if let Some(path) = file {
        return read(path);
    }
    let text = environment.and_then(|text| text.into_string().ok());
    let text = Secret::new(text.unwrap_or_default());
    if text.expose().trim().is_empty() {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "there is no API key; an operator makes one with `casemate admin key create NAME`, then put it into {VARIABLE} or name its file with --key-file"
            ),
        ));
    }
    checked(&text, VARIABLE)
}

fn read(path: &Path) -> Result<Secret<String>, Failure> {
    let shown = path.display();
    let failed = |error| Failure::io(format_args!("read the API key from {shown}"), &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.is_file() && about.permissions().mode() & 0o007 != 0 {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "every user of this machine can reach the API key in {shown}; run `chmod 600 {shown}`"
            ),
        ));
    }
    let mut text = String::with_capacity(256);
    let read = file.take(MAX_KEY_BYTES).read_to_string(&mut text);
    let text = Secret::new(text);
    read.map_err(failed)?;
    checked(&text, &shown.to_string())
}

fn checked(text: &Secret<String>, source: &str) -> Result<Secret<String>, Failure> {
    let key = text.expose().trim();
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::usage(format!(
            "what {source} holds is not an API key; it must be the one line that `casemate admin key create` printed"
        )));
    }
    Ok(Secret::new(key.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn the_file_goes_before_the_environment_and_its_newline_does_not_count() {
        let file = file("cmk_a_b\n", 0o600);
        let key = find(Some(file.path()), Some("other".into())).unwrap();
        assert_eq!(key.expose(), "cmk_a_b");
        assert_eq!(find(None, Some("other".into())).unwrap().expose(), "other");
    }

    #[test]
    fn a_missing_key_says_how_to_make_one() {
        for nothing in [None, Some(OsString::from("")), Some(OsString::from(" "))] {
            let failure = find(None, nothing).unwrap_err();
            assert_eq!(failure.exit, Exit::Refused);
            assert!(failure.message.contains("casemate admin key create"));
        }
    }

    #[test]
    fn a_key_that_everybody_can_read_is_refused() {
        let file = file("cmk_a_b", 0o604);
        let failure = find(Some(file.path()), None).unwrap_err();
        assert!(failure.message.contains("chmod 600"), "{failure:?}");
    }

    #[test]
    fn what_is_no_key_is_not_repeated() {
        let file = file("two lines\nof secrets", 0o600);
        let failure = find(Some(file.path()), None).unwrap_err();
        assert!(!failure.message.contains("secrets"), "{failure:?}");
    }
}
