//! Volumes on the wire.

use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::body;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::app::VolumeSeen;
use crate::base::clock::Timestamp;
use crate::base::id::{SessionId, VolumeId};
use crate::model::name::Name;
use crate::model::volume::{SessionVolume, VolumeMode};

/// What a new volume shall be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateVolume {
    /// A name that no other volume of the team has.
    name: Name,
    /// How large its file system is, itself included: whole MiB, 16 MiB at least. What is in it is never more.
    size_bytes: u64,
}

/// A volume that a session wants, or has.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SessionVolumeView {
    /// Which; it is at `/volumes/` and its name.
    name: Name,
    /// Whether it can be written, by this session alone then. `rw` when absent.
    #[serde(default)]
    mode: VolumeMode,
}

impl From<SessionVolumeView> for (Name, VolumeMode) {
    fn from(view: SessionVolumeView) -> Self {
        (view.name, view.mode)
    }
}

impl From<&SessionVolume> for SessionVolumeView {
    fn from(volume: &SessionVolume) -> Self {
        Self {
            name: volume.name.clone(),
            mode: volume.mode,
        }
    }
}

/// A volume.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct VolumeView {
    id: VolumeId,
    name: Name,
    size_bytes: u64,
    /// How much of the host's disk it takes: what was ever written to it.
    used_bytes: Option<u64>,
    created_at: Timestamp,
    created_by: String,
    /// The sessions that live and have it.
    attached: Vec<HolderView>,
}

/// A session that has a volume.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HolderView {
    session: SessionId,
    mode: VolumeMode,
}

/// The team's volumes, by name.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct VolumeList {
    items: Vec<VolumeView>,
}

impl From<VolumeSeen> for VolumeView {
    fn from(seen: VolumeSeen) -> Self {
        let holders = seen.holders.into_iter();
        Self {
            id: seen.volume.id,
            name: seen.volume.name,
            size_bytes: seen.volume.size_bytes,
            used_bytes: seen.used_bytes,
            created_at: seen.volume.created_at,
            created_by: seen.volume.created_by,
            attached: holders
                .map(|holder| HolderView {
                    session: holder.session,
                    mode: holder.mode,
                })
                .collect(),
        }
    }
}

pub(crate) async fn create(call: &Call) -> Result<Reply, Problem> {
    let wanted: CreateVolume = body::json(call)?;
    let made = call
        .app
        .create_volume(call.principal()?, wanted.name, wanted.size_bytes)
        .await?;
    let location = HeaderValue::from_str(&format!("/v1/volumes/{}", made.volume.name));
    let reply = Reply::json(StatusCode::CREATED, &VolumeView::from(made));
    Ok(match location {
        Ok(location) => reply.with(header::LOCATION, location),
        Err(_) => reply,
    })
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    let volumes = call.app.volumes(call.principal()?).await?;
    let items = volumes.into_iter().map(VolumeView::from).collect();
    Ok(Reply::json(StatusCode::OK, &VolumeList { items }))
}

pub(crate) async fn get(call: &Call) -> Result<Reply, Problem> {
    let volume = call.app.volume(call.principal()?, &name(call)?).await?;
    Ok(Reply::json(StatusCode::OK, &VolumeView::from(volume)))
}

pub(crate) async fn delete(call: &Call) -> Result<Reply, Problem> {
    call.app
        .remove_volume(call.principal()?, name(call)?)
        .await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// The volume that the path names. What cannot be a name names none.
fn name(call: &Call) -> Result<Name, Problem> {
    call.segment("name").map_err(|_| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "volume_not_found",
            "there is no such volume",
        )
    })
}
