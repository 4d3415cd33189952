//! Checkpoints: what a template warms up is done once, and later sandboxes begin as what it left.
//!
//! A checkpoint is of one edition of a template, and is made in a sandbox that was nobody's and ends with it: nothing of a
//! session ever gets into one. One is made at a time, in the background, for every template with a pool and for each that a
//! session was made of. Until there is one, and where none can be made or restored, the same is done live: a session finds the
//! same either way, later.
//!
//! The files are podman's user's ([`crate::runtime`]). Here is one small file for each beside the link directories, which says
//! of which edition it is. The checkpoint is kept for as long as that file is there, so what a crash leaves is found by both
//! sides: a checkpoint without its file is removed by the runtime, a file without its checkpoint by the next daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::launch::{self, Door, End, Remains, Traces};
use super::manager::{House, Sessions};
use super::pool::{Edition, TEAM};
use super::ready::{self, Unready};
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::model::name::Name;
use crate::model::sandbox::Warmth;
use crate::model::session::{Reason, Session};
use crate::model::template::{Origin, Template, TemplateSpec};
use crate::store::StoreError;

/// Most checkpoints that are kept, and of one team's own templates: each is as large as what it warmed up.
const MAX_CHECKPOINTS: usize = 16;
const MAX_OF_TEAM: usize = 4;
/// None is made beyond so many bytes of all together.
const MAX_BYTES: u64 = 16 << 30;

/// How often it is looked for what is to be made, or is not wanted any more, when nobody asks.
const LOOK: Duration = Duration::from_secs(5);

/// How long nothing is made of an edition with which it failed: the next try would fail as well.
const RETRY: Duration = Duration::from_secs(120);

/// What the file of a checkpoint is called: its maker's name and this.
const SUFFIX: &str = ".checkpoint";

/// Longest such file.
const MAX_FILE_BYTES: u64 = 4096;

/// Of which edition a checkpoint is, in its file.
#[derive(Serialize, Deserialize)]
struct Label {
    team: Option<Name>,
    template: Name,
    version: u32,
}

impl From<&Edition> for Label {
    fn from(edition: &Edition) -> Self {
        Self {
            team: match &edition.origin {
                Origin::File => None,
                Origin::Team(team) => Some(team.clone()),
            },
            template: edition.name.clone(),
            version: edition.version,
        }
    }
}

impl From<Label> for Edition {
    fn from(label: Label) -> Self {
        Self {
            origin: label.team.map_or(Origin::File, Origin::Team),
            name: label.template,
            version: label.version,
        }
    }
}

/// How the checkpoint of an edition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointState {
    /// Sandboxes begin as it.
    There {
        /// Its size on the disk.
        size_bytes: u64,
    },
    /// Nobody asked yet, or it is being made.
    Absent,
    /// It could not be made, or not be restored.
    Failed {
        /// Why.
        message: String,
    },
}

/// All that is known of checkpoints.
#[derive(Default)]
pub(super) struct Checkpoints {
    state: Mutex<Known>,
    /// Told when somebody asks for one.
    asked: Notify,
}

#[derive(Default)]
struct Known {
    made: BTreeMap<Edition, Made>,
    /// Editions of which sessions were made.
    asked: BTreeSet<Edition>,
    failed: BTreeMap<Edition, Failure>,
}

#[derive(Clone)]
struct Made {
    /// With which it is kept.
    file: PathBuf,
    size_bytes: u64,
}

struct Failure {
    until: Instant,
    message: String,
}

impl Checkpoints {
    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, edition: &Edition) {
        if self.state().asked.insert(edition.clone()) {
            self.asked.notify_one();
        }
    }

    /// Whether one is still to be made, sooner or later.
    pub(super) fn is_awaited(&self, edition: &Edition) -> bool {
        let known = self.state();
        let of_team = known
            .made
            .keys()
            .filter(|made| made.origin == edition.origin);
        let is_full = known.made.len() >= MAX_CHECKPOINTS
            || (edition.origin != Origin::File && of_team.count() >= MAX_OF_TEAM)
            || known.made.values().map(|made| made.size_bytes).sum::<u64>() >= MAX_BYTES;
        !is_full && !known.made.contains_key(edition) && !known.failed.contains_key(edition)
    }

    /// Lets one go that could not be restored: it is not tried again for a while.
    pub(super) fn spoil(&self, edition: &Edition, message: String) {
        self.drop_one(edition);
        let until = Instant::now() + RETRY;
        let failure = Failure { until, message };
        self.state().failed.insert(edition.clone(), failure);
    }

    /// Lets one go that was not there any more, or was taken on other ground: another is made.
    pub(super) fn lose(&self, edition: &Edition) {
        self.drop_one(edition);
        self.ask(edition);
    }

    /// Nothing begins as it from here on, and the next look removes it.
    fn drop_one(&self, edition: &Edition) {
        let made = self.state().made.remove(edition);
        if let Some(made) = made
            && let Err(error) = launch::gone(std::fs::remove_file(&made.file))
        {
            warn!(template = %edition.name, error = %Chain(&error), "cannot let a checkpoint go");
        }
    }
}

impl House {
    /// How a sandbox of an edition comes to what the template warms up, and whether that is by its checkpoint.
    pub(super) fn warmth(&self, edition: &Edition, template: &TemplateSpec) -> Warmth {
        if template.setup.warm_up.is_none() {
            return Warmth::None;
        }
        let known = self.checkpoints.state();
        let made = known.made.get(edition);
        made.map_or(Warmth::Live, |made| Warmth::Restored(made.file.clone()))
    }

    /// The same for a session: a checkpoint only where the session is what its template makes of one that asks for nothing.
    /// Whoever would have liked one has asked for it.
    pub(super) async fn warmth_of(&self, session: &Session) -> (Warmth, Option<Edition>) {
        let spec = &session.spec;
        if spec.setup.warm_up.is_none() {
            return (Warmth::None, None);
        }
        // Where it cannot be read, nothing is known but what the session itself knows.
        let template = self.template(&spec.team, &spec.template).await;
        let Some(template) = template.ok().flatten().filter(|template| {
            let recipe = &template.spec;
            template.version == spec.template_version
                && (recipe.image, recipe.limits, recipe.allow_root)
                    == (spec.image, spec.limits, spec.allow_root)
                && recipe.session_setup().warm_up == spec.setup.warm_up
        }) else {
            return (Warmth::Live, None);
        };
        let edition = Edition::of(&template);
        let warmth = self.warmth(&edition, &template.spec);
        if warmth == Warmth::Live {
            self.checkpoints.ask(&edition);
            return (warmth, None);
        }
        (warmth, Some(edition))
    }

    /// The template of an edition, if it is still the latest.
    async fn latest(&self, edition: &Edition) -> Result<Option<Template>, StoreError> {
        let name = &edition.name;
        let found = match &edition.origin {
            Origin::File => self.recipes().templates.get(name).cloned(),
            Origin::Team(team) => self.store.team_template(team.clone(), name.clone()).await?,
        };
        Ok(found.filter(|found| Edition::of(found) == *edition))
    }

    /// Whether something in the link root is the file of a checkpoint.
    pub(super) fn is_checkpoint(name: &str) -> bool {
        let maker = name.strip_suffix(SUFFIX);
        maker.is_some_and(|maker| maker.parse::<SessionId>().is_ok())
    }

    /// Finds the checkpoints that a former daemon made, and forgets those that never came to be.
    async fn find_checkpoints(&self) -> Result<(), End> {
        let there = self.runtime.checkpoints().await;
        let there = there.map_err(|error| launch::refused(&error))?;
        let entries = std::fs::read_dir(&self.link_root).map_err(|e| launch::failed(&e))?;
        for entry in entries {
            let entry = entry.map_err(|error| launch::failed(&error))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| Self::is_checkpoint(name)) else {
                continue;
            };
            let file = entry.path();
            let found = there.iter().find(|checkpoint| checkpoint.name == name);
            match found.zip(read(&file)) {
                Some((checkpoint, edition)) => {
                    let size_bytes = checkpoint.size_bytes;
                    let made = Made { file, size_bytes };
                    let former = self.checkpoints.state().made.insert(edition, made);
                    if let Some(former) = former {
                        launch::gone(std::fs::remove_file(former.file))
                            .map_err(|e| launch::failed(&e))?;
                    }
                }
                None => {
                    launch::gone(std::fs::remove_file(file)).map_err(|e| launch::failed(&e))?;
                }
            }
        }
        Ok(())
    }
}

/// What the file of a checkpoint says.
fn read(file: &std::path::Path) -> Option<Edition> {
    let is_small = std::fs::metadata(file).is_ok_and(|found| found.len() <= MAX_FILE_BYTES);
    let text = is_small.then(|| std::fs::read(file).ok()).flatten()?;
    serde_json::from_slice::<Label>(&text)
        .ok()
        .map(Edition::from)
}

/// Writes it. Those who remove checkpoints see whether it is there, and nothing else of it.
fn write(file: &std::path::Path, edition: &Edition) -> io::Result<()> {
    let text = serde_json::to_vec(&Label::from(edition)).map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(file)?.write_all(&text)
}

impl Sessions {
    /// How the checkpoint of this version of a template is.
    #[must_use]
    pub fn checkpoint(&self, template: &Template) -> CheckpointState {
        let edition = Edition::of(template);
        let known = self.house.checkpoints.state();
        if let Some(made) = known.made.get(&edition) {
            return CheckpointState::There {
                size_bytes: made.size_bytes,
            };
        }
        match known.failed.get(&edition) {
            Some(failure) => CheckpointState::Failed {
                message: failure.message.clone(),
            },
            None => CheckpointState::Absent,
        }
    }

    /// Makes the checkpoints that are asked for, and lets those go that are not wanted any more, until `stop`. They stay then:
    /// the next daemon finds them.
    pub(super) async fn keep_checkpoints(&self, stop: CancellationToken) {
        let mut is_known = false;
        loop {
            if !is_known {
                match self.house.find_checkpoints().await {
                    Ok(()) => is_known = true,
                    Err(end) => {
                        warn!(error = end.message, "cannot look for checkpoints");
                    }
                }
            }
            let was_made = is_known && self.see_to_checkpoints(&stop).await;
            if was_made {
                self.pool.look_again();
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.house.checkpoints.asked.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Lets go what is not wanted, and makes one that is; whether it did.
    async fn see_to_checkpoints(&self, stop: &CancellationToken) -> bool {
        let due = match self.due().await {
            Ok(due) => due,
            Err(error) => {
                warn!(error = %Chain(&error), "cannot read of which templates to make checkpoints");
                return false;
            }
        };
        // Sessions go first.
        let is_free = self.has_room() && self.load().1 == 0 && !stop.is_cancelled();
        let Some((edition, template)) = due.filter(|_| is_free) else {
            return false;
        };
        match self.make_checkpoint(&edition, &template, stop).await {
            Ok(made) => {
                info!(template = %edition.name, version = edition.version, size_bytes = made.size_bytes, "a checkpoint was made");
                self.house.checkpoints.state().made.insert(edition, made);
                true
            }
            Err(_) if stop.is_cancelled() => false,
            Err(end) => {
                warn!(template = %edition.name, version = edition.version, error = end.message, "cannot make a checkpoint");
                let message = end.message.unwrap_or_default();
                self.house.checkpoints.spoil(&edition, message);
                // What waits for it does without.
                true
            }
        }
    }

    /// An edition of which a checkpoint is to be made, after those that nobody wants any more are let go.
    async fn due(&self) -> Result<Option<(Edition, TemplateSpec)>, StoreError> {
        let house = &self.house;
        let known: BTreeSet<Edition> = {
            let mut known = house.checkpoints.state();
            let now = Instant::now();
            known.failed.retain(|_, failure| failure.until > now);
            let all = known.made.keys().chain(&known.asked);
            all.chain(known.failed.keys()).cloned().collect()
        };
        let mut latest = BTreeMap::new();
        for edition in known {
            if let Some(template) = house.latest(&edition).await? {
                latest.insert(edition, template.spec);
            } else {
                house.checkpoints.drop_one(&edition);
                let mut known = house.checkpoints.state();
                known.asked.remove(&edition);
                known.failed.remove(&edition);
            }
        }
        let pooled = self.wanted().await?;
        latest.extend(
            pooled
                .into_iter()
                .map(|(edition, (_, spec))| (edition, spec)),
        );
        latest.retain(|edition, spec| {
            spec.setup.warm_up.is_some() && house.checkpoints.is_awaited(edition)
        });
        Ok(latest.pop_first())
    }

    /// Makes the checkpoint of an edition. Nothing else is left of it.
    async fn make_checkpoint(
        &self,
        edition: &Edition,
        template: &TemplateSpec,
        stop: &CancellationToken,
    ) -> Result<Made, End> {
        let house = &self.house;
        let id = SessionId::generate(house.clock.now()).map_err(|error| launch::failed(&error))?;
        let file = house.link_root.join(format!("{id}{SUFFIX}"));
        write(&file, edition).map_err(|error| launch::failed(&error))?;
        let identity = self.pool.reserve(id);
        let mut remains = Remains {
            sandbox: Traces::None,
            door: true,
        };
        let made = tokio::select! {
            biased;
            () = stop.cancelled() => Err(launch::stopping()),
            made = self.warm_and_take(id, template, file.clone(), &mut remains) => made,
        };
        remains.clear_unowned(house, id).await;
        drop(identity);
        if made.is_err()
            && let Err(error) = launch::gone(std::fs::remove_file(&file))
        {
            warn!(file = %file.display(), error = %Chain(&error), "cannot let a checkpoint go");
        }
        made
    }

    async fn warm_and_take(
        &self,
        id: SessionId,
        template: &TemplateSpec,
        file: PathBuf,
        remains: &mut Remains,
    ) -> Result<Made, End> {
        let house: &House = &self.house;
        let team = TEAM.parse().map_err(|error| launch::failed(&error))?;
        let Ok(turn) = house.launches.enter(&team, Duration::MAX).await else {
            return Err(launch::stopping());
        };
        let mut door = Door::build(&house.link_root, id, template.limits)
            .await
            .map_err(|error| launch::failed(&error))?;
        let spec = launch::unowned(
            house,
            id,
            template,
            door.directory.clone(),
            Warmth::Source(file.clone()),
        );
        let sandbox = launch::create(house, spec, &mut remains.sandbox).await?;
        let link = launch::start(house, &sandbox, &mut door).await?;
        drop(turn);
        let setup = template.session_setup();
        if let Some(warm_up) = &setup.warm_up {
            let deadline = Instant::now() + ready::patience(warm_up);
            let warmed = ready::warm(&link, id, &setup, warm_up, deadline).await;
            warmed.map_err(|unready| match unready {
                Unready::Never(end) => end,
                Unready::LinkLost => End::new(Reason::GuestLost, "the guest was lost"),
            })?;
        }
        link.rest().await.map_err(|error| launch::failed(&error))?;
        let taken = house.runtime.checkpoint(&sandbox).await;
        taken.map_err(|error| launch::refused(&error))?;
        let there = house.runtime.checkpoints().await;
        let there = there.map_err(|error| launch::refused(&error))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let found = there.into_iter().find(|checkpoint| checkpoint.name == name);
        let found = found.ok_or_else(|| End::new(Reason::Internal, "it was not kept"))?;
        Ok(Made {
            file,
            size_bytes: found.size_bytes,
        })
    }
}
