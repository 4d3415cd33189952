//! Images as the fake runtime has them: what the documents of an OCI archive say, and none of their layers' content.

use serde::Deserialize;
use std::collections::BTreeMap;

use super::Makeup;
use crate::model::image::{Image, ImageDigest, LayerDigest, SNAPSHOT_LABEL};

/// Bytes of a block of a tar archive.
const BLOCK: usize = 512;

/// An image in memory.
pub(super) struct FakeImage {
    pub(super) image: Image,
    pub(super) makeup: Makeup,
    /// Absolute paths of what is in it.
    pub(super) names: Vec<String>,
    /// The layers that its archive had.
    pub(super) brought: Vec<LayerDigest>,
}

#[derive(Deserialize)]
struct Named {
    digest: ImageDigest,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Named>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Named,
}

#[derive(Deserialize)]
struct Configuration {
    architecture: String,
    config: Settings,
    rootfs: Root,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Root {
    diff_ids: Vec<LayerDigest>,
}

impl FakeImage {
    /// One that a test gives it, of one layer with two names.
    pub(super) fn given(digest: ImageDigest) -> Self {
        Self {
            image: Image {
                digest,
                names: Vec::new(),
                size_bytes: 0,
                snapshot_of: None,
            },
            makeup: Makeup {
                layers: vec![digest],
                architecture: "amd64".to_owned(),
            },
            names: vec!["/etc".to_owned(), "/etc/motd".to_owned()],
            brought: vec![digest],
        }
    }
}

/// The image in an archive: the text of a digest alone, or OCI's documents.
pub(super) fn read(archive: &[u8]) -> Option<FakeImage> {
    if let Some(digest) = std::str::from_utf8(archive)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return Some(FakeImage::given(digest));
    }
    let entries = entries(archive);
    let blob = |digest: &ImageDigest| entries.get(&format!("blobs/sha256/{}", digest.hex()));
    let index: Index = serde_json::from_slice(entries.get("index.json")?).ok()?;
    let manifest: Manifest =
        serde_json::from_slice(blob(&index.manifests.first()?.digest)?).ok()?;
    let digest = manifest.config.digest;
    let Configuration {
        architecture,
        mut config,
        rootfs,
    } = serde_json::from_slice(blob(&digest)?).ok()?;
    let brought = rootfs.diff_ids.iter().filter(|layer| blob(layer).is_some());
    Some(FakeImage {
        brought: brought.copied().collect(),
        makeup: Makeup {
            layers: rootfs.diff_ids,
            architecture,
        },
        image: Image {
            digest,
            names: Vec::new(),
            size_bytes: 0,
            snapshot_of: config.labels.remove(SNAPSHOT_LABEL),
        },
        names: Vec::new(),
    })
}

/// Names and contents; of what was cut off as much as there is.
fn entries(mut archive: &[u8]) -> BTreeMap<String, &[u8]> {
    let mut entries = BTreeMap::new();
    while let Some((header, rest)) = archive.split_at_checked(BLOCK) {
        let text = |field: Option<&[u8]>| {
            let field = field.unwrap_or_default().split(|byte| *byte == 0).next();
            String::from_utf8_lossy(field.unwrap_or_default()).into_owned()
        };
        let name = text(header.get(..100));
        let size = usize::from_str_radix(text(header.get(124..136)).trim(), 8).unwrap_or(0);
        if name.is_empty() {
            break;
        }
        entries.insert(name, rest.get(..size.min(rest.len())).unwrap_or_default());
        archive = rest.get(size.next_multiple_of(BLOCK)..).unwrap_or_default();
    }
    entries
}
