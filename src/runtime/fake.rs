//! A runtime in memory, for tests of what stands on the runtime. It passes the same contract suite
//! as the real one (`tests/runtime/contract.rs`), so it cannot drift, and fails when told to.
//!
//! It runs nothing by itself. A test that needs a guest behind the link gives a [`StartHook`] that
//! starts one on the host, dialling the sandbox's link directory.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::Notify;

use super::fake_image::FakeImage;
use super::groups::Strain;
use super::spec::{GUEST_PATH, capabilities, guest_arguments};
use super::{
    ArchiveStream, Dialler, EXEC_OUTPUT_BYTES, ExecOutcome, Makeup, RuntimeError, RuntimeFacts,
    SandboxRuntime, fake_image,
};
use crate::base::id::InstallationId;
use crate::model::image::{Image, ImageDigest};
use crate::model::sandbox::{
    Checkpoint, Limits, SandboxId, SandboxPhase, SandboxSpec, SandboxState, Warmth,
};

/// What is kept of a running sandbox's first process; dropped when the sandbox ends.
pub type Running = Box<dyn Any + Send>;

/// Called when a sandbox starts. What it returns is kept until the sandbox ends.
pub type StartHook = Box<dyn Fn(&SandboxSpec) -> Running + Send + Sync>;

/// The kinds of calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FakeCall {
    /// [`SandboxRuntime::probe`].
    Probe,
    /// [`SandboxRuntime::create`].
    Create,
    /// [`SandboxRuntime::start`].
    Start,
    /// [`SandboxRuntime::pause`].
    Pause,
    /// [`SandboxRuntime::resume`].
    Resume,
    /// [`SandboxRuntime::attach`].
    Attach,
    /// [`SandboxRuntime::checkpoint`].
    Checkpoint,
    /// [`SandboxRuntime::checkpoints`].
    Checkpoints,
    /// [`SandboxRuntime::inspect`].
    Inspect,
    /// [`SandboxRuntime::wait`].
    Wait,
    /// [`SandboxRuntime::remove`].
    Remove,
    /// [`SandboxRuntime::tidy`].
    Tidy,
    /// [`SandboxRuntime::list`].
    List,
    /// [`SandboxRuntime::exec`].
    Exec,
    /// [`SandboxRuntime::images`].
    Images,
    /// [`SandboxRuntime::load_image`].
    LoadImage,
    /// [`SandboxRuntime::save_image`]; when its answer is lost, the archive breaks off.
    SaveImage,
    /// [`SandboxRuntime::makeup`].
    Makeup,
    /// [`SandboxRuntime::names`].
    Names,
    /// [`SandboxRuntime::remove_image`].
    RemoveImage,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeFailure {
    /// Nobody answers, and nothing has happened.
    Unavailable,
    /// It has happened, and the answer is lost.
    AnswerLost,
    /// The runtime refuses.
    Refused,
    /// A layer went with another image. For [`FakeCall::LoadImage`].
    LayerWent,
    /// What was made is not what was asked for; it is removed. For [`FakeCall::Create`].
    NotAsAsked,
    /// It is silent for [`SILENCE`], then gives up as every call does at its deadline. Nothing has
    /// happened.
    Hangs,
    /// It happens only after [`SILENCE`], and also when nobody waits any more: podman finishes what
    /// it was asked for. For [`FakeCall::Create`].
    Late,
}

/// The deadline of a call that hangs: long for a test, short for a person.
pub const SILENCE: Duration = Duration::from_millis(400);

/// Most that is looked at of an archive.
const KEPT_OF_ARCHIVE: usize = 1 << 20;

/// A sandbox runtime in memory.
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    /// Told whenever a sandbox ends or is gone.
    ended: Notify,
    hook: Option<StartHook>,
}

#[derive(Default)]
struct State {
    unenforced_limits: Vec<&'static str>,
    volumes_problem: Option<String>,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    images: Vec<FakeImage>,
    /// The files that checkpoints are kept with.
    checkpoints: Vec<PathBuf>,
    /// Calls made so far, by kind.
    calls: HashMap<FakeCall, u64>,
    /// Failures to come: the call's kind and number.
    failures: HashMap<(FakeCall, u64), FakeFailure>,
    created: u64,
}

struct Sandbox {
    spec: SandboxSpec,
    phase: SandboxPhase,
    exit_code: Option<i32>,
    paused: bool,
    words: String,
    strain: Strain,
    running: Option<Running>,
    /// Locks of what would serve its volumes.
    served: Vec<File>,
}

impl Sandbox {
    fn end(&mut self, exit_code: i32) {
        self.phase = SandboxPhase::Exited;
        self.exit_code = Some(exit_code);
        self.running = None;
        self.served.clear();
    }

    fn state(&self, id: &SandboxId) -> SandboxState {
        SandboxState {
            id: id.clone(),
            session: Some(self.spec.session),
            phase: self.phase,
            exit_code: self.exit_code,
        }
    }
}

impl State {
    /// Makes a sandbox. One session has one; a leftover goes.
    fn make(&mut self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        if !self
            .images
            .iter()
            .any(|known| known.image.digest == spec.image)
        {
            return Err(RuntimeError::ImageMissing(spec.image));
        }
        self.sandboxes
            .retain(|_, sandbox| sandbox.spec.session != spec.session);
        self.created += 1;
        let id = SandboxId::try_from(format!("{:064x}", self.created))
            .map_err(|error| refused(&error.to_string()))?;
        let sandbox = Sandbox {
            spec: spec.clone(),
            phase: SandboxPhase::Created,
            exit_code: None,
            paused: false,
            words: String::new(),
            strain: Strain::default(),
            running: None,
            served: Vec::new(),
        };
        self.sandboxes.insert(id.clone(), sandbox);
        Ok(id)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to do with a call.
enum Verdict {
    Go,
    GoLate,
    GoAndLoseAnswer,
    NotAsAsked,
}

impl FakeRuntime {
    /// A runtime that has these images.
    #[must_use]
    pub fn new(images: impl IntoIterator<Item = ImageDigest>) -> Self {
        let images = images.into_iter().map(FakeImage::given).collect();
        Self {
            state: Arc::new(Mutex::new(State {
                images,
                ..State::default()
            })),
            ended: Notify::new(),
            hook: None,
        }
    }

    /// Calls `hook` whenever a sandbox starts.
    #[must_use]
    pub fn with_start_hook(mut self, hook: StartHook) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Makes the `nth` coming call of a kind fail; 1 is the next.
    pub fn fail(&self, call: FakeCall, nth: u64, failure: FakeFailure) {
        let mut state = self.state();
        let number = state.calls.get(&call).copied().unwrap_or(0) + nth;
        state.failures.insert((call, number), failure);
    }

    /// From now on the machine does not enforce these limits.
    pub fn unenforce(&self, limits: &[&'static str]) {
        self.state().unenforced_limits = limits.to_vec();
    }

    /// From now on the machine cannot mount volumes.
    pub fn refuse_volumes(&self, problem: &str) {
        self.state().volumes_problem = Some(problem.to_owned());
    }

    /// Ends a running sandbox as if its first process had exited.
    pub fn die(&self, id: &SandboxId, exit_code: i32) {
        if let Some(sandbox) = self.state().sandboxes.get_mut(id) {
            sandbox.end(exit_code);
        }
        self.ended.notify_waiters();
    }

    /// Takes a sandbox away as if somebody else had removed it.
    pub fn vanish(&self, id: &SandboxId) {
        self.state().sandboxes.remove(id);
        self.ended.notify_waiters();
    }

    /// Adds to what a sandbox's first process has said.
    pub fn say(&self, id: &SandboxId, words: &str) {
        if let Some(sandbox) = self.state().sandboxes.get_mut(id) {
            sandbox.words.push_str(words);
        }
    }

    /// Says what the kernel did to keep a sandbox within its limits.
    pub fn strain_of(&self, id: &SandboxId, strain: Strain) {
        if let Some(sandbox) = self.state().sandboxes.get_mut(id) {
            sandbox.strain = strain;
        }
    }

    /// Ends what serves a sandbox's volumes.
    pub fn lose_volumes(&self, id: &SandboxId) {
        if let Some(sandbox) = self.state().sandboxes.get_mut(id) {
            sandbox.served.clear();
        }
    }

    /// How often a kind of call was made.
    #[must_use]
    pub fn calls(&self, call: FakeCall) -> u64 {
        self.state().calls.get(&call).copied().unwrap_or(0)
    }

    /// How many sandboxes were ever made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.state().created
    }

    /// How many sandboxes there are, of all installations.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state().sandboxes.len()
    }

    /// Whether a sandbox stands still.
    #[must_use]
    pub fn is_paused(&self, id: &SandboxId) -> bool {
        self.state().sandboxes.get(id).is_some_and(|s| s.paused)
    }

    /// Gives it an image as if it had been made before.
    pub fn put_image(&self, image: Image) {
        let mut state = self.state();
        state
            .images
            .retain(|known| known.image.digest != image.digest);
        let mut given = FakeImage::given(image.digest);
        given.image = image;
        state.images.push(given);
    }

    fn stand_still(&self, id: &SandboxId, paused: bool) -> Result<(), RuntimeError> {
        let mut state = self.state();
        let sandbox = state.sandboxes.get_mut(id);
        let sandbox = sandbox.filter(|sandbox| sandbox.phase == SandboxPhase::Running);
        sandbox.ok_or_else(|| refused("it does not run"))?.paused = paused;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Counts the call and fails it, if it is its turn.
    async fn enter(&self, call: FakeCall) -> Result<Verdict, RuntimeError> {
        let failure = {
            let mut state = self.state();
            let calls = state.calls.entry(call).or_default();
            *calls += 1;
            let number = *calls;
            state.failures.remove(&(call, number))
        };
        match failure {
            None => Ok(Verdict::Go),
            Some(FakeFailure::AnswerLost) => Ok(Verdict::GoAndLoseAnswer),
            Some(FakeFailure::NotAsAsked) => Ok(Verdict::NotAsAsked),
            Some(FakeFailure::Unavailable) => Err(unavailable()),
            Some(FakeFailure::LayerWent) => Err(RuntimeError::LayerWent),
            Some(FakeFailure::Refused) => Err(refused("it was told to")),
            Some(FakeFailure::Late) => Ok(Verdict::GoLate),
            Some(FakeFailure::Hangs) => {
                tokio::time::sleep(SILENCE).await;
                Err(unavailable())
            }
        }
    }

    /// What a sandbox's state is, as one look.
    fn look(&self, id: &SandboxId) -> Option<SandboxState> {
        self.state().sandboxes.get(id).map(|s| s.state(id))
    }
}

impl Verdict {
    /// The answer, unless it is lost.
    fn answer<T>(self, answer: T) -> Result<T, RuntimeError> {
        match self {
            Self::Go | Self::GoLate => Ok(answer),
            Self::GoAndLoseAnswer => Err(unavailable()),
            Self::NotAsAsked => Err(not_as_asked()),
        }
    }
}

/// The locks of what `wanted` says, in a room. What is locked already stays.
fn serve(room: &Path) -> std::io::Result<Vec<File>> {
    let mut served = Vec::new();
    for line in std::fs::read_to_string(room.join("wanted"))?.lines() {
        let mut words = line.split(' ');
        let (mode, name, file) = (words.next(), words.next(), words.next());
        let lock = File::open(room.join(format!("{}.lock", name.unwrap_or_default())))?;
        if lock.try_lock().is_err() {
            continue;
        }
        let file = File::open(file.unwrap_or_default())?;
        if mode == Some("rw") {
            file.try_lock()?;
        } else {
            file.try_lock_shared()?;
        }
        served.extend([lock, file]);
    }
    Ok(served)
}

fn unavailable() -> RuntimeError {
    RuntimeError::Unavailable {
        doing: "a test",
        source: "it was told to fail".into(),
    }
}

fn not_as_asked() -> RuntimeError {
    RuntimeError::NotAsAsked {
        field: "OCIRuntime",
        found: "crun".into(),
        wanted: "runsc".into(),
    }
}

fn refused(message: &str) -> RuntimeError {
    RuntimeError::Failed {
        doing: "do as asked",
        message: message.into(),
    }
}

/// A sandbox's capabilities as the kernel shows them (capabilities(7) numbers them).
fn capability_bits(spec: &SandboxSpec) -> u64 {
    capabilities(spec)
        .iter()
        .map(|name| match *name {
            "CAP_CHOWN" => 1,
            "CAP_DAC_OVERRIDE" => 1 << 1,
            "CAP_DAC_READ_SEARCH" => 1 << 2,
            "CAP_FOWNER" => 1 << 3,
            "CAP_FSETID" => 1 << 4,
            "CAP_KILL" => 1 << 5,
            "CAP_SETGID" => 1 << 6,
            "CAP_SETUID" => 1 << 7,
            "CAP_SETPCAP" => 1 << 8,
            "CAP_NET_BIND_SERVICE" => 1 << 10,
            "CAP_SYS_CHROOT" => 1 << 18,
            "CAP_SYS_ADMIN" => 1 << 21,
            // One that the fake does not know must not pass for none.
            _ => 1 << 63,
        })
        .fold(0, |held, bit: u64| held | bit)
}

#[async_trait]
impl SandboxRuntime for FakeRuntime {
    async fn probe(&self) -> Result<RuntimeFacts, RuntimeError> {
        let verdict = self.enter(FakeCall::Probe).await?;
        let state = self.state();
        verdict.answer(RuntimeFacts {
            podman_version: "4.3.1".into(),
            conmon_version: "conmon version 2.1.6".into(),
            runtime_path: "/usr/libexec/casemate/casemate-runsc".into(),
            runtime_version: "runsc version 0.0~20240729.0".into(),
            unenforced_limits: state.unenforced_limits.clone(),
            volumes_problem: state.volumes_problem.clone(),
        })
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<SandboxId, RuntimeError> {
        let verdict = self.enter(FakeCall::Create).await?;
        if matches!(verdict, Verdict::NotAsAsked) {
            return Err(not_as_asked());
        }
        let id = if matches!(verdict, Verdict::GoLate) {
            let (state, spec) = (Arc::clone(&self.state), spec.clone());
            let making = tokio::spawn(async move {
                tokio::time::sleep(SILENCE).await;
                lock(&state).make(&spec)
            });
            making
                .await
                .map_err(|error| refused(&error.to_string()))??
        } else {
            self.state().make(spec)?
        };
        self.ended.notify_waiters();
        verdict.answer(id)
    }

    async fn start(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let verdict = self.enter(FakeCall::Start).await?;
        let spec = {
            let mut state = self.state();
            let sandbox = state
                .sandboxes
                .get_mut(id)
                .ok_or_else(|| refused("no such container"))?;
            let starts = match sandbox.phase {
                SandboxPhase::Running => false,
                SandboxPhase::Exited => return Err(refused("it has ended")),
                SandboxPhase::Created | SandboxPhase::Other => true,
            };
            sandbox.phase = SandboxPhase::Running;
            starts.then(|| sandbox.spec.clone())
        };
        // Outside the lock: a hook may take its time, or call back.
        if let Some((spec, hook)) = spec.zip(self.hook.as_ref()) {
            let running = hook(&spec);
            if let Some(sandbox) = self.state().sandboxes.get_mut(id) {
                sandbox.running = Some(running);
            }
        }
        verdict.answer(())
    }

    /// Its guest, a process of the host, does not notice.
    async fn pause(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let verdict = self.enter(FakeCall::Pause).await?;
        self.stand_still(id, true)?;
        verdict.answer(())
    }

    async fn resume(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let verdict = self.enter(FakeCall::Resume).await?;
        self.stand_still(id, false)?;
        verdict.answer(())
    }

    /// Locks what what serves the volumes would lock, until the sandbox is no more.
    async fn attach(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let verdict = self.enter(FakeCall::Attach).await?;
        let place = {
            let state = self.state();
            let sandbox = state.sandboxes.get(id);
            let sandbox = sandbox.filter(|sandbox| sandbox.phase == SandboxPhase::Running);
            let sandbox = sandbox.ok_or_else(|| refused("it does not run"))?;
            sandbox.spec.volumes_dir.clone()
        };
        let served = serve(&place).map_err(|error| refused(&error.to_string()))?;
        if let Some(sandbox) = self.state().sandboxes.get_mut(id) {
            sandbox.served.extend(served);
        }
        verdict.answer(())
    }

    /// Keeps nothing of the sandbox but that there is a checkpoint of it.
    async fn checkpoint(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let verdict = self.enter(FakeCall::Checkpoint).await?;
        let running = {
            let mut state = self.state();
            let sandbox = state.sandboxes.get_mut(id);
            let sandbox = sandbox.filter(|sandbox| sandbox.phase == SandboxPhase::Running);
            let sandbox = sandbox.ok_or_else(|| refused("it does not run"))?;
            let Warmth::Source(file) = &sandbox.spec.warmth else {
                return Err(refused("it was not made for a checkpoint"));
            };
            let (file, running) = (file.clone(), sandbox.running.take());
            sandbox.end(0);
            state.checkpoints.push(file);
            running
        };
        drop(running);
        self.ended.notify_waiters();
        verdict.answer(())
    }

    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, RuntimeError> {
        let verdict = self.enter(FakeCall::Checkpoints).await?;
        let mut state = self.state();
        state.checkpoints.retain(|file| file.exists());
        let names = state.checkpoints.iter().filter_map(|file| file.file_name());
        let checkpoints = names.map(|name| Checkpoint {
            name: name.to_string_lossy().into_owned(),
            size_bytes: 1 << 20,
        });
        let checkpoints = checkpoints.collect();
        drop(state);
        verdict.answer(checkpoints)
    }

    async fn inspect(&self, id: &SandboxId) -> Result<Option<SandboxState>, RuntimeError> {
        let verdict = self.enter(FakeCall::Inspect).await?;
        verdict.answer(self.look(id))
    }

    async fn wait(&self, id: &SandboxId) -> Result<Option<i32>, RuntimeError> {
        let verdict = self.enter(FakeCall::Wait).await?;
        loop {
            // Before looking, so that an end between the two is not missed.
            let ended = self.ended.notified();
            match self.look(id) {
                None => return verdict.answer(None),
                Some(SandboxState {
                    phase: SandboxPhase::Exited,
                    exit_code,
                    ..
                }) => {
                    return verdict.answer(exit_code);
                }
                Some(_) => ended.await,
            }
        }
    }

    async fn remove(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let verdict = self.enter(FakeCall::Remove).await?;
        let removed = self.state().sandboxes.remove(id);
        // Outside the lock: what the hook returned may end a process when it is dropped.
        drop(removed);
        self.ended.notify_waiters();
        verdict.answer(())
    }

    async fn tidy(&self) -> Result<(), RuntimeError> {
        self.enter(FakeCall::Tidy).await?.answer(())
    }

    async fn list(&self, installation: InstallationId) -> Result<Vec<SandboxState>, RuntimeError> {
        let verdict = self.enter(FakeCall::List).await?;
        let states = self
            .state()
            .sandboxes
            .iter()
            .filter(|(_, sandbox)| sandbox.spec.installation == installation)
            .map(|(id, sandbox)| sandbox.state(id))
            .collect();
        verdict.answer(states)
    }

    /// Knows `true`, `false`, `echo`, a script that ends in `kill -TERM 1`, which ends the sandbox with 42, and the two
    /// files of `/proc` that show what a sandbox was made with.
    async fn exec(&self, id: &SandboxId, argv: &[&str]) -> Result<ExecOutcome, RuntimeError> {
        let verdict = self.enter(FakeCall::Exec).await?;
        let running = self.state().sandboxes.get(id).and_then(|sandbox| {
            (sandbox.phase == SandboxPhase::Running).then(|| sandbox.spec.clone())
        });
        let Some(spec) = running else {
            return Err(refused("the container is not running"));
        };
        let (exit_code, mut output) = match argv {
            ["true"] => (0, Vec::new()),
            ["false"] => (1, Vec::new()),
            ["echo", words @ ..] => (0, format!("{}\n", words.join(" ")).into_bytes()),
            ["cat", "/proc/1/cmdline"] => {
                let mut words = vec![GUEST_PATH.to_owned()];
                words.extend(guest_arguments(&spec));
                (0, format!("{}\0", words.join("\0")).into_bytes())
            }
            ["grep", "^CapEff:", "/proc/self/status"] => {
                let held = capability_bits(&spec);
                (0, format!("CapEff:\t{held:016x}\n").into_bytes())
            }
            ["sh", "-c", script] if script.ends_with("kill -TERM 1") => {
                self.die(id, 42);
                (0, Vec::new())
            }
            _ => (127, b"the fake has no such program\n".to_vec()),
        };
        output.truncate(EXEC_OUTPUT_BYTES);
        verdict.answer(ExecOutcome { exit_code, output })
    }

    /// Whoever dials is believed: the fake's guests are processes of the host.
    async fn vouch(&self, _: &SandboxId, _: &Dialler, _: &Limits) -> Result<(), RuntimeError> {
        Ok(())
    }

    fn strain(&self, id: &SandboxId) -> Strain {
        let state = self.state();
        let sandbox = state.sandboxes.get(id);
        sandbox.map(|sandbox| sandbox.strain).unwrap_or_default()
    }

    async fn last_words(&self, id: &SandboxId) -> String {
        self.state()
            .sandboxes
            .get(id)
            .map(|s| s.words.clone())
            .unwrap_or_default()
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        let verdict = self.enter(FakeCall::Images).await?;
        let images = self
            .state()
            .images
            .iter()
            .map(|known| known.image.clone())
            .collect();
        verdict.answer(images)
    }

    /// Takes an archive that holds nothing but the text of a digest for an image, and OCI archives whose documents come first.
    async fn load_image(&self, mut archive: ArchiveStream) -> Result<ImageDigest, RuntimeError> {
        let verdict = self.enter(FakeCall::LoadImage).await?;
        let mut kept = Vec::new();
        while let Some(part) = archive.next().await {
            let part = part.map_err(|e| RuntimeError::BadArchive(e.to_string()))?;
            let room = KEPT_OF_ARCHIVE.saturating_sub(kept.len());
            kept.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
        }
        let image = fake_image::read(&kept).ok_or_else(|| {
            RuntimeError::BadArchive(
                "payload does not match any of the supported image formats".into(),
            )
        })?;
        let mut state = self.state();
        let is_there = |layer: &_| {
            state
                .images
                .iter()
                .any(|one| one.makeup.layers.contains(layer))
        };
        if let Some(missing) = image
            .makeup
            .layers
            .iter()
            .find(|layer| !image.brought.contains(layer) && !is_there(layer))
        {
            let what = format!("the layer {missing} is not in it");
            return Err(RuntimeError::BadArchive(what));
        }
        let digest = image.image.digest;
        if !state
            .images
            .iter()
            .any(|known| known.image.digest == digest)
        {
            state.images.push(image);
        }
        drop(state);
        verdict.answer(digest)
    }

    async fn save_image(&self, image: ImageDigest) -> Result<ArchiveStream, RuntimeError> {
        let verdict = self.enter(FakeCall::SaveImage).await?;
        let state = self.state();
        let found = state
            .images
            .iter()
            .find(|known| known.image.digest == image);
        let mut pieces = fake_image::archive(found.ok_or(RuntimeError::ImageMissing(image))?);
        drop(state);
        if verdict.answer(()).is_err() {
            pieces = pieces
                .take(1)
                .chain(futures_util::stream::iter([Err(std::io::Error::other(
                    "it was told to break off",
                ))]))
                .boxed();
        }
        Ok(pieces)
    }

    async fn makeup(&self, image: ImageDigest) -> Result<Makeup, RuntimeError> {
        let verdict = self.enter(FakeCall::Makeup).await?;
        let state = self.state();
        let found = state
            .images
            .iter()
            .find(|known| known.image.digest == image);
        let makeup = found.map(|known| known.makeup.clone());
        verdict.answer(makeup.ok_or(RuntimeError::ImageMissing(image))?)
    }

    /// Every image that was not loaded has `/etc/motd` and what is above it; nothing is known of any other.
    async fn names(
        &self,
        image: ImageDigest,
        beyond: ImageDigest,
    ) -> Result<Vec<String>, RuntimeError> {
        let verdict = self.enter(FakeCall::Names).await?;
        let names = {
            let state = self.state();
            let find = |digest| {
                state
                    .images
                    .iter()
                    .find(|known| known.image.digest == digest)
            };
            let (Some(image), Some(_)) = (find(image), find(beyond)) else {
                return Err(refused("there is no such image"));
            };
            image.names.clone()
        };
        verdict.answer(names)
    }

    async fn remove_image(&self, image: ImageDigest) -> Result<bool, RuntimeError> {
        let verdict = self.enter(FakeCall::RemoveImage).await?;
        let mut state = self.state();
        let is_used = state
            .sandboxes
            .values()
            .any(|sandbox| sandbox.spec.image == image);
        if !is_used {
            state.images.retain(|known| known.image.digest != image);
        }
        drop(state);
        verdict.answer(!is_used)
    }
}
