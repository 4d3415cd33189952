//! Sandboxes by rootless podman, whose service was told to use gVisor.
//!
//! Typed reads (info, lists, images) are `podman-api`'s, each under a deadline; all else goes
//! through [`super::libpod`], because `podman-api` cannot say it, or says it wrong. An inspect is
//! among that: `podman-api` always asks for sizes, which makes podman walk all layers (170 ms
//! instead of 16), and what [`verify`] reads must not pass through types where everything
//! may be missing.
//!
//! A sandbox is podman's container; its id is the only state that a caller keeps. Nothing here
//! outlives a call: no task, no connection.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryFutureExt;
use http::Method;
use podman_api::opts::{ContainerListFilter, ContainerListOpts, ImageListOpts};
use podman_api::{ApiVersion, models};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};

use super::forgotten::{Forgotten, Stored};
use super::groups::{Bounds, Groups, Strain};
use super::libpod::{Call, CallError, Libpod, Payload, bounded, unreachable, within};
use super::mux::MuxDecoder;
use super::spec::{self, CreateRequest, Ground, INSTALLATION_LABEL, SESSION_LABEL};
use super::verify::verify;
use super::volumes::{self, ATTACH_SIGNAL};
use super::{
    ArchiveStream, Dialler, EXEC_OUTPUT_BYTES, ExecOutcome, Makeup, RuntimeConfig, RuntimeError,
    RuntimeFacts, SandboxRuntime, alive, checkpoints, images, probe,
};
use crate::base::chain::Chain;
use crate::base::id::InstallationId;
use crate::model::image::{Image, ImageDigest, SNAPSHOT_LABEL};
use crate::model::sandbox::{
    Checkpoint, Limits, SandboxId, SandboxPhase, SandboxSpec, SandboxState,
};

/// Most that is kept of what a sandbox's first process said.
const LAST_WORDS_BYTES: usize = 8 << 10;
/// Lines of it that podman is asked for.
const LAST_WORDS_LINES: u32 = 100;
/// Most bytes of podman's answer to that: its log is capped at 64 kB, and each line has a header.
const LOG_ANSWER_BYTES: usize = 1 << 20;
/// First pause before a removal is tried again; doubles up to [`REMOVE_PAUSE_MOST`].
const REMOVE_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two tries of a removal.
const REMOVE_PAUSE_MOST: Duration = Duration::from_millis(500);
/// How often podman looks whether a container that is waited for has ended. At its own 250 ms it
/// spends 0.07 % of a core on each, at a second a fifth of that; who must know sooner has the link.
const WAIT_INTERVAL: &str = "1s";

/// The exit code of a sandbox that ended without podman being told how.
const UNTOLD: i32 = -1;
/// What podman says, among other attempts, when a layer that it meant to take from another image went with that image.
const LAYER_WENT: &str = ": layer not known";

/// What our OCI runtime takes for an order to pause: podman's own pause wants a cgroup for each
/// sandbox, which gVisor's does not (`packaging/libexec/casemate-runsc`).
const PAUSE_SIGNAL: u8 = 63;
/// The same for going on.
const RESUME_SIGNAL: u8 = 64;

/// Rootless podman behind its API socket.
pub struct Podman {
    config: RuntimeConfig,
    libpod: Libpod,
    reads: podman_api::Podman,
    /// What the last look at the machine found; `None` before the first.
    groups: Mutex<Option<Groups>>,
    /// What podman has storage for and no record of.
    forgotten: Forgotten,
    /// One image at a time: podman names what it loaded by tags, which another load could move.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: SandboxId,
    /// Go writes an empty list as `null` too.
    warnings: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: SandboxId,
    state: InspectedState,
    config: InspectedConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    status: String,
    exit_code: i32,
    /// The sandbox's process; 0 when there is none.
    #[serde(default)]
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    labels: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Loaded {
    names: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ExecRequest<'a> {
    attach_stdout: bool,
    attach_stderr: bool,
    cmd: &'a [&'a str],
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ExecCreated {
    id: SandboxId,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ExecStart {
    detach: bool,
    tty: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ExecInspected {
    exit_code: i32,
}

impl Podman {
    /// Knows where podman is; asks it nothing yet.
    #[must_use]
    pub fn new(config: RuntimeConfig) -> Self {
        let version = ApiVersion::new(4, Some(0), Some(0));
        Self {
            libpod: Libpod::new(&config.socket),
            reads: podman_api::Podman::unix_versioned(&config.socket, version),
            config,
            groups: Mutex::new(None),
            forgotten: Forgotten::default(),
            loading: tokio::sync::Mutex::new(()),
        }
    }

    fn call(&self, method: Method, path: String, doing: &'static str) -> Call {
        Call::new(method, path, doing, self.config.call_deadline)
    }

    /// Sends a signal to a sandbox, or what our OCI runtime takes it for.
    async fn signal(
        &self,
        id: &SandboxId,
        signal: u8,
        doing: &'static str,
    ) -> Result<(), RuntimeError> {
        let path = format!("/containers/{id}/kill?signal={signal}");
        let call = self.slow_call(Method::POST, path, doing);
        self.libpod.send(call).await?;
        Ok(())
    }

    /// For what starts or ends processes.
    fn slow_call(&self, method: Method, path: String, doing: &'static str) -> Call {
        Call::new(method, path, doing, self.config.sandbox_deadline)
    }

    /// One of `podman-api`'s reads, under a deadline, with our errors.
    async fn read<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = podman_api::Result<T>>,
    ) -> Result<T, CallError> {
        let call = call.map_err(|error| match error {
            podman_api::Error::Fault { code, message } => CallError::Refused {
                doing,
                status: http::StatusCode::from_u16(code.as_u16())
                    .unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR),
                message: bounded(message),
            },
            other => unreachable(doing, other),
        });
        within(doing, Some(self.config.call_deadline), call).await
    }

    async fn info(&self) -> Result<models::Info, CallError> {
        self.read("look at the machine", self.reads.info()).await
    }

    /// The places of sandboxes' control groups: as the last probe found them, or as they are now.
    async fn groups(&self) -> Result<Groups, RuntimeError> {
        let known = self.known_groups();
        match known {
            Some(groups) => Ok(groups),
            None => Ok(self.note(probe::groups(&self.info().await?))),
        }
    }

    fn known_groups(&self) -> Option<Groups> {
        let known = self.groups.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, groups: Groups) -> Groups {
        *self.groups.lock().unwrap_or_else(PoisonError::into_inner) = Some(groups.clone());
        groups
    }

    /// podman's account of a container; `None` when there is none of that id or name.
    async fn inspect_value(&self, name: &str) -> Result<Option<Value>, CallError> {
        let path = format!("/containers/{name}/json");
        match self
            .libpod
            .json(self.call(Method::GET, path, "inspect a sandbox"))
            .await
        {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Asks for the container and nothing more.
    async fn post_create(&self, request: &CreateRequest) -> Result<Created, CallError> {
        let doing = "create a sandbox";
        let call = self.slow_call(Method::POST, "/containers/create".into(), doing);
        self.libpod
            .json(call.with(Payload::json(request, doing)?))
            .await
    }

    /// Why podman refused to create, in our terms; or that the way is free now.
    ///
    /// podman says most of this with status 500 and words that change; so the facts are looked up.
    async fn after_refusal(
        &self,
        spec: &SandboxSpec,
        refused: CallError,
    ) -> Result<(), RuntimeError> {
        if !matches!(refused, CallError::Refused { .. }) {
            return Err(refused.into());
        }
        let image = self.reads.images().get(spec.image.hex());
        if !self.read("look for an image", image.exists()).await? {
            return Err(RuntimeError::ImageMissing(spec.image));
        }
        let Some(inspect) = self.inspect_value(&spec::container_name(spec)).await? else {
            return Err(refused.into());
        };
        let leftover: Inspected = decode(inspect)?;
        let label = |name, value: String| {
            leftover.config.labels.as_ref().and_then(|l| l.get(name)) == Some(&value)
        };
        let ours = label(INSTALLATION_LABEL, spec.installation.to_string())
            && label(SESSION_LABEL, spec.session.to_string());
        if !ours {
            return Err(refused.into());
        }
        tracing::warn!(sandbox = %leftover.id, session = %spec.session, "removing a leftover of the session");
        self.remove(&leftover.id).await
    }

    /// Verifies what was made.
    async fn read_back(
        &self,
        created: &Created,
        spec: &SandboxSpec,
        ground: &Ground<'_>,
    ) -> Result<(), RuntimeError> {
        if let Some(warnings) = created.warnings.as_ref().filter(|w| !w.is_empty()) {
            return Err(RuntimeError::NotAsAsked {
                field: "warnings",
                found: bounded(warnings.join("; ")),
                wanted: "none".into(),
            });
        }
        let inspect = self
            .inspect_value(created.id.as_str())
            .await?
            .ok_or_else(|| RuntimeError::NotAsAsked {
                field: "Id",
                found: "absent".into(),
                wanted: created.id.to_string(),
            })?;
        verify(&inspect, spec, ground)
    }

    /// podman's record of a sandbox.
    async fn record(&self, id: &SandboxId) -> Result<Option<Inspected>, CallError> {
        let value = self.inspect_value(id.as_str()).await?;
        value.map(decode).transpose()
    }

    /// Waits until podman says that the sandbox has ended.
    async fn wait_told(&self, id: &SandboxId) -> Result<Option<i32>, RuntimeError> {
        let path = format!(
            "/containers/{id}/wait?condition=exited&condition=removing&interval={WAIT_INTERVAL}"
        );
        let call = self
            .call(Method::POST, path, "wait for a sandbox")
            .without_deadline();
        match self.libpod.json::<i32>(call).await {
            // podman's word for "gone before I could read it".
            Ok(code) if code < 0 => Ok(None),
            Ok(code) => Ok(Some(code)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => match self.inspect(id).await {
                // It was removed while we waited, which podman says in several ways.
                Ok(None) => Ok(None),
                _ => Err(e.into()),
            },
        }
    }

    /// Asks once that the container be ended and forgotten. Whether it is, is for the caller to see.
    async fn delete(&self, id: &SandboxId) -> Result<(), CallError> {
        let path = format!("/containers/{id}?force=true&timeout=0&v=true");
        match self
            .libpod
            .send(self.slow_call(Method::DELETE, path, "remove a sandbox"))
            .await
        {
            Err(e) if e.is_not_found() => Ok(()),
            result => result,
        }
    }

    async fn words(&self, id: &SandboxId) -> Result<String, CallError> {
        let doing = "read what a sandbox said";
        let path = format!("/containers/{id}/logs?stdout=true&stderr=true&tail={LAST_WORDS_LINES}");
        let answer = self
            .libpod
            .bytes(self.call(Method::GET, path, doing), LOG_ANSWER_BYTES)
            .await?;
        let mut words = Vec::new();
        let mut decoder = MuxDecoder::default();
        decoder
            .feed(&answer, |content| words.extend_from_slice(content))
            .and_then(|()| decoder.finish())
            .map_err(|e| unreachable(doing, e))?;
        let from = words.len().saturating_sub(LAST_WORDS_BYTES);
        Ok(String::from_utf8_lossy(words.get(from..).unwrap_or_default()).into_owned())
    }

    /// Starts the prepared program and reads what it writes until it ends.
    async fn run_exec(&self, exec: &SandboxId) -> Result<Vec<u8>, CallError> {
        let doing = "run a program in a sandbox";
        let call = self.slow_call(Method::POST, format!("/exec/{exec}/start"), doing);
        let start = ExecStart {
            detach: false,
            tty: false,
        };
        let mut io = self
            .libpod
            .hijack(call.with(Payload::json(&start, doing)?))
            .await?;
        let mut decoder = MuxDecoder::default();
        let mut output = Vec::new();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = io
                .read(&mut buffer)
                .await
                .map_err(|e| unreachable(doing, e))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            let keep = |content: &[u8]| {
                let room = EXEC_OUTPUT_BYTES.saturating_sub(output.len());
                output.extend_from_slice(content.get(..room).unwrap_or(content));
            };
            decoder
                .feed(bytes, keep)
                .map_err(|e| unreachable(doing, e))?;
        }
        decoder.finish().map_err(|e| unreachable(doing, e))?;
        Ok(output)
    }
}

#[async_trait]
impl SandboxRuntime for Podman {
    async fn probe(&self) -> Result<RuntimeFacts, RuntimeError> {
        let info = self.info().await?;
        let facts = probe::judge(&info, &self.config)?;
        probe::judge_guest(&info, &self.config.guest).await?;
        self.note(probe::groups(&info));
        Ok(facts)
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        let ground = Ground {
            runtime: &self.config.runtime,
            guest: &self.config.guest,
        };
        let request = CreateRequest::new(spec, &ground)?;
        let created = match self.post_create(&request).await {
            Ok(created) => created,
            Err(refused) => {
                self.after_refusal(spec, refused).await?;
                self.post_create(&request).await?
            }
        };
        match self.read_back(&created, spec, &ground).await {
            Ok(()) => Ok(created.id),
            Err(reason) => {
                // What is left when this fails too carries our labels, and `list` finds it.
                if let Err(error) = self.remove(&created.id).await {
                    let error = Chain(&error);
                    tracing::warn!(sandbox = %created.id, %error, "could not remove what is not as asked");
                }
                Err(reason)
            }
        }
    }

    async fn start(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let doing = "start a sandbox";
        let refuse = |message: &str| {
            Err(RuntimeError::Failed {
                doing,
                message: message.into(),
            })
        };
        // podman would run an ended container's first process again, on what the first run left.
        match self.inspect(id).await?.map(|state| state.phase) {
            None => return refuse("there is no such sandbox"),
            Some(SandboxPhase::Exited) => return refuse("it has ended"),
            Some(SandboxPhase::Running) => return Ok(()),
            Some(SandboxPhase::Created | SandboxPhase::Other) => {}
        }
        let call = self.slow_call(Method::POST, format!("/containers/{id}/start"), doing);
        match self.libpod.send(call).await {
            Err(CallError::Refused { doing, message, .. }) => {
                let words = self.last_words(id).await;
                let message = bounded(format!("{message}; it said: {words:?}"));
                Err(RuntimeError::Failed { doing, message })
            }
            result => Ok(result?),
        }
    }

    async fn pause(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.signal(id, PAUSE_SIGNAL, "pause a sandbox").await
    }

    async fn resume(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.signal(id, RESUME_SIGNAL, "resume a sandbox").await
    }

    async fn attach(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let path = format!("/containers/{id}/kill?signal={ATTACH_SIGNAL}");
        let call = self.slow_call(Method::POST, path, "attach volumes");
        self.libpod.send(call).await.map_err(volumes::explain)
    }

    async fn checkpoint(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let doing = "take a checkpoint of a sandbox";
        self.signal(id, checkpoints::CHECKPOINT_SIGNAL, doing).await
    }

    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, RuntimeError> {
        Ok(checkpoints::read(probe::runtime_version(
            &self.info().await?,
        )))
    }

    async fn inspect(&self, id: &SandboxId) -> Result<Option<SandboxState>, RuntimeError> {
        let Some(Inspected { id, state, config }) = self.record(id).await? else {
            return Ok(None);
        };
        Ok(Some(sandbox_state(
            id,
            &state.status,
            Some(state.exit_code),
            state.pid,
            config.labels.as_ref(),
        )))
    }

    async fn wait(&self, id: &SandboxId) -> Result<Option<i32>, RuntimeError> {
        let gone = async {
            match self.record(id).await {
                Ok(Some(Inspected { state, .. })) if state.pid > 0 => {
                    alive::gone_untold(state.pid, id).await;
                }
                // Then only podman can tell.
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            told = self.wait_told(id) => told,
            () = gone => Ok(Some(UNTOLD)),
        }
    }

    async fn remove(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + self.config.sandbox_deadline;
        let mut pause = REMOVE_PAUSE;
        loop {
            // podman refuses with 500 when the container ends at this very moment, or while its own
            // clean-up still holds it; either passes.
            let refused = match self.delete(id).await {
                Ok(()) => None,
                Err(e @ CallError::Unreachable { .. }) => return Err(e.into()),
                Err(refused) => Some(refused),
            };
            if self.inspect_value(id.as_str()).await?.is_none() {
                return Ok(());
            }
            if Instant::now() + pause > deadline {
                return Err(refused.map_or_else(
                    || RuntimeError::Failed {
                        doing: "remove a sandbox",
                        message: "it is still there".into(),
                    },
                    RuntimeError::from,
                ));
            }
            sleep(pause).await;
            pause = (pause * 2).min(REMOVE_PAUSE_MOST);
        }
    }

    /// podman asks our OCI runtime for its version whenever it is asked what it stands on, and that is when the runtime
    /// looks for what podman has forgotten (`packaging/libexec/casemate-runsc`): nobody else may touch it.
    async fn tidy(&self) -> Result<(), RuntimeError> {
        self.info().await?;
        let path = "/containers/json?all=true&external=true".to_owned();
        let call = self.call(Method::GET, path, "look for what podman has forgotten");
        let stored: Option<Vec<Stored>> = self.libpod.json(call).await?;
        let forgotten = stored.into_iter().flatten().filter(Stored::is_forgotten);
        let forgotten = forgotten.map(|stored| stored.id).collect();
        for id in self.forgotten.due(forgotten, self.config.sandbox_deadline) {
            tracing::warn!(sandbox = %id, "removing storage of a sandbox that podman has no record of");
            self.remove(&id).await?;
        }
        Ok(())
    }

    async fn list(&self, installation: InstallationId) -> Result<Vec<SandboxState>, RuntimeError> {
        let filter =
            ContainerListFilter::LabelKeyVal(INSTALLATION_LABEL.into(), installation.to_string());
        let opts = ContainerListOpts::builder()
            .all(true)
            .filter([filter])
            .build();
        let containers = self.reads.containers();
        let found = self.read("list sandboxes", containers.list(&opts)).await?;
        found
            .into_iter()
            .map(|container| {
                let id = container.id.unwrap_or_default();
                let id = SandboxId::try_from(id).map_err(|e| unreachable("list sandboxes", e))?;
                let status = container.state.unwrap_or_default();
                Ok(sandbox_state(
                    id,
                    &status,
                    container.exit_code,
                    container.pid.unwrap_or_default(),
                    container.labels.as_ref(),
                ))
            })
            .collect()
    }

    async fn exec(&self, id: &SandboxId, argv: &[&str]) -> Result<ExecOutcome, RuntimeError> {
        let doing = "run a program in a sandbox";
        let request = ExecRequest {
            attach_stdout: true,
            attach_stderr: true,
            cmd: argv,
        };
        let call = self.call(Method::POST, format!("/containers/{id}/exec"), doing);
        let exec: ExecCreated = self
            .libpod
            .json(call.with(Payload::json(&request, doing)?))
            .await?;
        let deadline = Some(self.config.sandbox_deadline);
        let output = within(doing, deadline, self.run_exec(&exec.id)).await?;
        let call = self.call(Method::GET, format!("/exec/{}/json", exec.id), doing);
        let ExecInspected { exit_code } = self.libpod.json(call).await?;
        Ok(ExecOutcome { exit_code, output })
    }

    async fn vouch(
        &self,
        id: &SandboxId,
        dialler: &Dialler,
        limits: &Limits,
    ) -> Result<(), RuntimeError> {
        let gofer = super::vouch::check(id, dialler)?;
        let groups = self.groups().await?;
        groups.check(id, gofer, &Bounds::of(limits))
    }

    fn strain(&self, id: &SandboxId) -> Strain {
        let groups = self.known_groups().unwrap_or_default();
        groups.strain(id)
    }

    /// From podman's own log of the container, which is rewritten from its start at 64 kB.
    ///
    /// Not from an attached stream: that would need a connection and a task for each sandbox, would
    /// let a talkative guest keep the daemon busy, and would have heard nothing of a sandbox that
    /// ended while the daemon was down.
    async fn last_words(&self, id: &SandboxId) -> String {
        self.words(id).await.unwrap_or_else(|error| {
            tracing::debug!(sandbox = %id, error = %Chain(&error), "no last words");
            String::new()
        })
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        let opts = ImageListOpts::builder().all(true).build();
        let images = self.reads.images();
        let mut tries = 1;
        let found = loop {
            match self.read("list images", images.list(&opts)).await {
                Err(error) if error.is_of_gone_image() && tries < images::LIST_TRIES => tries += 1,
                found => break found?,
            }
        };
        Ok(found
            .into_iter()
            .filter_map(|image| {
                Some(Image {
                    digest: image_digest(image.id.as_deref()?)?,
                    names: image.names.unwrap_or_default(),
                    size_bytes: image
                        .size
                        .and_then(|size| size.try_into().ok())
                        .unwrap_or(0),
                    snapshot_of: image
                        .labels
                        .and_then(|mut labels| labels.remove(SNAPSHOT_LABEL)),
                })
            })
            .collect())
    }

    async fn load_image(&self, archive: ArchiveStream) -> Result<ImageDigest, RuntimeError> {
        let doing = "load an image";
        let _alone = self.loading.lock().await;
        let call = Call::new(
            Method::POST,
            "/images/load".into(),
            doing,
            self.config.load_deadline,
        );
        let loaded: Loaded = match self.libpod.json(call.with(Payload::Archive(archive))).await {
            Err(CallError::Refused { message, .. }) if message.contains(LAYER_WENT) => {
                return Err(RuntimeError::LayerWent);
            }
            Err(CallError::Refused { message, .. }) => {
                // Below the first line are podman's attempts, with paths of the host's.
                let reason = message
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .trim_end_matches(':');
                return Err(RuntimeError::BadArchive(reason.to_owned()));
            }
            result => result?,
        };
        let mut digest = None;
        for name in loaded.names.unwrap_or_default() {
            let found = self.image_named(&name).await?;
            if *digest.get_or_insert(found) != found {
                return Err(RuntimeError::BadArchive(
                    "it holds more than one image".into(),
                ));
            }
        }
        digest.ok_or_else(|| RuntimeError::BadArchive("it holds no image".into()))
    }

    async fn save_image(&self, image: ImageDigest) -> Result<ArchiveStream, RuntimeError> {
        images::save(&self.libpod, image, self.config.load_deadline).await
    }

    async fn makeup(&self, image: ImageDigest) -> Result<Makeup, RuntimeError> {
        images::makeup(&self.libpod, image, self.config.call_deadline).await
    }

    async fn names(
        &self,
        image: ImageDigest,
        beyond: ImageDigest,
    ) -> Result<Vec<String>, RuntimeError> {
        images::names(&self.libpod, image, beyond, self.config.sandbox_deadline).await
    }

    async fn remove_image(&self, image: ImageDigest) -> Result<bool, RuntimeError> {
        images::remove(&self.libpod, image, self.config.sandbox_deadline).await
    }
}

impl Podman {
    /// The image of that name, as podman writes it in its answer to a load.
    async fn image_named(&self, name: &str) -> Result<ImageDigest, RuntimeError> {
        let doing = "look for an image";
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b);
        if !name.bytes().all(plain) {
            return Err(RuntimeError::BadArchive(
                "it holds an image with an unreadable name".into(),
            ));
        }
        let image = self.reads.images().get(name);
        let found = self.read(doing, image.inspect()).await?;
        found
            .id
            .as_deref()
            .and_then(image_digest)
            .ok_or_else(|| RuntimeError::BadArchive("it holds an image without an id".into()))
    }
}

fn image_digest(id: &str) -> Option<ImageDigest> {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    format!("sha256:{hex}").parse().ok()
}

fn sandbox_state(
    id: SandboxId,
    status: &str,
    exit_code: Option<i32>,
    pid: i64,
    labels: Option<&HashMap<String, String>>,
) -> SandboxState {
    // libpod's names of its states, and those it writes for people.
    let phase = match status {
        "created" | "configured" => SandboxPhase::Created,
        "running" if alive::runs(pid, &id) => SandboxPhase::Running,
        // Of the first podman was not told that it has ended.
        "running" | "exited" | "stopped" => SandboxPhase::Exited,
        _ => SandboxPhase::Other,
    };
    SandboxState {
        id,
        session: labels
            .and_then(|l| l.get(SESSION_LABEL))
            .and_then(|session| session.parse().ok()),
        phase,
        exit_code: exit_code.filter(|_| phase == SandboxPhase::Exited && status != "running"),
    }
}

fn decode<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, CallError> {
    serde_json::from_value(value).map_err(|e| unreachable("inspect a sandbox", e))
}
