//! A layer on top of others, as the archive of an image: an OCI image layout (OCI image specification 1.0) in a tar stream.
//!
//! Of the layers below nothing is in it but their digests: podman has them. The image's configuration holds only what podman
//! needs; how programs start is the session's own. Documents come before the layer, and nothing depends on the time, so that
//! the same content is the same image.

use serde_json::{Value, json};
use tar::Header;

use super::layer::{padding, seal};
use crate::base::id::InstallationId;
use crate::identity;
use crate::model::image::{ImageDigest, LayerDigest, SNAPSHOT_LABEL};
use crate::runtime::Makeup;

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// podman does not look at the size of a layer that it has.
const UNKNOWN_SIZE: u64 = 0;

/// An archive around the bytes of a layer.
pub struct Archive {
    /// What the image will be called.
    pub image: ImageDigest,
    /// What comes before the layer.
    pub head: Vec<u8>,
    /// What comes after it.
    pub tail: Vec<u8>,
}

/// The archive of an image of these layers and one more.
pub fn archive(
    below: &Makeup,
    layer: LayerDigest,
    layer_bytes: u64,
    installation: InstallationId,
) -> Archive {
    let mut layers = below.layers.clone();
    layers.push(layer);
    let config = json!({
        "architecture": below.architecture,
        "os": "linux",
        "config": {"Labels": {SNAPSHOT_LABEL: installation.to_string()}},
        "rootfs": {"type": "layers", "diff_ids": layers},
        "history": [],
    })
    .to_string();
    let image = digest(config.as_bytes());
    let mut descriptors: Vec<Value> = below
        .layers
        .iter()
        .map(|digest| described(LAYER_TYPE, *digest, UNKNOWN_SIZE))
        .collect();
    descriptors.push(described(LAYER_TYPE, layer, layer_bytes));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described(CONFIG_TYPE, image, length(&config)),
        "layers": descriptors,
    })
    .to_string();
    let manifest_digest = digest(manifest.as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [described(MANIFEST_TYPE, manifest_digest, length(&manifest))],
    })
    .to_string();
    let mut head = Vec::new();
    for (name, document) in [
        (
            "oci-layout".to_owned(),
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        ),
        ("index.json".to_owned(), index),
        (blob(manifest_digest), manifest),
        (blob(image), config),
    ] {
        entry(&name, length(&document), &mut head);
        head.extend_from_slice(document.as_bytes());
        head.resize(head.len() + padding(document.len()), 0);
    }
    entry(&blob(layer), layer_bytes, &mut head);
    // A layer is whole blocks.
    Archive {
        image,
        head,
        tail: vec![0; 1024],
    }
}

/// The digest of these bytes, as images are named.
pub fn digest(bytes: &[u8]) -> ImageDigest {
    ImageDigest::from_bytes(identity::digest(bytes))
}

fn described(kind: &str, digest: ImageDigest, size: u64) -> Value {
    json!({"mediaType": kind, "digest": digest, "size": size})
}

fn blob(digest: ImageDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn length(document: &str) -> u64 {
    u64::try_from(document.len()).unwrap_or(u64::MAX)
}

fn entry(name: &str, size: u64, out: &mut Vec<u8>) {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    seal(header, name.as_bytes(), b"", out);
}
