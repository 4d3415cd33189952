//! One task owns one session, from its first step to its last.
//!
//! The task races three things, in this order: *leave* (the daemon stops and sandboxes stay), *end*
//! (somebody asked), *live* (launch or adopt, then watch). Whatever `live` was doing when it lost is
//! dropped; what it may have left, or under way, is in [`Remains`], which is updated before each step.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use casemate_link::Usage;
use casemate_link::daemon::Link;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::SessionError;
use super::activity::Activity;
use super::handle::RunnerEnds;
use super::launch::{self, Door, End, Remains, Traces};
use super::manager::House;
use super::pool::{Edition, Warm};
use super::reached::Reached;
use super::ready::{Opening, Unready};
use super::state::{self, Answer, Event};
use super::usage::{Looks, Watch, busy_percent};
use super::volumes;
use super::wish::Wish;
use crate::audit;
use crate::base::chain::Chain;
use crate::base::clock::Timestamp;
use crate::egress::Gate;
use crate::model::event::{AuditEvent, Outcome, Stage};
use crate::model::lease::{ACTIVE_STEP_S, Lease};
use crate::model::limit::Limit;
use crate::model::principal::Principal;
use crate::model::sandbox::{SandboxId, SandboxPhase, SandboxState, Warmth};
use crate::model::session::{Phase, Reason, Session};

/// First and longest pause between tries to clear up or to write down an end.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Longest time between two looks at the clock while a deadline is awaited. The wall clock may
/// jump; this bounds how late a deadline is noticed then.
const CLOCK_LOOK: Duration = Duration::from_secs(30);

/// How a runner finds its session.
pub(super) enum Start {
    /// Just admitted.
    Admitted,
    /// Just admitted, with a sandbox that stood ready.
    Claimed(Box<Warm>),
    /// Left by a former daemon, with the containers that carry its label.
    Found(Vec<SandboxState>),
    /// Known from a backup that was restored, and no container carries its label.
    Restored,
    /// Its former runner panicked.
    Broken,
}

/// Owns one session.
pub(super) struct Runner {
    pub(super) house: Arc<House>,
    pub(super) session: Session,
    pub(super) ends: RunnerEnds,
    pub(super) start: Start,
    /// The record of its creation, which waits for its outcome.
    pub(super) intent: Option<audit::Intent>,
}

/// Everything that `live` works on, apart from what interrupts it.
pub(super) struct Life {
    pub(super) house: Arc<House>,
    pub(super) session: Session,
    state: watch::Sender<Arc<Session>>,
    pub(super) link: watch::Sender<Option<Link>>,
    looks: Looks,
    reached: Reached,
    wishes: mpsc::Receiver<Wish>,
    pub(super) activity: Activity,
    remains: Remains,
    intent: Option<audit::Intent>,
    /// The way out, while the session has a sandbox.
    pub(super) gate: Option<Gate>,
}

impl Runner {
    /// Runs the session to its end, or until the daemon leaves it.
    pub(super) async fn run(self) {
        let Self {
            house,
            session,
            ends,
            start,
            intent,
        } = self;
        let RunnerEnds {
            state,
            link,
            mut end,
            wishes,
            activity,
            looks,
            reached,
        } = ends;
        let leave = house.leave.clone();
        let remains = match &start {
            Start::Admitted => Remains::nothing(),
            Start::Claimed(warm) => Remains {
                sandbox: Traces::Known(warm.sandbox.clone()),
                door: true,
            },
            Start::Found(_) | Start::Restored | Start::Broken => Remains::anything(),
        };
        let mut life = Life {
            house,
            session,
            state,
            link,
            looks,
            reached,
            wishes,
            activity,
            remains,
            intent,
            gate: None,
        };
        let why = tokio::select! {
            biased;
            () = leave.cancelled() => None,
            why = asked_to_end(&mut end) => Some(why),
            why = life.live(start) => Some(why),
        };
        match why {
            Some(why) => life.tear_down(why).await,
            None => life.shut_gate().await,
        }
    }
}

/// How a session came to its sandbox.
enum Before {
    /// It stood ready, and is warmed up if it is to be.
    Warm,
    /// It was launched; if it was asked to begin as one, as the checkpoint of this edition.
    Launched(Option<Edition>),
}

/// What happens to a session that is linked or paused.
enum Turn {
    /// The link is lost, or its guest is silent.
    Gone,
    /// The guest has come again.
    Again(Link),
    /// Its time is over, or it was idle for too long.
    Over(Reason),
    /// Somebody wishes something.
    Asked(Wish),
    /// It is time to write down that it is used.
    Used,
    /// It reached one of its bounds.
    Reached(Limit),
}

/// Resolves when somebody asked for the end; never when nobody can ask any more.
async fn asked_to_end(end: &mut watch::Receiver<Option<End>>) -> End {
    let asked = match end.wait_for(Option::is_some).await {
        Ok(asked) => asked.clone(),
        Err(_) => None,
    };
    match asked {
        Some(end) => end,
        None => std::future::pending().await,
    }
}

/// Resolves when it is so late by the wall clock, which may jump.
async fn over(house: &House, at: Timestamp) {
    loop {
        let left = at.since(house.clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_LOOK)).await;
    }
}

/// Resolves when the session was idle for as long as it may be.
async fn idle(activity: &Activity, lease: &Lease) {
    match lease.idle_timeout_s {
        Some(seconds) => activity.idle_for(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the session was used after it was last written down that it is, and that was a while ago.
async fn used(house: &House, activity: &Activity, lease: &Lease) {
    let Some(written) = lease.active_at.filter(|_| lease.idle_timeout_s.is_some()) else {
        return std::future::pending().await;
    };
    let step = Duration::from_secs(ACTIVE_STEP_S);
    loop {
        // Before looking, so that no use between the two is missed.
        let again = activity.used_again();
        let ago = house.clock.now().since(written);
        if activity.idle() >= ago {
            again.await;
        } else if let Some(rest) = step.checked_sub(ago).filter(|rest| !rest.is_zero()) {
            tokio::time::sleep(rest).await;
        } else {
            return;
        }
    }
}

/// Why a launch ends whose step was not taken.
fn unwritten(error: &SessionError) -> End {
    let reason = match error {
        SessionError::Store(_) => Reason::StoreFailed,
        _ => Reason::Internal,
    };
    End::new(reason, Chain(error).to_string())
}

/// Resolves when the link is gone; never when there is none.
async fn closed(link: Option<&Link>) {
    match link {
        Some(link) => link.closed().await,
        None => std::future::pending().await,
    }
}

impl Life {
    /// Brings the session up and watches it; returns why it has to end.
    async fn live(&mut self, start: Start) -> End {
        match self.bring_up_and_watch(start).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn bring_up_and_watch(&mut self, start: Start) -> Result<Infallible, End> {
        let (mut door, mut link) = match start {
            Start::Admitted => {
                let (door, link) = self.launch().await?;
                (door, Some(link))
            }
            Start::Claimed(warm) => self.settle_in(*warm).await?,
            Start::Found(found) => self.take_up(found).await?,
            Start::Restored => {
                return Err(End::new(
                    Reason::Restored,
                    "the state was restored from a backup, and this session's sandbox is no more",
                ));
            }
            Start::Broken => return Err(End::new(Reason::Internal, "a defect; see the log")),
        };
        loop {
            link = match link {
                link if self.session.status.phase == Phase::Paused => {
                    self.rest(&mut door, link).await?
                }
                Some(link) => self.watch(&mut door, link).await?,
                // A guest that lost the link dials again at once; one whose sandbox died does not.
                None => Some(self.linked_again(&mut door).await?),
            };
        }
    }

    /// Serves a session whose guest answers, until its link or its phase is another; the link then.
    async fn watch(&mut self, door: &mut Door, link: Link) -> Result<Option<Link>, End> {
        let sandbox = self.sandbox()?.clone();
        let mut watch = Watch::begin();
        while self.session.status.phase == Phase::Ready {
            // Also after a pause that came to nothing.
            self.link.send_replace(Some(link.clone()));
            let lease = &self.session.lease;
            let (house, reached) = (&self.house, &self.reached);
            let limits = &self.session.spec.limits;
            let busy = house.settings().busy_cpu_percent;
            let seen = |before: Option<&Usage>, usage: &Usage| {
                reached.used(usage, limits);
                reached.strained(house.runtime.strain(&sandbox));
                let is_busy = |before| busy_percent(before, usage) >= busy;
                if busy > 0 && before.is_some_and(is_busy) {
                    self.activity.touch();
                }
            };
            let turn = tokio::select! {
                biased;
                () = over(house, lease.ends_at) => Turn::Over(Reason::Deadline),
                () = link.closed() => Turn::Gone,
                end = volumes::lost(house, &self.session) => return Err(end),
                () = watch.look(&link, &self.looks, seen) => Turn::Gone,
                again = door.guest_again(&self.house, &sandbox) => Turn::Again(again),
                Some(wish) = self.wishes.recv() => Turn::Asked(wish),
                () = idle(&self.activity, lease) => Turn::Over(Reason::Idle),
                () = used(&self.house, &self.activity, lease) => Turn::Used,
                limit = self.reached.next() => Turn::Reached(limit),
            };
            match turn {
                Turn::Gone => {
                    self.link.send_replace(None);
                    link.close();
                    return Ok(None);
                }
                Turn::Again(again) => {
                    self.link.send_replace(None);
                    link.close();
                    return Ok(Some(again));
                }
                Turn::Over(reason) => self.time_is_over(&sandbox, reason).await?,
                Turn::Asked(wish) => self.obey(door, &sandbox, &mut None, wish).await?,
                Turn::Reached(limit) => self.record(limit).await,
                Turn::Used => {
                    self.session.lease.active_at = Some(self.house.clock.now());
                    if let Err(error) = self.put_down(None).await {
                        // The next step of use is written down again.
                        warn!(session = %self.session.id, error = %Chain(&error), "cannot write down that a session is used");
                    }
                }
            }
        }
        Ok(Some(link))
    }

    /// Writes down that a bound was reached. It has happened, so a record that cannot be written stops nothing.
    async fn record(&self, limit: Limit) {
        let event = AuditEvent::SessionLimit { limit };
        let id = Some(self.session.id);
        let written = self.house.audit.fact(&Principal::Daemon, id, event);
        if let Err(error) = written.await {
            warn!(session = %self.session.id, error = %Chain(&error), "cannot record that a limit was reached");
        }
        info!(session = %self.session.id, ?limit, "session reached a limit");
    }

    /// Waits until a session that is paused is woken; its link then. One that was paused before the daemon started has
    /// no link until then.
    async fn rest(&mut self, door: &mut Door, link: Option<Link>) -> Result<Option<Link>, End> {
        let sandbox = self.sandbox()?.clone();
        let mut link = link;
        while self.session.status.phase == Phase::Paused {
            let paused_at = self.session.lease.paused_at;
            let longest = self.house.settings().max_paused;
            let until = paused_at.unwrap_or(self.session.created_at).after(longest);
            let turn = tokio::select! {
                biased;
                () = over(&self.house, until) => {
                    return Err(End::new(Reason::Deadline, "it was paused for as long as it may be"));
                }
                // A sandbox that dies takes its link with it; podman is only asked where there is none.
                () = closed(link.as_ref()) => Turn::Gone,
                end = launch::death_of(&self.house, &sandbox), if link.is_none() => return Err(end),
                Some(wish) = self.wishes.recv() => Turn::Asked(wish),
            };
            match turn {
                Turn::Asked(wish) => self.obey(door, &sandbox, &mut link, wish).await?,
                _ => link = None,
            }
        }
        Ok(link)
    }

    /// The link of a guest that had lost it.
    async fn linked_again(&mut self, door: &mut Door) -> Result<Link, End> {
        let sandbox = self.sandbox()?.clone();
        let patience = self.house.settings().reattach_timeout;
        tokio::select! {
            biased;
            () = over(&self.house, self.session.lease.ends_at) => Err(End::new(Reason::Deadline, "its time was over")),
            link = door.await_guest(&self.house, &sandbox, patience) => link,
        }
    }

    fn sandbox(&self) -> Result<&SandboxId, End> {
        match &self.remains.sandbox {
            Traces::Known(sandbox) => Ok(sandbox),
            _ => Err(End::new(
                Reason::Internal,
                "a linked session without a sandbox",
            )),
        }
    }

    /// Launches a sandbox from the beginning.
    async fn launch(&mut self) -> Result<(Door, Link), End> {
        let house = Arc::clone(&self.house);
        let team = &self.session.spec.team;
        let Ok(turn) = house.launches.enter(team, Duration::MAX).await else {
            return Err(launch::stopping());
        };
        if self.session.status.phase == Phase::Pending {
            self.change(Event::Begin).await?;
        }
        self.remains.door = true;
        let mut door = Door::build(&house.link_root, self.session.id, self.session.spec.limits)
            .await
            .map_err(|error| launch::failed(&error))?;
        self.open_gate(&door.directory).await?;
        let directory = door.directory.clone();
        let mut spec = launch::spec(&house, &self.session, directory);
        let (warmth, edition) = house.warmth_of(&self.session).await;
        spec.warmth = warmth;
        let (sandbox, link) = loop {
            let traces = &mut self.remains.sandbox;
            let sandbox = launch::create(&house, spec.clone(), traces).await?;
            self.session.sandbox = Some(sandbox.clone());
            self.keep().await?;
            match launch::start(&house, &sandbox, &mut door).await {
                Ok(link) => break (sandbox, link),
                Err(end) => {
                    let edition = edition.as_ref();
                    spec = launch::without(&house, spec, edition, &sandbox, &mut door, end).await?;
                }
            }
        };
        // What a template waits for may take minutes, in which others can be launched.
        drop(turn);
        let restored = edition.filter(|_| matches!(spec.warmth, Warmth::Restored(_)));
        let link = self
            .open_up(&mut door, &sandbox, link, Before::Launched(restored))
            .await?;
        self.become_ready(Event::Linked).await?;
        Ok((door, link))
    }

    /// Takes over a sandbox that stood ready.
    async fn settle_in(&mut self, warm: Warm) -> Result<(Door, Option<Link>), End> {
        let Warm {
            sandbox,
            mut door,
            mut link,
            ..
        } = warm;
        self.session.sandbox = Some(sandbox.clone());
        self.open_gate(&door.directory).await?;
        if self.session.spec.setup.is_empty() && self.session.spec.volumes.is_empty() {
            self.become_ready(Event::Claimed).await?;
        } else {
            self.change(Event::Begin).await?;
            link = self
                .open_up(&mut door, &sandbox, link, Before::Warm)
                .await?;
            self.become_ready(Event::Linked).await?;
        }
        Ok((door, Some(link)))
    }

    /// Takes up what a former daemon left: adopts a running sandbox, launches again what had not
    /// come to run, ends what is gone.
    async fn take_up(&mut self, found: Vec<SandboxState>) -> Result<(Door, Option<Link>), End> {
        match self.session.status.phase {
            Phase::Pending | Phase::Starting | Phase::Ready | Phase::Paused => {}
            Phase::Stopping | Phase::Stopped | Phase::Failed => {
                // Its reason is in its status already; the first one stays.
                return Err(End::new(Reason::Internal, "stopping already"));
            }
        }
        let running = found
            .iter()
            .find(|state| state.phase == SandboxPhase::Running);
        if let (Some(sandbox), true) = (running, self.session.status.phase != Phase::Pending) {
            return self.adopt(sandbox.id.clone()).await;
        }
        if matches!(self.session.status.phase, Phase::Ready | Phase::Paused) {
            return Err(match found.first() {
                Some(dead) => {
                    launch::ended_with(&self.house, &dead.id, dead.exit_code.unwrap_or(-1))
                }
                None => End::new(
                    Reason::SandboxMissing,
                    "there was no sandbox to adopt: none outlives a restart of the machine, paused or not",
                ),
            });
        }
        let house = Arc::clone(&self.house);
        self.remains
            .clear(&house, self.session.id)
            .await
            .map_err(|error| launch::failed(&error))?;
        self.session.sandbox = None;
        let (door, link) = self.launch().await?;
        Ok((door, Some(link)))
    }

    async fn adopt(&mut self, sandbox: SandboxId) -> Result<(Door, Option<Link>), End> {
        let house = Arc::clone(&self.house);
        self.session.sandbox = Some(sandbox.clone());
        self.remains.sandbox = Traces::Known(sandbox.clone());
        let mut door = Door::reopen(&house.link_root, &self.session)
            .await
            .map_err(|error| End::new(Reason::GuestLost, format!("reopen the link: {error}")))?;
        self.open_gate(&door.directory).await?;
        if self.session.status.phase == Phase::Paused {
            // It may have been written down and not done, or woken and not written down.
            if let Err(error) = house.runtime.pause(&sandbox).await {
                warn!(session = %self.session.id, error = %Chain(&error), "a session that counts as paused may run");
            }
            info!(session = %self.session.id, sandbox = %sandbox, "adopted a paused session");
            return Ok((door, None));
        }
        let patience = house.settings().reattach_timeout;
        let mut link = door.await_guest(&house, &sandbox, patience).await?;
        if self.session.status.phase == Phase::Starting {
            link = self
                .open_up(&mut door, &sandbox, link, Before::Launched(None))
                .await?;
            self.become_ready(Event::Linked).await?;
        }
        info!(session = %self.session.id, sandbox = %sandbox, "adopted a running session");
        Ok((door, Some(link)))
    }

    /// Has done in the sandbox what the template wants to be done before the session is ready; the link that lives then.
    async fn open_up(
        &mut self,
        door: &mut Door,
        sandbox: &SandboxId,
        mut link: Link,
        before: Before,
    ) -> Result<Link, End> {
        volumes::attach(&self.house, &self.session, sandbox).await?;
        let spec = self.session.spec.clone();
        let is_warm = matches!(before, Before::Warm);
        let opener = Arc::clone(&self.house.opener);
        let mut opening = Opening::begin(self.session.id, &spec, is_warm, &opener);
        loop {
            let again = tokio::select! {
                biased;
                () = over(&self.house, self.session.lease.ends_at) => {
                    return Err(End::new(Reason::Deadline, "its time was over"));
                }
                settled = Box::pin(opening.settle(&link)) => match settled {
                    Ok(()) => break,
                    Err(Unready::Never(end)) => return Err(end),
                    Err(Unready::LinkLost) => None,
                },
                again = door.guest_again(&self.house, sandbox) => Some(again),
            };
            link.close();
            link = match again {
                Some(again) => again,
                None => self.linked_again(door).await?,
            };
        }
        if let (Before::Launched(Some(edition)), Some(false)) = (&before, opening.is_restored) {
            self.house.checkpoints.lose(edition);
        }
        // Nobody could use it until now.
        self.activity.touch();
        Ok(link)
    }

    /// Takes a step of a launch, which cannot go on without.
    async fn change(&mut self, event: Event) -> Result<(), End> {
        let taken = self.step(event).await;
        taken.map_err(|error| unwritten(&error))
    }

    /// Takes the step after which the session can be used. With it, its creation is complete in the record.
    async fn become_ready(&mut self, event: Event) -> Result<(), End> {
        self.session.ready_at = Some(self.house.clock.now());
        let taken = self.change(event).await;
        if taken.is_err() {
            self.session.ready_at = None;
        }
        taken
    }

    /// Writes the session down in the middle of a launch, which cannot go on without.
    async fn keep(&mut self) -> Result<(), End> {
        let kept = self.put_down(None).await;
        kept.map_err(|error| unwritten(&error))
    }

    /// Applies an event that only the runner itself can cause, writes the outcome down and publishes it. What cannot be
    /// written down did not happen.
    pub(super) async fn step(&mut self, event: Event) -> Result<(), SessionError> {
        let before = self.session.status.clone();
        match state::apply(&before, event) {
            Answer::Changed(status) => self.session.status = status,
            Answer::AlreadySo => return Ok(()),
            Answer::Denied { phase } => {
                error!(session = %self.session.id, %phase, "an impossible step was tried");
                return Err(SessionError::NotReady {
                    phase,
                    reason: before.reason,
                });
            }
        }
        let kept = self.put_down(Some(before.phase)).await;
        if kept.is_err() {
            self.session.status = before;
        }
        kept
    }

    /// Writes the session down, with the audit record of a phase change, then publishes it.
    pub(super) async fn put_down(&mut self, from: Option<Phase>) -> Result<(), SessionError> {
        self.write(from).await?;
        if from.is_some() {
            self.tell();
        }
        self.publish();
        Ok(())
    }

    async fn write(&mut self, from: Option<Phase>) -> Result<(), SessionError> {
        let mut records = Vec::new();
        if let Some(from) = from {
            let event = AuditEvent::SessionPhase {
                from,
                to: self.session.status.phase,
                reason: self.session.status.reason,
            };
            let id = Some(self.session.id);
            let log = &self.house.audit;
            let record = log.record(Stage::Fact, &Principal::Daemon, id, event);
            records.push(record.map_err(SessionError::Audit)?);
        }
        // In one transaction with what it tells of: neither a full disk nor a sudden end can come in between.
        let creation = self.intent.as_ref().zip(self.creation());
        let is_complete = creation.is_some();
        if let Some((intent, outcome)) = creation {
            let record = intent.outcome(outcome);
            records.push(record.map_err(SessionError::Audit)?);
        }
        self.house
            .store
            .update_session(self.session.clone(), records)
            .await
            .map_err(SessionError::Store)?;
        if is_complete {
            self.intent = None;
        }
        Ok(())
    }

    /// What became of the session's creation, as soon as that is known.
    fn creation(&self) -> Option<Outcome> {
        let session = &self.session;
        if session.ready_at.is_some() {
            return Some(Outcome::Ok { detail: None });
        }
        session.ended_at.map(|_| {
            let reason = session.status.reason;
            Outcome::Failed {
                code: reason.map_or("internal", Reason::as_str).to_owned(),
            }
        })
    }

    /// What is published of the session.
    pub(super) fn published(&self) -> watch::Receiver<Arc<Session>> {
        self.state.subscribe()
    }

    fn publish(&self) {
        self.state.send_replace(Arc::new(self.session.clone()));
    }

    /// Logs the phase that the session is in now.
    fn tell(&self) {
        let status = &self.session.status;
        info!(
            session = %self.session.id,
            phase = %status.phase,
            reason = status.reason.map(Reason::as_str),
            detail = status.message.as_deref(),
            "session {}", status.phase
        );
    }

    /// Ends the session: nothing of it is left when this returns.
    async fn tear_down(mut self, end: End) {
        self.link.send_replace(None);
        self.shut_gate().await;
        if let Some(sandbox) = &self.session.sandbox {
            self.reached.strained(self.house.runtime.strain(sandbox));
        }
        while let Some(limit) = self.reached.take() {
            self.record(limit).await;
        }
        let before = self.session.status.phase;
        let asked = Event::End {
            reason: end.reason,
            message: end.message,
        };
        if let Answer::Changed(status) = state::apply(&self.session.status, asked) {
            self.session.status = status;
            // A disk that is full must not keep a sandbox alive: go on, the last write says it all.
            if let Err(error) = self.write(Some(before)).await {
                warn!(session = %self.session.id, error = %Chain(&error), "cannot record that a session stops");
            }
            self.tell();
            self.publish();
        }
        let house = Arc::clone(&self.house);
        let mut pause = RETRY.0;
        while let Err(error) = self.remains.clear(&house, self.session.id).await {
            warn!(session = %self.session.id, error = %Chain(&error), "cannot clear a session up yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
        let before = self.session.status.phase;
        if let Answer::Changed(status) = state::apply(&self.session.status, Event::TornDown) {
            self.session.status = status;
        }
        self.session.sandbox = None;
        self.session.ended_at = Some(house.clock.now());
        let mut pause = RETRY.0;
        while let Err(error) = self.write(Some(before)).await {
            warn!(session = %self.session.id, error = %Chain(&error), "cannot record that a session ended yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
        self.tell();
        self.publish();
    }
}
