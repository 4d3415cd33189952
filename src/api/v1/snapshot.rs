//! Snapshots on the wire.

use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::templates::{precondition, tag_of};
use crate::api::body;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::app::{Kept, Snapshot};
use crate::model::image::ImageDigest;
use crate::model::name::Name;

/// What is to become of the snapshot.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotSession {
    /// The template of the key's team that gets a new version; made if there is none.
    template: Name,
}

/// A snapshot that was made.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SnapshotView {
    /// The template.
    template: Name,
    /// Its version that sessions are made of from now on.
    template_version: u32,
    /// The image that the version names.
    image: ImageDigest,
    /// Files, directories and links that the session changed, and what it removed. Directories are counted, changed or not.
    entries: u64,
    /// Bytes that the snapshot has on top of the session's own image.
    bytes: u64,
}

pub(crate) async fn make(call: &Call) -> Result<Reply, Problem> {
    let SnapshotSession { template } = body::json(call)?;
    let precondition = precondition(call)?;
    let (principal, id) = (call.principal()?, call.segment("id")?);
    let made = call
        .app
        .snapshot_session(principal, id, template, precondition)
        .await?;
    let Snapshot {
        template,
        kept,
        entries,
        bytes,
    } = made;
    let status = match kept {
        Kept::New => StatusCode::CREATED,
        Kept::Known => StatusCode::OK,
    };
    let tag = tag_of(&template)?;
    let view = SnapshotView {
        template: template.name,
        template_version: template.version,
        image: template.spec.image,
        entries,
        bytes,
    };
    Ok(Reply::json(status, &view).with(header::ETAG, tag.value()))
}
