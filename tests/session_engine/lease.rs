//! Deadlines, pausing and waking.

use std::time::Duration;

use casemate::model::egress::EgressRule;
use casemate::model::event::{AuditEvent, Outcome, Stage};
use casemate::model::lease::OnTimeout;
use casemate::model::session::{Phase, Reason, Session};
use casemate::runtime::fake::{FakeCall, FakeFailure};
use casemate::session::SessionError;
use casemate::session::handle::SessionHandle;
use casemate::session::manager::{NewSession, is_settled};
use casemate::session::wish::Change;
use futures_util::future::join_all;

use crate::{Bench, PATIENCE};

impl Bench {
    /// A session that is ready, and its handle.
    async fn with_lease(&self, new: NewSession) -> (Session, SessionHandle) {
        let session = self.try_create(new).await.unwrap();
        let session = self.until(&session, is_settled).await;
        assert_eq!(session.status.phase, Phase::Ready, "{:?}", session.status);
        let handle = self.sessions.handle(session.id).unwrap();
        ((*session).clone(), handle)
    }

    fn stands_still(&self, session: &Session) -> bool {
        self.runtime.is_paused(session.sandbox.as_ref().unwrap())
    }
}

fn phase(handle: &SessionHandle) -> (Phase, Option<Reason>) {
    let status = &handle.snapshot().status;
    (status.phase, status.reason)
}

async fn becomes(handle: &SessionHandle, phase: Phase) {
    let session = handle
        .wait_until(PATIENCE, |session| session.status.phase == phase)
        .await;
    assert_eq!(session.status.phase, phase);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_uses_a_paused_session_wakes_it_and_who_looks_does_not() {
    let bench = Bench::new();
    let (session, handle) = bench.with_lease(NewSession::default()).await;
    for _ in 0..2 {
        let paused = handle.pause(Reason::Client).await.unwrap();
        assert_eq!(paused.status.phase, Phase::Paused);
        assert!(paused.lease.paused_at.is_some());
    }
    assert_eq!(phase(&handle), (Phase::Paused, Some(Reason::Client)));
    assert!(bench.stands_still(&session));
    assert!(matches!(
        handle.watched().await,
        Err(SessionError::NotReady { .. })
    ));
    assert!(bench.stands_still(&session));

    // More than can be told at once that they wish the same.
    let guests = join_all((0..40).map(|_| handle.guest())).await;
    assert!(guests.iter().all(Result::is_ok));
    assert_eq!(phase(&handle), (Phase::Ready, None));
    assert!(!bench.stands_still(&session));
    assert_eq!(handle.snapshot().lease.paused_at, None);
    handle.resume(None).await.unwrap();

    // It had its link all the while.
    assert_eq!(bench.runtime.made(), 1);
    let phases = bench.audit().await;
    let phases: Vec<_> = phases
        .iter()
        .filter_map(|record| match &record.event {
            AuditEvent::SessionPhase { to, .. } => Some(*to),
            _ => None,
        })
        .collect();
    assert_eq!(
        phases,
        [Phase::Starting, Phase::Ready, Phase::Paused, Phase::Ready]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_uses_is_stopped_or_paused_and_one_that_is_used_is_not() {
    let bench = Bench::new();
    let idle = |on_timeout| NewSession {
        idle_timeout_s: Some(1),
        on_timeout,
        ..NewSession::default()
    };
    let (used, used_handle) = bench.with_lease(idle(OnTimeout::Stop)).await;
    let using = used_handle.guest().await.unwrap();
    let (stopped, _) = bench.with_lease(idle(OnTimeout::Stop)).await;
    let (paused, handle) = bench.with_lease(idle(OnTimeout::Pause)).await;

    let ended = bench.ended(&stopped).await;
    assert_eq!(
        (ended.status.phase, ended.status.reason),
        (Phase::Stopped, Some(Reason::Idle))
    );
    becomes(&handle, Phase::Paused).await;
    // It is written down first; who wishes the same waits until it is so.
    handle.pause(Reason::Client).await.unwrap();
    assert_eq!(phase(&handle), (Phase::Paused, Some(Reason::Idle)));
    assert!(bench.stands_still(&paused));
    drop(handle.guest().await.unwrap());
    becomes(&handle, Phase::Paused).await;

    assert_eq!(phase(&used_handle), (Phase::Ready, None));
    drop(using);
    let ended = bench.ended(&used).await;
    assert_eq!(ended.status.reason, Some(Reason::Idle));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_time_is_over_is_paused_where_it_asked_for_that_and_begins_anew() {
    let bench = Bench::new();
    let new = NewSession {
        timeout_s: Some(1),
        on_timeout: OnTimeout::Pause,
        ..NewSession::default()
    };
    let (session, handle) = bench.with_lease(new).await;
    becomes(&handle, Phase::Paused).await;
    assert_eq!(phase(&handle), (Phase::Paused, Some(Reason::Deadline)));
    let woken = handle.resume(Some(100)).await.unwrap();
    assert!(woken.lease.ends_at > session.lease.ends_at.after(Duration::from_secs(90)));
    for timeout_s in [0, 121] {
        let refused = handle.resume(Some(timeout_s)).await;
        assert!(matches!(refused, Err(SessionError::Invalid { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_paused_for_ever() {
    let mut bench = Bench::new();
    bench.config.max_paused = Duration::from_secs(1);
    bench.next_daemon();
    let (session, handle) = bench.with_lease(NewSession::default()).await;
    handle.pause(Reason::Client).await.unwrap();
    let ended = bench.ended(&session).await;
    assert_eq!(
        (ended.status.phase, ended.status.reason),
        (Phase::Stopped, Some(Reason::Deadline))
    );
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_paused_goes_on_and_what_may_be_paused_can_be_woken() {
    for (failure, stays) in [
        (FakeFailure::Refused, Phase::Ready),
        (FakeFailure::Unavailable, Phase::Ready),
        (FakeFailure::AnswerLost, Phase::Ready),
    ] {
        let bench = Bench::new();
        bench.runtime.fail(FakeCall::Pause, 1, failure);
        let (session, handle) = bench.with_lease(NewSession::default()).await;
        let refused = handle.pause(Reason::Client).await;
        assert!(matches!(refused, Err(SessionError::Runtime(_))));
        assert_eq!(phase(&handle), (stays, None), "{failure:?}");
        assert!(!bench.stands_still(&session));
        handle.guest().await.unwrap();
    }
    // Nobody can tell: it is taken for paused until somebody wakes it.
    let bench = Bench::new();
    bench
        .runtime
        .fail(FakeCall::Pause, 1, FakeFailure::AnswerLost);
    bench
        .runtime
        .fail(FakeCall::Resume, 1, FakeFailure::Unavailable);
    let (session, handle) = bench.with_lease(NewSession::default()).await;
    handle.pause(Reason::Client).await.unwrap_err();
    assert_eq!(phase(&handle).0, Phase::Paused);
    assert!(bench.stands_still(&session));
    handle.guest().await.unwrap();
    assert!(!bench.stands_still(&session));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_finds_a_paused_session_paused_and_wakes_it() {
    let mut bench = Bench::new();
    let (session, handle) = bench.with_lease(NewSession::default()).await;
    handle.pause(Reason::Client).await.unwrap();
    bench.sessions.leave_all(PATIENCE).await;
    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    let handle = bench.sessions.handle(session.id).unwrap();
    assert_eq!(phase(&handle), (Phase::Paused, Some(Reason::Client)));
    handle.guest().await.unwrap();
    assert_eq!(phase(&handle), (Phase::Ready, None));
    assert_eq!(bench.runtime.made(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_that_is_gone_or_dies_ends_its_session() {
    let mut bench = Bench::new();
    let (gone, handle) = bench.with_lease(NewSession::default()).await;
    handle.pause(Reason::Client).await.unwrap();
    let (dies, handle) = bench.with_lease(NewSession::default()).await;
    handle.pause(Reason::Client).await.unwrap();
    bench.runtime.die(dies.sandbox.as_ref().unwrap(), 137);
    let ended = bench.ended(&dies).await;
    assert_eq!(ended.status.reason, Some(Reason::SandboxDied));
    bench.sessions.leave_all(PATIENCE).await;
    bench.runtime.vanish(gone.sandbox.as_ref().unwrap());
    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    let ended = bench.ended(&gone).await;
    assert_eq!(ended.status.reason, Some(Reason::SandboxMissing));
    assert!(ended.status.message.as_ref().unwrap().contains("paused"));
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_interrupts_a_pause_and_deadlines_change() {
    let bench = Bench::new();
    let (session, handle) = bench.with_lease(NewSession::default()).await;
    let change = Change {
        timeout_s: Some(120),
        idle_timeout_s: Some(1),
        on_timeout: Some(OnTimeout::Pause),
        labels: Some([("a".to_owned(), "b".to_owned())].into()),
        egress: Some(
            [(
                "mine".parse().unwrap(),
                EgressRule::allowing(["a.org".parse().unwrap()]),
            )]
            .into(),
        ),
    };
    let changed = handle.change(change).await.unwrap();
    assert!(changed.lease.ends_at > session.lease.ends_at.after(Duration::from_secs(50)));
    assert_eq!(changed.spec.labels["a"], "b");
    let kept = bench.store.session(session.id).await.unwrap().unwrap();
    assert_eq!(
        (kept.lease, kept.spec.labels, kept.spec.egress.own.clone()),
        (
            changed.lease.clone(),
            changed.spec.labels.clone(),
            changed.spec.egress.own.clone()
        )
    );
    assert_eq!(kept.spec.egress.own.map(|rules| rules.len()), Some(1));
    becomes(&handle, Phase::Paused).await;
    // Its time stands still.
    let refused = handle
        .change(Change {
            timeout_s: Some(10),
            ..Change::default()
        })
        .await;
    assert!(matches!(refused, Err(SessionError::NotReady { .. })));
    let never_idle = Change {
        idle_timeout_s: Some(0),
        ..Change::default()
    };
    assert_eq!(
        handle
            .change(never_idle)
            .await
            .unwrap()
            .lease
            .idle_timeout_s,
        None
    );
    handle.guest().await.unwrap();

    bench.runtime.fail(FakeCall::Pause, 1, FakeFailure::Hangs);
    // While podman is silent, wishes wait, and no more than a few.
    let wishes = join_all((0..20).map(|_| handle.pause(Reason::Client)));
    let asked = bench.runtime.calls(FakeCall::Pause);
    let end = async {
        bench.asked_again(FakeCall::Pause, asked).await;
        bench
            .sessions
            .end(session.id, Reason::Client, PATIENCE)
            .await
            .unwrap()
    };
    let (answers, ended) = tokio::join!(wishes, end);
    let overloaded = |answer: &Result<_, _>| matches!(answer, Err(SessionError::Overloaded));
    assert!(answers.iter().any(overloaded) && !answers.iter().all(overloaded));
    assert_eq!(ended.status.phase, Phase::Stopped);
    bench.nothing_is_left();
}

/// Breaks a table for whoever changes it, until it is mended.
struct BrokenStore(rusqlite::Connection);

impl BrokenStore {
    fn of(bench: &Bench) -> Self {
        Self::when(bench, "TRUE")
    }

    /// Only for changes of a session of this kind.
    fn when(bench: &Bench, condition: &str) -> Self {
        Self::on(bench, "UPDATE ON sessions", condition)
    }

    fn on(bench: &Bench, what: &str, condition: &str) -> Self {
        let db = rusqlite::Connection::open(bench.directory.path().join("state.db")).unwrap();
        db.busy_timeout(PATIENCE).unwrap();
        db.execute_batch(&format!(
            "CREATE TRIGGER broken BEFORE {what} WHEN {condition}
             BEGIN SELECT RAISE(ABORT, 'broken'); END"
        ))
        .unwrap();
        Self(db)
    }

    fn mend(self) {
        self.0.execute_batch("DROP TRIGGER broken").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_creation_ended_is_in_the_record_with_what_ended_it() {
    let bench = Bench::new();
    let outcome = "NEW.kind = 'session.create' AND NEW.stage = 'outcome'";
    let broken = BrokenStore::on(&bench, "INSERT ON audit", outcome);
    let session = bench.try_create(NewSession::default()).await.unwrap();
    // What cannot be recorded is not done: it is never ready, and does not count as ended before that is recorded either.
    let stopping = |session: &Session| session.status.phase == Phase::Stopping;
    bench.until(&session, stopping).await;
    broken.mend();
    let ended = bench.ended(&session).await;
    assert_eq!(
        (ended.status.phase, ended.status.reason, ended.ready_at),
        (Phase::Failed, Some(Reason::StoreFailed), None)
    );
    let outcomes: Vec<_> = bench
        .audit()
        .await
        .into_iter()
        .filter(|record| record.stage == Stage::Outcome)
        .map(|record| (record.session, record.outcome))
        .collect();
    let code = Reason::StoreFailed.as_str().to_owned();
    let failed = Some(Outcome::Failed { code });
    assert_eq!(outcomes, [(Some(session.id), failed)]);
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_cannot_be_written_down_fails_and_says_so() {
    let bench = Bench::new();
    let broken = BrokenStore::when(&bench, "NEW.phase = 'starting'");
    let session = bench.try_create(NewSession::default()).await.unwrap();
    let ended = bench
        .until(&session, |session| session.ended_at.is_some())
        .await;
    assert_eq!(
        (ended.status.phase, ended.status.reason),
        (Phase::Failed, Some(Reason::StoreFailed))
    );
    broken.mend();
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_down_did_not_happen() {
    let bench = Bench::new();
    let (session, handle) = bench.with_lease(NewSession::default()).await;
    let change = || Change {
        timeout_s: Some(120),
        idle_timeout_s: Some(30),
        labels: Some([("a".to_owned(), "b".to_owned())].into()),
        ..Change::default()
    };
    let store_fails = |answer: Result<_, SessionError>| match answer {
        Err(SessionError::Store(_)) => {}
        other => panic!("{other:?}"),
    };

    let broken = BrokenStore::of(&bench);
    store_fails(handle.change(change()).await);
    store_fails(handle.resume(Some(100)).await);
    store_fails(handle.pause(Reason::Client).await);
    assert!(!bench.stands_still(&session));
    assert_eq!(*handle.snapshot(), session);
    broken.mend();
    handle.guest().await.unwrap();

    let paused = handle.pause(Reason::Client).await.unwrap();
    let broken = BrokenStore::of(&bench);
    store_fails(handle.resume(None).await);
    assert!(handle.guest().await.is_err());
    assert_eq!(handle.snapshot(), paused);
    assert!(bench.stands_still(&session));
    broken.mend();

    handle.guest().await.unwrap();
    let changed = handle.change(change()).await.unwrap();
    let kept = bench.store.session(session.id).await.unwrap().unwrap();
    assert_eq!(kept.lease, changed.lease);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_woken_or_given_an_idle_time_counts_as_used_then() {
    let bench = Bench::new();
    let (session, handle) = bench.with_lease(NewSession::default()).await;
    assert_eq!(session.lease.active_at, None);
    let change = Change {
        idle_timeout_s: Some(60),
        ..Change::default()
    };
    let given = handle.change(change).await.unwrap().lease.active_at;
    assert!(given >= Some(session.created_at), "{given:?}");
    handle.pause(Reason::Client).await.unwrap();
    let paused_at = handle.snapshot().lease.paused_at;
    handle.resume(None).await.unwrap();
    let woken = handle.snapshot().lease.active_at;
    assert!(woken >= paused_at, "{woken:?} is before {paused_at:?}");
    let kept = bench.store.session(session.id).await.unwrap().unwrap();
    assert_eq!(kept.lease.active_at, woken);
}
