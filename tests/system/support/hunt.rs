//! Looks for secrets in whatever somebody could read, in every form that they take on the way.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// What is looked for.
#[derive(Default)]
pub struct Hunt {
    /// Each form, and the name of what it is one of.
    forms: Vec<(Vec<u8>, String)>,
    /// Finds all of them at once.
    finder: OnceCell<AhoCorasick>,
}

/// Where what was found: a place and a secret's name.
pub type Found = BTreeSet<(String, String)>;

impl Hunt {
    /// Looks for this too; at least 12 bytes, that nobody has by chance.
    pub fn plant(&mut self, what: &str, secret: &[u8]) {
        assert!(secret.len() >= 12, "{what} is too short to be told apart");
        let forms = forms(secret).into_iter();
        self.forms.extend(forms.map(|form| (form, what.to_owned())));
        self.finder.take();
    }

    /// Names of the secrets that are in these bytes.
    pub fn names(&self, bytes: &[u8]) -> BTreeSet<String> {
        let forms = self.forms.iter().map(|(form, _)| form);
        let finder = self.finder.get_or_init(|| AhoCorasick::new(forms).unwrap());
        let found = finder.find_overlapping_iter(bytes);
        found
            .map(|found| self.forms[found.pattern()].1.clone())
            .collect()
    }

    /// Bytes from a place.
    pub fn look(&self, place: &str, bytes: &[u8], found: &mut Found) {
        for what in self.names(bytes) {
            found.insert((place.to_owned(), what));
        }
    }

    /// Every file below a directory, and every file in an archive or a backup among them.
    pub fn walk(&self, directory: &Path, found: &mut Found) -> usize {
        let mut looked = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let place = path.display().to_string();
            // What something is called is read as easily.
            self.look(&place, place.as_bytes(), found);
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                looked += self.walk(&path, found);
            } else if let Ok(bytes) = std::fs::read(&path) {
                looked += 1;
                self.look(&place, &bytes, found);
                if let Ok(plain) = zstd::stream::decode_all(bytes.as_slice())
                    && !plain.is_empty()
                {
                    self.look(&format!("{place} unpacked"), &plain, found);
                    self.unpack(&place, &plain, found);
                }
            }
        }
        looked
    }

    /// Every file of a tar archive; how many there are.
    pub fn unpack(&self, place: &str, archive: &[u8], found: &mut Found) -> usize {
        let mut looked = 0;
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().unwrap() {
            let Ok(mut entry) = entry else { break };
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let place = format!("{place}: {name}");
            self.look(&place, name.as_bytes(), found);
            if let Ok(Some(link)) = entry.link_name() {
                self.look(&place, link.as_os_str().as_encoded_bytes(), found);
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            self.look(&place, &bytes, found);
            looked += 1;
        }
        looked
    }

    /// Command lines and environments of all processes of this machine but this one, as `PID/FILE`; how many there are.
    pub fn processes(&self, found: &mut Found) -> usize {
        let mut looked = 0;
        for entry in std::fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_other = name != std::process::id().to_string();
            if !name.bytes().all(|b| b.is_ascii_digit()) || !is_other {
                continue;
            }
            for file in ["cmdline", "environ"] {
                let bytes = std::fs::read(path.join(file)).unwrap_or_default();
                self.look(&format!("{name}/{file}"), &bytes, found);
            }
            looked += 1;
        }
        looked
    }
}

/// How a secret may look elsewhere.
fn forms(secret: &[u8]) -> BTreeSet<Vec<u8>> {
    let join = |each: &dyn Fn(&u8) -> String, between: &str| {
        let all: Vec<_> = secret.iter().map(each).collect();
        all.join(between).into_bytes()
    };
    let in_url = |byte: &u8| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            char::from(*byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    let mut forms = BTreeSet::from([
        secret.to_vec(),
        secret.to_ascii_uppercase(),
        join(&|byte| format!("{byte:02x}"), ""),
        join(&|byte| format!("{byte:02X}"), ""),
        join(&|byte| format!("{byte:02X}"), ":"),
        // As Debug shows bytes.
        join(&ToString::to_string, ", "),
        secret.escape_ascii().to_string().into_bytes(),
        join(&in_url, ""),
        secret.iter().flat_map(|byte| [*byte, 0]).collect(),
    ]);
    for engine in [&STANDARD, &URL_SAFE] {
        // At each place within a longer text; what depends on its neighbours is left out.
        for before in 0..3 {
            let text = engine.encode([&vec![b'x'; before], secret].concat());
            let from = if before == 0 { 0 } else { 4 };
            let inner = &text.as_bytes()[from..text.len() - 4];
            // A file of PEM breaks it after 64 characters: the first line's worth is enough.
            forms.insert(inner[..inner.len().min(44)].to_vec());
        }
    }
    forms
}

/// Makes sure that nothing was found but what may be there, and all of that.
#[track_caller]
pub fn assert_only(found: &Found, allowed: impl Fn(&str, &str) -> bool) {
    let bad: BTreeMap<_, _> = found
        .iter()
        .filter(|(place, what)| !allowed(place, what))
        .map(|(place, what)| (place, what))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn every_form_is_found_and_no_other() {
    let mut hunt = Hunt::default();
    let secret = "planted secret/7Qm2?xW";
    hunt.plant("it", secret.as_bytes());
    hunt.plant("another", b"planted-other-Zr8NcYp3");
    let hex = casemate::model::record::hex(secret.as_bytes());
    let text = |before: &str| STANDARD.encode(format!("{before}{secret} and more"));
    for look in [
        secret.to_owned(),
        format!("aaaaaaaa{secret}zzzzzzzz"),
        hex.clone(),
        hex.to_uppercase(),
        "planted%20secret%2F7Qm2%3FxW".to_owned(),
        format!("{:?}", secret.as_bytes()),
        format!("{:?}", Some(secret)),
        text(""),
        text("a"),
        text("ab"),
        URL_SAFE.encode(format!("\u{3f}\u{3e}{secret}")),
    ] {
        assert_eq!(hunt.names(look.as_bytes()), ["it".into()].into(), "{look}");
    }
    assert!(hunt.names(&secret.as_bytes()[1..]).is_empty());
}
