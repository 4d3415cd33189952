//! Images as the fake runtime has them: what the documents of an OCI archive say, and none of their layers' content.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

use super::{ArchiveStream, Makeup};
use crate::model::image::{Image, ImageDigest, LayerDigest, SNAPSHOT_LABEL};

/// Bytes of a block of a tar archive.
const BLOCK: usize = 512;

/// Most zeros in one piece of an archive.
const PIECE: usize = 64 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

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

/// An OCI archive with the documents of an image, empty layers, and as many zeros as it has bytes, as [`read`] takes it. Its
/// digests are names only.
pub(super) fn archive(of: &FakeImage) -> ArchiveStream {
    let label = of.image.snapshot_of.iter();
    let labels: BTreeMap<_, _> = label.map(|label| (SNAPSHOT_LABEL, label)).collect();
    let manifest = ImageDigest::from_bytes([0xfa; 32]);
    let blob = |digest: &ImageDigest| format!("blobs/sha256/{}", digest.hex());
    let named = |digest: &ImageDigest| json!({"digest": digest});
    let documents = [
        (
            "index.json".to_owned(),
            json!({"manifests": [named(&manifest)]}),
        ),
        (blob(&manifest), json!({"config": named(&of.image.digest)})),
        (
            blob(&of.image.digest),
            json!({
                "architecture": of.makeup.architecture,
                "config": {"Labels": labels},
                "rootfs": {"diff_ids": of.makeup.layers},
            }),
        ),
    ];
    let mut pieces = Vec::new();
    for (name, document) in documents {
        let mut bytes = document.to_string().into_bytes();
        pieces.push(header(&name, bytes.len()));
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        pieces.push(bytes.into());
    }
    // A given image's only layer is called as it is.
    let layers = of
        .makeup
        .layers
        .iter()
        .filter(|layer| **layer != of.image.digest);
    pieces.extend(layers.map(|layer| header(&blob(layer), 0)));
    let size = usize::try_from(of.image.size_bytes).unwrap_or(0);
    pieces.push(header("zeros", size));
    let mut left = size.next_multiple_of(BLOCK);
    while left > 0 {
        let some = left.min(PIECE);
        pieces.push(Bytes::from_static(&ZEROS).slice(..some));
        left -= some;
    }
    pieces.push(Bytes::from_static(&ZEROS).slice(..2 * BLOCK));
    stream::iter(pieces.into_iter().map(Ok)).boxed()
}

/// A file's header in the ustar format (POSIX.1-1988).
fn header(name: &str, size: usize) -> Bytes {
    let mut header = vec![0; BLOCK];
    let mut put = |at: usize, text: &str| {
        if let Some(field) = header.get_mut(at..at + text.len()) {
            field.copy_from_slice(text.as_bytes());
        }
    };
    put(0, name);
    put(100, "0000644");
    put(124, &format!("{size:011o}"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    if let Some(field) = header.get_mut(148..155) {
        field.copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    header.into()
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
