//! Image archives made here, to be as odd as a test wants: OCI image layout in a tar
//! (OCI image specification, "Image Layout Specification").

use casemate::model::image::{ImageDigest, SNAPSHOT_LABEL};
use serde_json::{Value, json};

/// An image of one empty layer. `config` is what its maker says of how to run it, `annotations` what
/// the manifest carries. Returns the archive and the image's id.
pub fn image(config: &Value, annotations: &Value, name: Option<&str>) -> (Vec<u8>, ImageDigest) {
    // An empty tar archive: two empty blocks.
    let layer = vec![0; 1024];
    let document = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &document),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        "annotations": annotations,
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    if let Some(name) = name {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();

    let mut tar = Vec::new();
    file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    file(&mut tar, "index.json", index.as_bytes());
    for blob in [&layer, &document, &manifest] {
        file(&mut tar, &format!("blobs/sha256/{}", hex(blob)), blob);
    }
    tar.extend([0; 1024]);
    let id = format!("sha256:{}", hex(&document)).parse().unwrap();
    (tar, id)
}

/// An image of these layers, which are not in it, and one empty one, with the label of snapshots. Returns the archive and the
/// image's id.
pub fn on_top(below: &[ImageDigest], label: &str) -> (Vec<u8>, ImageDigest) {
    stacked(below, &[vec![0; 1024]], &json!({SNAPSHOT_LABEL: label}))
}

/// An image of layers that are not in it, and of layers that are, with these labels. Returns the archive and the image's id.
pub fn stacked(
    below: &[ImageDigest],
    on_top: &[Vec<u8>],
    labels: &Value,
) -> (Vec<u8>, ImageDigest) {
    let mut digests: Vec<String> = below.iter().map(ToString::to_string).collect();
    digests.extend(on_top.iter().map(|layer| format!("sha256:{}", hex(layer))));
    let document = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": digests},
    })
    .to_string()
    .into_bytes();
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let mut layers: Vec<Value> = below
        .iter()
        .map(|digest| json!({"mediaType": kind, "size": 0, "digest": digest}))
        .collect();
    layers.extend(on_top.iter().map(|layer| descriptor(kind, layer)));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &document),
        "layers": layers,
    })
    .to_string()
    .into_bytes();
    let entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut tar = Vec::new();
    file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    file(&mut tar, "index.json", index.as_bytes());
    for blob in [&document, &manifest].into_iter().chain(on_top) {
        file(&mut tar, &format!("blobs/sha256/{}", hex(blob)), blob);
    }
    tar.extend([0; 1024]);
    let id = format!("sha256:{}", hex(&document)).parse().unwrap();
    (tar, id)
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "size": blob.len(), "digest": format!("sha256:{}", hex(blob))})
}

fn hex(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    ImageDigest::from_bytes(digest.as_ref().try_into().unwrap()).hex()
}

/// Appends a file in the ustar format (POSIX.1-1988).
pub fn file(tar: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut header = [0_u8; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend(header);
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
