//! The first part of a backup: what it is, and what the other parts must be.

use serde::{Deserialize, Serialize};

use super::BackupError;
use crate::base::clock::Timestamp;
use crate::base::id::InstallationId;
use crate::model::image::ImageDigest;
use crate::model::name::Name;

/// The newest format that this program reads, and what it writes where there are images.
pub const FORMAT: u32 = 2;

/// The format without images: what older programs read too.
pub(super) const WITHOUT_IMAGES: u32 = 1;

/// How the part is called.
pub(super) const NAME: &str = "manifest.json";

/// Longest manifest: more parts than any installation has.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// The database's part.
pub(super) const DATABASE: &str = crate::store::FILE_NAME;

/// Before the name of a template's file.
pub(super) const TEMPLATES: &str = "templates/";

/// Before the name of an image's archive.
pub(super) const IMAGES: &str = "images/";

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The oldest that says all of it.
    pub format: u32,
    /// The version of Casemate that made it.
    pub casemate: String,
    /// Whose state it is.
    pub installation: InstallationId,
    /// The database's schema.
    pub schema: u32,
    /// When the copy of the database began: what was acknowledged before is in it.
    pub made_at: Timestamp,
    /// The images that podman had, by digest. Those that are in it are parts.
    pub images: Vec<ImageDigest>,
    /// The other parts, in their order.
    pub parts: Vec<Part>,
}

/// A part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// What it must come to, in hexadecimal digits.
    pub sha256: String,
}

/// What any format says.
#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
    #[serde(default)]
    casemate: String,
}

impl Manifest {
    /// Reads and judges one.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, BackupError> {
        let foreign = |error: serde_json::Error| BackupError::Foreign(error.to_string());
        let any: AnyFormat = serde_json::from_slice(bytes).map_err(foreign)?;
        if any.format > FORMAT {
            let casemate = any.casemate.chars().filter(|c| !c.is_control());
            return Err(BackupError::NewerFormat {
                format: any.format,
                casemate: casemate.take(32).collect(),
            });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(foreign)?;
        let bad = |what: String| Err(BackupError::Damaged(what));
        let mut names = std::collections::BTreeSet::new();
        for part in &manifest.parts {
            if !is_known(&part.name) {
                return bad(format!("it has a part called {:?}", part.name));
            }
            if !names.insert(part.name.as_str()) {
                return bad(format!("it says twice that it has {:?}", part.name));
            }
        }
        if !names.contains(DATABASE) {
            return bad("it says nothing of a database".to_owned());
        }
        Ok(manifest)
    }

    /// The images that are in it, each with the length of its archive.
    pub fn images_in_it(&self) -> impl Iterator<Item = (ImageDigest, u64)> {
        let parts = self.parts.iter();
        parts.filter_map(|part| Some((image_of(&part.name)?, part.size_bytes)))
    }

    /// Bytes of all parts.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let sizes = self.parts.iter().map(|part| part.size_bytes);
        sizes.fold(0, u64::saturating_add)
    }
}

/// How the part of an image is called.
pub(super) fn name_of_image(image: ImageDigest) -> String {
    format!("{IMAGES}{}.tar", image.hex())
}

/// Which image a part is, if it is one.
fn image_of(name: &str) -> Option<ImageDigest> {
    image_of_file(name.strip_prefix(IMAGES)?)
}

/// Which image the archive in a file is, by the file's name.
pub(super) fn image_of_file(name: &str) -> Option<ImageDigest> {
    format!("sha256:{}", name.strip_suffix(".tar")?)
        .parse()
        .ok()
}

/// Names are ours: none of them leads anywhere.
fn is_known(name: &str) -> bool {
    let is_template = || {
        name.strip_prefix(TEMPLATES)
            .and_then(|name| name.strip_suffix(".yaml"))
            .is_some_and(|name| name.parse::<Name>().is_ok())
    };
    name == DATABASE
        || super::OTHER_FILES.contains(&name)
        || is_template()
        || image_of(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(names: &[&str]) -> serde_json::Value {
        let parts: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({"name": name, "size_bytes": 1, "sha256": ""}))
            .collect();
        serde_json::json!({
            "format": 1, "casemate": "0", "installation": "ins_01m81sqd3exyysy61zt3rypv67", "schema": 1,
            "made_at": "2026-01-01T00:00:00Z", "images": [], "parts": parts,
        })
    }

    fn said(value: &serde_json::Value) -> String {
        match Manifest::read(value.to_string().as_bytes()) {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_that_are_not_ours_and_lists_that_lie_are_refused() {
        assert_eq!(said(&manifest(&["state.db"])), "ok");
        let image = format!("images/{}.tar", "0a".repeat(32));
        let all = ["state.db", "keys.hmac", "templates/base.yaml", &image];
        assert_eq!(said(&manifest(&all)), "ok");
        for name in [
            "../state.db",
            "/etc/passwd",
            "templates/../../x.yaml",
            "templates/Base Image.yaml",
            "lock",
            "state.db-wal",
            "images/base.tar",
            &format!("images/{}.tar", "0A".repeat(32)),
            &format!("images/../{}.tar", "0a".repeat(32)),
            "",
        ] {
            let said = said(&manifest(&["state.db", name]));
            assert!(said.contains("it has a part called"), "{said}");
        }
        assert!(said(&manifest(&["state.db", "state.db"])).contains("twice"));
        assert!(said(&manifest(&["keys.hmac"])).contains("nothing of a database"));
        let mut newer = manifest(&["state.db"]);
        newer["format"] = 3.into();
        newer["made_of"] = "cheese".into();
        assert!(said(&newer).contains("restore it with that version"));
        newer["format"] = 1.into();
        assert!(said(&newer).contains("not a backup"));
    }
}
