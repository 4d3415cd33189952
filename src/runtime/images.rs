//! What podman says of an image beyond its name, and its removal.

use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::libpod::{Call, CallError, Libpod, unreachable};
use super::{ArchiveStream, MAX_NAMES_BYTES, Makeup, RuntimeError};
use crate::model::image::{ImageDigest, LayerDigest};

/// How often podman is asked about images again when one of them went meanwhile, of which it then cannot tell.
pub(super) const LIST_TRIES: u32 = 4;

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
    let doing = "look at an image";
    let Inspected { architecture, root } = inspect(libpod, image, doing, deadline).await?;
    let is_plain = architecture.bytes().all(|b| b.is_ascii_alphanumeric());
    if architecture.len() > MAX_ARCHITECTURE_BYTES || !is_plain {
        return Err(RuntimeError::Failed {
            doing,
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
    let kept: Kept = inspect(libpod, image, doing, deadline).await?;
    let format = if kept.manifest_type.contains(".docker.") {
        "docker-archive"
    } else {
        "oci-archive"
    };
    let path = format!("/images/{}/get?format={format}", image.hex());
    let call = Call::new(Method::GET, path, doing, deadline);
    libpod
        .stream(call)
        .await
        .map_err(|error| missing(error, image))
}

/// What podman says of an image.
///
/// podman answers 404 to whatever goes wrong while it looks, also when another image went meanwhile of which it had read: only
/// when it names this one is it missing.
async fn inspect<T: DeserializeOwned>(
    libpod: &Libpod,
    image: ImageDigest,
    doing: &'static str,
    deadline: Duration,
) -> Result<T, RuntimeError> {
    let mut tries = 1;
    loop {
        let path = format!("/images/{}/json", image.hex());
        let call = Call::new(Method::GET, path, doing, deadline);
        let error = match libpod.json(call).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let is_of_another = error.is_not_found() && !error.is_of_missing_image(image);
        if !is_of_another || tries == LIST_TRIES {
            return Err(missing(error, image));
        }
        tracing::debug!(%image, %error, "podman stumbled over another image");
        tries += 1;
    }
}

fn missing(error: CallError, image: ImageDigest) -> RuntimeError {
    if error.is_of_missing_image(image) {
        RuntimeError::ImageMissing(image)
    } else {
        error.into()
    }
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
