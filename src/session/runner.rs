//! One task owns one session, from its first step to its last.
//!
//! The task races three things, in this order: *leave* (the daemon stops and sandboxes stay), *end*
//! (somebody asked), *live* (launch or adopt, then watch). Whatever `live` was doing when it lost is
//! dropped; what it may have left, or under way, is in [`Remains`], which is updated before each step.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use casemate_link::daemon::Link;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::handle::RunnerEnds;
use super::launch::{self, Door, End, Remains, Traces};
use super::manager::House;
use super::ready::{Opening, Unready};
use super::state::{self, Answer, Event};
use super::usage::{LOOK_EVERY, Looks};
use crate::audit;
use crate::base::chain::Chain;
use crate::model::event::{AuditEvent, Outcome, Stage};
use crate::model::principal::Principal;
use crate::model::sandbox::{SandboxId, SandboxPhase, SandboxState};
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
    /// Left by a former daemon, with the containers that carry its label.
    Found(Vec<SandboxState>),
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
struct Life {
    house: Arc<House>,
    session: Session,
    state: watch::Sender<Arc<Session>>,
    link: watch::Sender<Option<Link>>,
    looks: Looks,
    remains: Remains,
    intent: Option<audit::Intent>,
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
            looks,
        } = ends;
        let leave = house.leave.clone();
        let remains = match start {
            Start::Admitted => Remains::nothing(),
            Start::Found(_) | Start::Broken => Remains::anything(),
        };
        let mut life = Life {
            house,
            session,
            state,
            link,
            looks,
            remains,
            intent,
        };
        let why = tokio::select! {
            biased;
            () = leave.cancelled() => return,
            why = asked_to_end(&mut end) => why,
            why = life.live(start) => why,
        };
        life.tear_down(why).await;
    }
}

/// Looks at what the sandbox uses, again and again. A guest that does not answer is looked at later.
async fn look(link: &Link, looks: &Looks) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Ok(usage) = link.usage().await {
            looks.add(usage);
        }
    }
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
            Start::Admitted => self.launch().await?,
            Start::Found(found) => self.take_up(found).await?,
            Start::Broken => return Err(End::new(Reason::Internal, "a defect; see the log")),
        };
        loop {
            let Traces::Known(sandbox) = &self.remains.sandbox else {
                return Err(End::new(
                    Reason::Internal,
                    "a linked session without a sandbox",
                ));
            };
            self.link.send_replace(Some(link.clone()));
            let again = tokio::select! {
                biased;
                end = self.deadline() => return Err(end),
                () = link.closed() => None,
                never = look(&link, &self.looks) => match never {},
                again = door.guest_again(&self.house, sandbox) => Some(again),
            };
            self.link.send_replace(None);
            link.close();
            if let Some(again) = again {
                link = again;
                continue;
            }
            // A guest that lost the link dials again at once; one whose sandbox died does not.
            let patience = self.house.settings().reattach_timeout;
            link = tokio::select! {
                biased;
                end = self.deadline() => return Err(end),
                link = door.await_guest(&self.house, sandbox, patience) => link?,
            };
        }
    }

    /// Launches a sandbox from the beginning.
    async fn launch(&mut self) -> Result<(Door, Link), End> {
        let house = Arc::clone(&self.house);
        let Ok(turn) = house.launches.acquire().await else {
            return Err(End::new(Reason::Operator, "casemated is stopping"));
        };
        if self.session.status.phase == Phase::Pending {
            self.change(Event::Begin).await?;
        }
        self.remains.door = true;
        let mut door = Door::build(&house.link_root, self.session.id)
            .await
            .map_err(|error| launch::failed(&error))?;
        let directory = door.directory.clone();
        let traces = &mut self.remains.sandbox;
        let sandbox = launch::create(&house, &self.session, directory, traces).await?;
        self.session.sandbox = Some(sandbox.clone());
        self.keep(None).await?;
        let link = launch::start(&house, &sandbox, &mut door).await?;
        // What a template waits for may take minutes, in which others can be launched.
        drop(turn);
        let link = self.open_up(&mut door, &sandbox, link).await?;
        self.session.ready_at = Some(self.house.clock.now());
        self.change(Event::Linked).await?;
        self.finish_intent(Outcome::Ok { detail: None }).await;
        Ok((door, link))
    }

    /// Takes up what a former daemon left: adopts a running sandbox, launches again what had not
    /// come to run, ends what is gone.
    async fn take_up(&mut self, found: Vec<SandboxState>) -> Result<(Door, Link), End> {
        match self.session.status.phase {
            Phase::Pending | Phase::Starting | Phase::Ready => {}
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
        if self.session.status.phase == Phase::Ready {
            return Err(match found.first() {
                Some(dead) => End::new(
                    Reason::SandboxDied,
                    format!(
                        "the sandbox ended with exit code {}",
                        dead.exit_code.unwrap_or(-1)
                    ),
                ),
                None => End::new(Reason::SandboxMissing, "there was no sandbox to adopt"),
            });
        }
        let house = Arc::clone(&self.house);
        self.remains
            .clear(&house, self.session.id)
            .await
            .map_err(|error| launch::failed(&error))?;
        self.session.sandbox = None;
        self.launch().await
    }

    async fn adopt(&mut self, sandbox: SandboxId) -> Result<(Door, Link), End> {
        let house = Arc::clone(&self.house);
        self.session.sandbox = Some(sandbox.clone());
        self.remains.sandbox = Traces::Known(sandbox.clone());
        let mut door = Door::reopen(&house.link_root, self.session.id)
            .await
            .map_err(|error| End::new(Reason::GuestLost, format!("reopen the link: {error}")))?;
        let patience = house.settings().reattach_timeout;
        let mut link = door.await_guest(&house, &sandbox, patience).await?;
        if self.session.status.phase == Phase::Starting {
            link = self.open_up(&mut door, &sandbox, link).await?;
            self.session.ready_at = Some(house.clock.now());
            self.change(Event::Linked).await?;
        }
        self.finish_intent(Outcome::Ok { detail: None }).await;
        info!(session = %self.session.id, sandbox = %sandbox, "adopted a running session");
        Ok((door, link))
    }

    /// Has done in the sandbox what the template wants to be done before the session is ready; the link that lives then.
    async fn open_up(
        &self,
        door: &mut Door,
        sandbox: &SandboxId,
        mut link: Link,
    ) -> Result<Link, End> {
        let opening = Opening::begin(&self.session.spec);
        loop {
            let again = tokio::select! {
                biased;
                end = self.deadline() => return Err(end),
                settled = opening.settle(&link) => match settled {
                    Ok(()) => return Ok(link),
                    Err(Unready::Never(end)) => return Err(end),
                    Err(Unready::LinkLost) => None,
                },
                again = door.guest_again(&self.house, sandbox) => Some(again),
            };
            link.close();
            let patience = self.house.settings().reattach_timeout;
            link = match again {
                Some(again) => again,
                None => door.await_guest(&self.house, sandbox, patience).await?,
            };
        }
    }

    /// Resolves when the session's time is over by the wall clock.
    async fn deadline(&self) -> End {
        loop {
            let left = self.session.ends_at.since(self.house.clock.now());
            if left.is_zero() {
                return End::new(Reason::Deadline, "its time was over");
            }
            tokio::time::sleep(left.min(CLOCK_LOOK)).await;
        }
    }

    /// Applies an event that only the runner itself can cause, keeps and publishes the outcome.
    async fn change(&mut self, event: Event) -> Result<(), End> {
        let before = self.session.status.phase;
        match state::apply(&self.session.status, event) {
            Answer::Changed(status) => self.session.status = status,
            Answer::AlreadySo => return Ok(()),
            Answer::Denied { phase } => {
                error!(session = %self.session.id, %phase, "an impossible step was tried");
                return Err(End::new(Reason::Internal, "a defect; see the log"));
            }
        }
        self.keep(Some(before)).await
    }

    /// Writes the session down, with the audit record of a phase change, then publishes it.
    async fn keep(&mut self, from: Option<Phase>) -> Result<(), End> {
        match self.write(from).await {
            Ok(()) => {
                if from.is_some() {
                    self.tell();
                }
                self.publish();
                Ok(())
            }
            Err(error) => Err(End::new(Reason::Internal, Chain(&error).to_string())),
        }
    }

    async fn write(&self, from: Option<Phase>) -> Result<(), super::SessionError> {
        let record = from
            .map(|from| {
                let event = AuditEvent::SessionPhase {
                    from,
                    to: self.session.status.phase,
                    reason: self.session.status.reason,
                };
                let id = Some(self.session.id);
                self.house
                    .audit
                    .record(Stage::Fact, &Principal::Daemon, id, event)
            })
            .transpose()
            .map_err(super::SessionError::Audit)?;
        self.house
            .store
            .update_session(self.session.clone(), record)
            .await
            .map_err(super::SessionError::Store)
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
        let code = self
            .session
            .status
            .reason
            .map_or("internal", Reason::as_str);
        self.finish_intent(Outcome::Failed {
            code: code.to_owned(),
        })
        .await;
        self.tell();
        self.publish();
    }

    /// Completes the audit record of the session's creation, once.
    async fn finish_intent(&mut self, outcome: Outcome) {
        if let Some(intent) = self.intent.take()
            && let Err(error) = intent.finish(outcome).await
        {
            warn!(session = %self.session.id, error = %Chain(&error), "cannot complete an audit record");
        }
    }
}
