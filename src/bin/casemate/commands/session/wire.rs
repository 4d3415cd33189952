//! Sessions as the HTTP API writes them, and the two calls that more than one command makes.
//!
//! Words that only people read are taken as text, so that a newer daemon's new words are shown
//! instead of refused.

use std::collections::BTreeMap;
use std::time::Duration;

use ::http::{Method, StatusCode};
use casemate::base::exit::Exit;
use casemate::base::id::SessionId;
use casemate::model::name::Name;
use casemate::model::session::Phase;
use casemate::model::volume::VolumeMode;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::http::{Answer, Call, Client};

/// Longer than the daemon waits for a session to come up (120 s).
const CREATE_DEADLINE: Duration = Duration::from_secs(150);

/// Longer than the daemon waits for a session to wake (60 s).
pub const CHANGE_DEADLINE: Duration = Duration::from_secs(75);

/// Longer than the daemon waits for a session to end (30 s).
const STOP_DEADLINE: Duration = Duration::from_secs(45);

/// The body that asks for a session; what is absent is the daemon's to choose.
#[derive(Default, Serialize)]
pub struct NewSession {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeOfSession>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
}

/// A volume that a session wants, or has.
#[derive(Clone, Serialize, Deserialize)]
pub struct VolumeOfSession {
    pub name: Name,
    pub mode: VolumeMode,
}

/// What a sandbox may use.
#[derive(Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes_started: Option<u64>,
}

impl Limits {
    /// These, unless none of them is asked for.
    pub fn wanted(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// A session, as far as people are shown.
#[derive(Deserialize)]
pub struct SessionView {
    pub id: SessionId,
    pub name: Option<String>,
    pub phase: String,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub template: String,
    pub template_version: Option<u32>,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub limits: Limits,
    #[serde(default)]
    pub volumes: Vec<VolumeOfSession>,
    pub created_at: String,
    pub ready_at: Option<String>,
    pub ends_at: String,
    #[serde(default)]
    pub paused_at: Option<String>,
    #[serde(default)]
    pub idle_timeout_s: Option<u64>,
    #[serde(default)]
    pub on_timeout: Option<String>,
    pub ended_at: Option<String>,
}

/// A page of a list.
#[derive(Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
}

/// Makes a session; the answer is the session.
pub async fn create(client: &Client, new: &NewSession) -> Result<Answer, Failure> {
    let body = serde_json::to_vec(new)
        .map_err(|error| Failure::new(Exit::Software, format!("cannot write JSON: {error}")))?;
    let call = Call::new(Method::POST, "/v1/sessions")
        .json(body)
        .within(CREATE_DEADLINE);
    client.call(call).await
}

/// Ends a session; `stopping` when that takes longer than the daemon waits.
pub async fn stop(client: &Client, id: SessionId) -> Result<Phase, Failure> {
    let call = Call::new(Method::DELETE, format!("/v1/sessions/{id}")).within(STOP_DEADLINE);
    let answer = client.call(call).await?;
    Ok(match answer.status {
        StatusCode::ACCEPTED => Phase::Stopping,
        _ => Phase::Stopped,
    })
}
