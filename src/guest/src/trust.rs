//! Whom programs trust besides those whom the image trusts: files of their own, and nothing of the image's is changed.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use casemate_link::refusal::{Refusal, code};
use casemate_link::trust::{ALL_PATH, MAX_PEM_BYTES, OWN_PATH, TrustRequest};

use crate::child::refusal;

/// Where images have what they trust: Debian, Ubuntu and Alpine; Fedora; others.
const OF_IMAGES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// Most bytes of what an image trusts; of a larger file nothing is taken.
const MAX_BYTES: u64 = 4 << 20;

/// Writes the certificate alone, and with what the image trusts.
pub(crate) fn extend(request: &TrustRequest) -> Result<(), Refusal> {
    if request.pem.len() > MAX_PEM_BYTES {
        return Err(refusal(code::BAD_REQUEST, "the certificate is too long"));
    }
    let pem = request.pem.as_bytes();
    let image = OF_IMAGES.iter().find_map(|path| read(Path::new(path)));
    let mut all = image.unwrap_or_default();
    if !all.is_empty() && !all.ends_with(b"\n") {
        all.push(b'\n');
    }
    all.extend_from_slice(pem);
    for (path, bytes) in [(OWN_PATH, pem), (ALL_PATH, &all)] {
        put(Path::new(path), bytes)
            .map_err(|error| refusal(code::BAD_REQUEST, &format!("write {path}: {error}")))?;
    }
    Ok(())
}

/// A file's bytes, if there is one, and it is not too large.
fn read(path: &Path) -> Option<Vec<u8>> {
    let file = fs::File::open(path).ok()?;
    let is_fit = |found: &fs::Metadata| found.is_file() && found.len() <= MAX_BYTES;
    if !file.metadata().is_ok_and(|found| is_fit(&found)) {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Whoever reads it sees what was there before, or all of this.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut made = fs::DirBuilder::new();
    made.recursive(true).mode(0o755).create(directory)?;
    let beside = path.with_extension("new");
    fs::write(&beside, bytes)?;
    // Whatever the mask is: programs of any user read it.
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_and_for_everybody_to_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/ca.pem");
        for text in ["one", "another"] {
            put(&path, text.as_bytes()).unwrap();
            assert_eq!(read(&path).unwrap(), text.as_bytes());
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(read(directory.path()).is_none());
        assert!(read(Path::new("/no/such")).is_none());
    }
}
