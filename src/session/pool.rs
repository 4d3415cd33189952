//! Sandboxes that are started ahead of time, so that a session has one at once.
//!
//! A warm sandbox is a session's in all but name: it has an identity of its own, a door and a linked guest, and nothing but
//! `true` has run in it. The session that claims it takes its identity over, so that container, host name, link directory and session agree
//! from the first moment, and nothing of it has to be changed. It belongs to nobody until then: it is in no table and not in
//! the store, a crash leaves it as an orphan that the next start removes, and nobody can claim it twice because whoever takes
//! it from its shelf has it.
//!
//! A shelf holds what is alike: one edition of a template, with that template's own limits. Whoever asks for other limits, or
//! for a name, which is the host name inside, has a sandbox made as ever. How far a team's own templates may go is the operator's
//! to say: what stands ready costs memory. One task fills the shelves, one sandbox after the
//! other, as long as the machine has room; what is not wanted any more, or whose guest went away, is thrown out.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use casemate_link::daemon::{Link, LinkError};
use casemate_link::{ProcessExit, ProcessSpec};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::launch::{self, Door, End, Remains, Traces};
use super::manager::{House, Sessions};
use super::ready::{self, Unready};
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::model::name::Name;
use crate::model::sandbox::{Limits, SandboxId, SandboxSpec, Warmth};
use crate::model::session::Reason;
use crate::model::template::{Origin, Template, TemplateSpec};
use crate::store::StoreError;

/// What a sandbox runs once on its shelf, and how long that may take.
const REHEARSAL: (&str, Duration) = ("true", Duration::from_secs(5));

/// How long whoever took a sandbox has the machine to itself: its first command takes about as long.
const COURTESY: Duration = Duration::from_millis(20);

/// How often the shelves are looked at when nobody took anything: templates change, guests go away.
const LOOK: Duration = Duration::from_secs(5);

/// How often the guests on the shelves are asked whether they live.
const CHECK: Duration = Duration::from_secs(30);

/// Pause after a sandbox could not be made: the next one would fail as well.
const RETRY: Duration = Duration::from_secs(10);

/// Whose launches those for the shelves are, among the teams that take turns.
pub(super) const TEAM: &str = "pool";

/// What makes two sandboxes alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edition {
    pub(super) origin: Origin,
    pub(super) name: Name,
    pub(super) version: u32,
}

impl Edition {
    pub(super) fn of(template: &Template) -> Self {
        Self {
            origin: template.origin.clone(),
            name: template.name.clone(),
            version: template.version,
        }
    }
}

/// A sandbox that belongs to nobody.
pub(super) struct Warm {
    /// The session that it will be.
    pub(super) id: SessionId,
    pub(super) sandbox: SandboxId,
    pub(super) door: Door,
    pub(super) link: Link,
}

/// All shelves.
#[derive(Default)]
pub(super) struct Pool {
    state: Mutex<Shelves>,
    /// Told when something was taken.
    taken: Notify,
}

#[derive(Default)]
struct Shelves {
    warm: BTreeMap<Edition, VecDeque<Warm>>,
    /// Identities of what is on a shelf, on its way there, or being claimed or thrown out.
    ids: HashSet<SessionId>,
    closed: bool,
}

/// A sandbox that was taken from its shelf. Dropped unused, it goes back.
pub(super) struct Claim {
    pool: Arc<Pool>,
    edition: Edition,
    warm: Option<Warm>,
}

impl Claim {
    /// The session that it is going to be.
    pub(super) fn id(&self) -> Option<SessionId> {
        self.warm.as_ref().map(|warm| warm.id)
    }

    /// Takes it to be thrown out: its identity may have been used.
    pub(super) fn spoil(mut self) -> Option<Warm> {
        self.warm.take()
    }

    /// Takes it for good. Its identity is the pool's until the second of both is dropped, when it is known as a session's.
    pub(super) fn take(mut self) -> (Option<Warm>, Option<Identity>) {
        let warm = self.warm.take();
        let identity = warm.as_ref().map(|warm| Identity {
            pool: Arc::clone(&self.pool),
            id: warm.id,
        });
        (warm, identity)
    }
}

/// An identity that is still the pool's.
pub(super) struct Identity {
    pool: Arc<Pool>,
    id: SessionId,
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.pool.state().ids.remove(&self.id);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(warm) = self.warm.take() {
            let mut shelves = self.pool.state();
            let row = shelves.warm.entry(self.edition.clone()).or_default();
            row.push_front(warm);
        }
    }
}

impl Pool {
    /// Takes a sandbox of an edition, if there is one whose guest answers.
    pub(super) fn claim(self: &Arc<Self>, edition: &Edition) -> Option<Claim> {
        let warm = {
            let mut shelves = self.state();
            let row = shelves.warm.get_mut(edition)?;
            // Those that are gone are thrown out by whoever fills the shelves.
            let at = row.iter().position(|warm| !warm.link.is_closed())?;
            row.remove(at)?
        };
        self.taken.notify_one();
        Some(Claim {
            pool: Arc::clone(self),
            edition: edition.clone(),
            warm: Some(warm),
        })
    }

    /// An identity of what is made for nobody, until it is dropped.
    pub(super) fn reserve(self: &Arc<Self>, id: SessionId) -> Identity {
        self.state().ids.insert(id);
        Identity {
            pool: Arc::clone(self),
            id,
        }
    }

    /// Has the shelves looked at now.
    pub(super) fn look_again(&self) {
        self.taken.notify_one();
    }

    /// Whether something of this identity is the pool's.
    pub(super) fn has(&self, id: SessionId) -> bool {
        self.state().ids.contains(&id)
    }

    /// How many stand ready.
    pub(super) fn ready(&self) -> usize {
        self.state().warm.values().map(VecDeque::len).sum()
    }

    /// Takes what is not wanted, or gone, off the shelves, and says of which editions how many are missing.
    fn tidy(&self, wanted: &BTreeMap<Edition, (usize, TemplateSpec)>) -> (Vec<Warm>, Vec<Edition>) {
        let mut shelves = self.state();
        let mut out = Vec::new();
        for (edition, shelf) in &mut shelves.warm {
            let most = wanted.get(edition).map_or(0, |(most, _)| *most);
            let (gone, mut kept): (Vec<_>, Vec<_>) =
                shelf.drain(..).partition(|warm| warm.link.is_closed());
            out.extend(gone);
            out.extend(kept.drain(..kept.len().saturating_sub(most)));
            shelf.extend(kept);
        }
        shelves.warm.retain(|_, shelf| !shelf.is_empty());
        let held = |edition| shelves.warm.get(edition).map_or(0, VecDeque::len);
        let missing = wanted
            .iter()
            .filter(|(edition, (most, _))| held(edition) < *most)
            .map(|(edition, _)| edition.clone())
            .collect();
        (out, missing)
    }

    /// The links of all that stand ready.
    fn links(&self) -> Vec<Link> {
        let shelves = self.state();
        let all = shelves.warm.values().flatten();
        all.map(|warm| warm.link.clone()).collect()
    }

    /// Puts a sandbox on its shelf; gives it back when there are no shelves any more.
    fn put(&self, edition: Edition, warm: Warm) -> Option<Warm> {
        let mut shelves = self.state();
        if shelves.closed {
            return Some(warm);
        }
        shelves.warm.entry(edition).or_default().push_back(warm);
        None
    }

    fn state(&self) -> MutexGuard<'_, Shelves> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// How many sandboxes stand ready for sessions to come.
    #[must_use]
    pub fn warm(&self) -> usize {
        self.pool.ready()
    }

    /// How many sandboxes of this version of a template stand ready.
    #[must_use]
    pub fn standing(&self, template: &Template) -> usize {
        let shelves = self.pool.state();
        let standing = shelves.warm.get(&Edition::of(template));
        standing.map_or(0, VecDeque::len)
    }

    /// A sandbox for a session of this template, if one stands ready that is what it asks for.
    pub(super) fn claim(
        &self,
        template: &Template,
        limits: Limits,
        name: Option<&Name>,
    ) -> Option<Claim> {
        // A name is the host name inside, which cannot be changed there.
        let alike = name.is_none() && limits == template.spec.limits;
        alike
            .then(|| self.pool.claim(&Edition::of(template)))
            .flatten()
    }

    /// Keeps the shelves filled, and the checkpoints that are wanted, until `stop`; then there is nothing on the shelves.
    pub async fn keep_warm(self, stop: CancellationToken) {
        let checkpoints = Box::pin(self.keep_checkpoints(stop.clone()));
        tokio::join!(checkpoints, Box::pin(self.keep_shelves(stop)));
    }

    async fn keep_shelves(&self, stop: CancellationToken) {
        let (mut checked, mut started) = (Instant::now(), None);
        loop {
            let filling = async {
                if checked.elapsed() >= CHECK {
                    self.check().await;
                    checked = Instant::now();
                }
                self.fill(&mut started, &stop).await
            };
            // Told to stop it comes to an end by itself, and clears up what it was making.
            let pause = if filling.await { LOOK } else { RETRY };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.pool.taken.notified(), if pause == LOOK => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.clear_shelves().await;
    }

    /// Hangs up on guests that do not answer: they are thrown out then.
    async fn check(&self) {
        let links = self.pool.links();
        let checks = links.iter().map(async |link| {
            if link.health().await.is_err() {
                link.close();
                link.closed().await;
            }
        });
        futures_util::future::join_all(checks).await;
    }

    /// Makes what is missing, one after the other and not too fast, since the last start; false when something could not be
    /// made.
    async fn fill(&self, started: &mut Option<Instant>, stop: &CancellationToken) -> bool {
        loop {
            let wanted = match self.wanted().await {
                Ok(wanted) => wanted,
                Err(error) => {
                    warn!(error = %Chain(&error), "cannot read which sandboxes to hold ready");
                    return false;
                }
            };
            let (out, mut missing) = self.pool.tidy(&wanted);
            for warm in out {
                self.throw_out(warm).await;
            }
            // What is warmed up waits for the checkpoint that it is to begin as.
            missing.retain(|edition| !self.is_awaited(edition, &wanted));
            if missing.is_empty() {
                return true;
            }
            let pace = Duration::from_secs(1) / self.settings().sessions.pool_starts_per_s.max(1);
            let after = started.map_or(Duration::ZERO, |last| {
                (last + pace).saturating_duration_since(Instant::now())
            });
            tokio::select! {
                biased;
                () = stop.cancelled() => return true,
                () = tokio::time::sleep(after.max(COURTESY)) => {}
            }
            // Sessions go first.
            let is_free = self.has_room() && self.load().1 == 0;
            let Some(edition) = missing.into_iter().next().filter(|_| is_free) else {
                return true;
            };
            let Some((_, spec)) = wanted.get(&edition) else {
                return true;
            };
            *started = Some(Instant::now());
            match self.make(&edition, spec, stop).await {
                Ok(warm) => {
                    if let Some(warm) = self.pool.put(edition, warm) {
                        self.throw_out(warm).await;
                        return true;
                    }
                }
                Err(_) if stop.is_cancelled() => return true,
                Err(end) => {
                    warn!(template = %edition.name, error = end.message, "cannot hold a sandbox ready");
                    return false;
                }
            }
        }
    }

    /// How many of which editions are to be held ready.
    pub(super) async fn wanted(
        &self,
    ) -> Result<BTreeMap<Edition, (usize, TemplateSpec)>, StoreError> {
        let settings = self.settings();
        let of_teams = self.house.store.pooled_templates().await?;
        let all = settings.templates.values().chain(&of_teams);
        let wanted = all.filter(|template| template.spec.pool > 0);
        Ok(wanted
            .map(|template| {
                let most = usize::try_from(template.spec.pool).unwrap_or(usize::MAX);
                (Edition::of(template), (most, template.spec.clone()))
            })
            .collect())
    }

    /// Whether an edition is to have a checkpoint, and has none yet.
    fn is_awaited(
        &self,
        edition: &Edition,
        wanted: &BTreeMap<Edition, (usize, TemplateSpec)>,
    ) -> bool {
        let spec = wanted.get(edition).map(|(_, spec)| spec);
        spec.is_some_and(|spec| spec.setup.warm_up.is_some())
            && self.house.checkpoints.is_awaited(edition)
    }

    /// Makes a sandbox that belongs to nobody.
    async fn make(
        &self,
        edition: &Edition,
        template: &TemplateSpec,
        stop: &CancellationToken,
    ) -> Result<Warm, End> {
        let house = &self.house;
        let id = SessionId::generate(house.clock.now()).map_err(|error| launch::failed(&error))?;
        self.pool.state().ids.insert(id);
        let mut remains = Remains {
            sandbox: Traces::None,
            door: true,
        };
        let made = tokio::select! {
            biased;
            () = stop.cancelled() => Err(launch::stopping()),
            made = self.launch(id, edition, template, &mut remains) => made,
        };
        if made.is_err() {
            remains.clear_unowned(house, id).await;
            self.pool.state().ids.remove(&id);
        }
        made
    }

    async fn launch(
        &self,
        id: SessionId,
        edition: &Edition,
        template: &TemplateSpec,
        remains: &mut Remains,
    ) -> Result<Warm, End> {
        let house: &House = &self.house;
        let team = TEAM.parse().map_err(|error| launch::failed(&error))?;
        let Ok(_turn) = house.launches.enter(&team, Duration::MAX).await else {
            return Err(launch::stopping());
        };
        let mut door = Door::build(&house.link_root, id, template.limits)
            .await
            .map_err(|error| launch::failed(&error))?;
        let mut spec = launch::unowned(
            house,
            id,
            template,
            door.directory.clone(),
            house.warmth(edition, template),
        );
        let (sandbox, link) = loop {
            let sandbox = launch::create(house, spec.clone(), &mut remains.sandbox).await?;
            match launch::start(house, &sandbox, &mut door).await {
                Ok(link) => break (sandbox, link),
                Err(end) => {
                    let edition = Some(edition);
                    spec = launch::without(house, spec, edition, &sandbox, &mut door, end).await?;
                }
            }
        };
        warm_up(house, id, edition, template, &spec, &link).await?;
        rehearse(&link).await;
        info!(session = %id, sandbox = %sandbox, "a sandbox stands ready");
        Ok(Warm {
            id,
            sandbox,
            door,
            link,
        })
    }

    /// Removes a sandbox that nobody will have.
    pub(super) async fn throw_out(&self, warm: Warm) {
        let id = warm.id;
        let remains = Remains {
            sandbox: Traces::Known(warm.sandbox),
            door: true,
        };
        warm.link.close();
        remains.clear_unowned(&self.house, id).await;
        self.pool.state().ids.remove(&id);
    }

    async fn clear_shelves(&self) {
        let warm = {
            let mut shelves = self.pool.state();
            shelves.closed = true;
            std::mem::take(&mut shelves.warm)
        };
        let all = warm
            .into_values()
            .flatten()
            .map(|warm| self.throw_out(warm));
        futures_util::future::join_all(all).await;
    }
}

/// Has what the template warms up in a sandbox, which is there already if it began as its checkpoint.
async fn warm_up(
    house: &House,
    id: SessionId,
    edition: &Edition,
    template: &TemplateSpec,
    spec: &SandboxSpec,
    link: &Link,
) -> Result<(), End> {
    let setup = template.session_setup();
    let Some(warm_up) = &setup.warm_up else {
        return Ok(());
    };
    let deadline = Instant::now() + ready::patience(warm_up);
    let warmed = async {
        let identity = ready::identify(link, &spec.hostname).await?;
        if !identity.is_restored {
            if matches!(spec.warmth, Warmth::Restored(_)) {
                house.checkpoints.lose(edition);
            }
            ready::warm(link, id, &setup, warm_up, deadline).await?;
        }
        ready::wake(link, warm_up).await
    };
    warmed.await.map_err(|unready| match unready {
        Unready::Never(end) => end,
        Unready::LinkLost => End::new(Reason::GuestLost, "the guest was lost"),
    })
}

/// Runs a program that does nothing. The first one of a sandbox takes half as long again as those after it: gVisor has an
/// address space to make, and the image's files to open. Nothing is kept of it.
async fn rehearse(link: &Link) {
    let (program, limit) = REHEARSAL;
    let rehearsal = async {
        let mut process = link
            .start(ProcessSpec::new(vec![program.to_owned()]))
            .await?;
        ready::until_exit(&mut process).await
    };
    // An image without it, or one that is slow, is no worse for it.
    let _: Result<Result<ProcessExit, LinkError>, _> = tokio::time::timeout(limit, rehearsal).await;
}
