//! What a session uses, on the wire, and the ports in it.

use std::net::IpAddr;

use casemate_link::Usage;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::body;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::base::clock::Timestamp;

/// What a session uses.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct UsageView {
    now: UsageSample,
    /// The last half hour, oldest first, as far as this daemon has seen it.
    series: Vec<UsageSample>,
}

/// What a sandbox used at a time, as its own kernel counts.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct UsageSample {
    /// By the sandbox's clock.
    at: Timestamp,
    uptime_ms: u64,
    hostname: String,
    /// Processors that programs see.
    cpus: u32,
    /// Processor time of everything so far.
    cpu_ms: u64,
    memory_bytes: u64,
    memory_total_bytes: u64,
    /// Of which the guest itself.
    guest_bytes: u64,
    processes: u32,
    /// Bytes in the writable layer of the root file system.
    disk_bytes: u64,
}

/// The ports that programs in a session listen on.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PortPage {
    ports: Vec<PortView>,
}

/// A port that a program listens on.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PortView {
    port: u16,
    /// A loopback address, or the unspecified one.
    address: IpAddr,
    /// Who listens there.
    uid: u32,
}

pub(crate) async fn usage(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    body::query(call, &[])?;
    let usage = call.app.usage(call.principal()?, id).await?;
    let view = UsageView {
        now: usage.now.into(),
        series: usage.past.into_iter().map(UsageSample::from).collect(),
    };
    Ok(Reply::json(StatusCode::OK, &view))
}

pub(crate) async fn ports(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    body::query(call, &[])?;
    let open = call.app.ports(call.principal()?, id).await?;
    let ports = open.into_iter().map(|open| PortView {
        port: open.port,
        address: open.address,
        uid: open.uid,
    });
    let ports = ports.collect();
    Ok(Reply::json(StatusCode::OK, &PortPage { ports }))
}

impl From<Usage> for UsageSample {
    fn from(usage: Usage) -> Self {
        Self {
            at: Timestamp::claimed(i64::try_from(usage.at_ms).unwrap_or(i64::MAX)),
            uptime_ms: usage.uptime_ms,
            hostname: usage.hostname,
            cpus: usage.cpus,
            cpu_ms: usage.cpu_us / 1000,
            memory_bytes: usage.memory_bytes,
            memory_total_bytes: usage.memory_total_bytes,
            guest_bytes: usage.guest_bytes,
            processes: usage.processes,
            disk_bytes: usage.disk_bytes,
        }
    }
}
