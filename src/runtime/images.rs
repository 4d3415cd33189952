//! What podman says of an image beyond its name, and its removal.

use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;

use super::libpod::{Call, CallError, Libpod, unreachable};
use super::{ArchiveStream, MAX_NAMES_BYTES, Makeup, RuntimeError};
use crate::model::image::{ImageDigest, LayerDigest};

/// Longest name of an architecture, in bytes.
const MAX_ARCHITECTURE_BYTES: usize = 32;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    architecture: String,
    #[serde(rename = "RootFS")]
    root: Root,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Kept {
    manifest_type: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Root {
    layers: Vec<LayerDigest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Change {
    path: String,
    kind: u8,
}

/// podman's word for what is in the image and not in the other.
const ADDED: u8 = 1;

/// What an image is made of.
pub(super) async fn makeup(
    libpod: &Libpod,
    image: ImageDigest,
    deadline: Duration,
) -> Result<Makeup, RuntimeError> {
    let path = format!("/images/{}/json", image.hex());
    let call = Call::new(Method::GET, path, "look at an image", deadline);
    let Inspected { architecture, root } = libpod.json(call).await.map_err(|error| {
        if error.is_not_found() {
            RuntimeError::ImageMissing(image)
        } else {
            error.into()
        }
    })?;
    let is_plain = architecture.bytes().all(|b| b.is_ascii_alphanumeric());
    if architecture.len() > MAX_ARCHITECTURE_BYTES || !is_plain {
        return Err(RuntimeError::Failed {
            doing: "look at an image",
            message: "it says no architecture".into(),
        });
    }
    Ok(Makeup {
        layers: root.layers,
        architecture,
    })
}

/// An image as an archive of its own kind: in the other its configuration would be written anew, and it another image.
pub(super) async fn save(
    libpod: &Libpod,
    image: ImageDigest,
    deadline: Duration,
) -> Result<ArchiveStream, RuntimeError> {
    let doing = "save an image";
    let gone = |error: CallError| {
        if error.is_not_found() {
            RuntimeError::ImageMissing(image)
        } else {
            error.into()
        }
    };
    let hex = image.hex();
    let call = Call::new(Method::GET, format!("/images/{hex}/json"), doing, deadline);
    let kept: Kept = libpod.json(call).await.map_err(gone)?;
    let format = if kept.manifest_type.contains(".docker.") {
        "docker-archive"
    } else {
        "oci-archive"
    };
    let path = format!("/images/{hex}/get?format={format}");
    let call = Call::new(Method::GET, path, doing, deadline);
    libpod.stream(call).await.map_err(gone)
}

/// What is in an image and not in the other: podman mounts both and compares, without reading a file.
pub(super) async fn names(
    libpod: &Libpod,
    image: ImageDigest,
    beyond: ImageDigest,
    deadline: Duration,
) -> Result<Vec<String>, RuntimeError> {
    let doing = "list what is in an image";
    let (image, beyond) = (image.hex(), beyond.hex());
    let path = format!("/images/{image}/changes?parent={beyond}");
    let call = Call::new(Method::GET, path, doing, deadline);
    let answer = libpod.bytes(call, MAX_NAMES_BYTES).await?;
    // Go writes an empty list as `null` too.
    let changes: Option<Vec<Change>> =
        serde_json::from_slice(&answer).map_err(|error| unreachable(doing, error))?;
    let changes = changes.unwrap_or_default().into_iter();
    let added = changes.filter(|change| change.kind == ADDED);
    Ok(added.map(|change| change.path).collect())
}

/// Removes an image unless a container is made of it.
pub(super) async fn remove(
    libpod: &Libpod,
    image: ImageDigest,
    deadline: Duration,
) -> Result<bool, RuntimeError> {
    let path = format!("/images/{}?force=false", image.hex());
    let call = Call::new(Method::DELETE, path, "remove an image", deadline);
    match libpod.send(call).await {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(true),
        Err(CallError::Refused {
            status: StatusCode::CONFLICT,
            ..
        }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
