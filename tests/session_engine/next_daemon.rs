//! What the daemon after this one finds: it adopts, begins again, finishes, or removes.

use std::collections::BTreeMap;

use casemate::model::sandbox::{Limits, SandboxSpec};
use casemate::model::session::{Phase, Reason, Session};
use casemate::model::template::TemplateSpec;
use casemate::runtime::SandboxRuntime;
use casemate::runtime::fake::{FakeCall, FakeFailure, FakeRuntime};
use casemate::session::manager::{Settings, is_settled};

use crate::{Bench, IMAGE, PATIENCE, guest, of, template};

impl Bench {
    /// A sandbox and a link directory of a session that the store does not know, and a token of another.
    async fn leave_strange_things(&self) {
        let stranger = casemate::base::id::SessionId::from_bytes([9; 16]);
        let orphan = SandboxSpec {
            installation: self.store.installation(),
            session: stranger,
            image: IMAGE,
            limits: Limits::default(),
            allow_root: false,
            hostname: "orphan".into(),
            link_dir: self
                .directory
                .path()
                .join("link")
                .join(stranger.to_string()),
            volumes_dir: "/nowhere".into(),
            warmth: casemate::model::sandbox::Warmth::None,
        };
        std::fs::create_dir(&orphan.link_dir).unwrap();
        std::fs::write(orphan.link_dir.with_added_extension("token"), "stale").unwrap();
        // Of another there is only the token.
        let other = casemate::base::id::SessionId::from_bytes([8; 16]);
        let other = self.directory.path().join("link").join(other.to_string());
        std::fs::write(other.with_added_extension("token"), "").unwrap();
        self.runtime.create(&orphan).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_adopts_what_runs() {
    let mut bench = Bench::new();
    let session = bench.ready().await;
    bench.sessions.leave_all(PATIENCE).await;
    assert_eq!(bench.runtime.count(), 1);
    bench.next_daemon();
    let found = bench.sessions.reconcile().await.unwrap();
    assert_eq!(
        (found.taken_up, found.orphans_removed, found.doors_removed),
        (1, 0, 0)
    );
    let handle = bench.sessions.handle(session.id).unwrap();
    handle.link(PATIENCE).await.unwrap();
    assert_eq!(handle.snapshot().sandbox, session.sandbox);
    assert_eq!(handle.snapshot().status, session.status);
    bench.end(&session).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_fails_what_is_gone_and_removes_what_nobody_owns() {
    let mut bench = Bench::new();
    let gone = bench.ready().await;
    let dead = bench.ready().await;
    bench.sessions.leave_all(PATIENCE).await;
    bench.runtime.vanish(gone.sandbox.as_ref().unwrap());
    bench.runtime.die(dead.sandbox.as_ref().unwrap(), 9);
    bench.leave_strange_things().await;
    bench.next_daemon();
    let found = bench.sessions.reconcile().await.unwrap();
    assert_eq!(
        (found.taken_up, found.orphans_removed, found.doors_removed),
        (2, 1, 2)
    );
    let gone = bench.ended(&gone).await;
    assert_eq!(gone.status.reason, Some(Reason::SandboxMissing));
    let dead = bench.ended(&dead).await;
    assert_eq!(dead.status.reason, Some(Reason::SandboxDied));
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_a_crash_interrupted_is_begun_again() {
    // At each of these steps the daemon is killed; runners that hang there stand for it.
    for call in [FakeCall::Create, FakeCall::Start] {
        let mut bench = Bench::new();
        bench.runtime.fail(call, 1, FakeFailure::Hangs);
        let session = bench.create().await;
        bench.asked(call).await;
        bench.sessions.leave_all(PATIENCE).await;
        bench.next_daemon();
        bench.sessions.reconcile().await.unwrap();
        let settled = bench.until(&session, is_settled).await;
        assert_eq!(
            settled.status.phase,
            Phase::Ready,
            "{call:?} {:?}",
            settled.status
        );
        assert_eq!(bench.runtime.count(), 1);
        assert_eq!(bench.doors().len(), 1);
        bench.end(&session).await;
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_the_word_on_root_that_its_template_had_when_it_began() {
    for allow_root in [false, true] {
        let (asked, seen) = std::sync::mpsc::channel();
        let asked = std::sync::Mutex::new(asked);
        let hook = move |spec: &SandboxSpec| {
            asked.lock().unwrap().send(spec.allow_root).unwrap();
            guest(spec)
        };
        let mut bench = Bench::with(FakeRuntime::new([IMAGE]).with_start_hook(Box::new(hook)));
        let settings = |allow_root| Settings {
            sessions: bench.config.clone(),
            templates: BTreeMap::from([(
                "base".parse().unwrap(),
                of(TemplateSpec {
                    allow_root,
                    ..template().spec
                }),
            )]),
        };
        let (then, now) = (settings(allow_root), settings(!allow_root));
        bench.sessions.reload(then);
        bench.runtime.fail(FakeCall::Create, 1, FakeFailure::Hangs);
        let session = bench.create().await;
        bench.asked(FakeCall::Create).await;
        bench.sessions.leave_all(PATIENCE).await;
        // The next daemon has to build the sandbox, and its template says otherwise.
        bench.next_daemon();
        bench.sessions.reload(now);
        bench.sessions.reconcile().await.unwrap();
        let settled = bench.until(&session, is_settled).await;
        assert_eq!(settled.status.phase, Phase::Ready, "{settled:?}");
        assert_eq!(settled.spec.allow_root, allow_root);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [allow_root]);
        bench.sessions.end_all(PATIENCE).await;
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_a_crash_interrupted_is_finished_with_its_own_reason() {
    let mut bench = Bench::new();
    let session = bench.ready().await;
    bench.sessions.leave_all(PATIENCE).await;
    let mut stopping = Session::clone(&session);
    stopping.status.phase = Phase::Stopping;
    stopping.status.reason = Some(Reason::Operator);
    bench
        .store
        .update_session(stopping, Vec::new())
        .await
        .unwrap();
    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.phase, Phase::Stopped);
    assert_eq!(ended.status.reason, Some(Reason::Operator));
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_installation_s_sandbox_is_not_touched() {
    let bench = Bench::new();
    let theirs = SandboxSpec {
        installation: casemate::base::id::InstallationId::from_bytes([5; 16]),
        session: casemate::base::id::SessionId::from_bytes([5; 16]),
        image: IMAGE,
        limits: Limits::default(),
        allow_root: false,
        hostname: "theirs".into(),
        link_dir: bench.directory.path().to_owned(),
        volumes_dir: "/nowhere".into(),
        warmth: casemate::model::sandbox::Warmth::None,
    };
    bench.runtime.create(&theirs).await.unwrap();
    let found = bench.sessions.reconcile().await.unwrap();
    assert_eq!(found.orphans_removed, 0);
    assert_eq!(bench.runtime.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_owns_is_removed_while_sessions_live_and_what_is_only_left_alone_is_not() {
    let mut bench = Bench::new();
    let nothing = bench.sessions.sweep().await.unwrap();
    assert_eq!((nothing.orphans_removed, nothing.doors_removed), (0, 0));
    let ready = bench.ready().await;
    bench.leave_strange_things().await;
    assert_eq!(bench.runtime.count(), 2);
    let found = bench.sessions.sweep().await.unwrap();
    assert_eq!((found.orphans_removed, found.doors_removed), (1, 2));
    assert_eq!((bench.runtime.count(), bench.doors().len()), (1, 1));
    bench
        .sessions
        .handle(ready.id)
        .unwrap()
        .guest()
        .await
        .unwrap();
    // Without a runner it is still in the store.
    bench.sessions.leave_all(PATIENCE).await;
    let found = bench.sessions.sweep().await.unwrap();
    assert_eq!((found.orphans_removed, found.doors_removed), (0, 0));
    bench.next_daemon();
    assert_eq!(bench.sessions.reconcile().await.unwrap().taken_up, 1);
    bench.end(&ready).await;
    // A runtime that cannot be asked is asked again later.
    bench
        .runtime
        .fail(FakeCall::List, 1, FakeFailure::Unavailable);
    bench.sessions.sweep().await.unwrap_err();
    bench.sessions.sweep().await.unwrap();
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_that_cannot_be_removed_keeps_nothing_else() {
    let mut bench = Bench::new();
    let ready = bench.ready().await;
    bench.leave_strange_things().await;
    let tidied = bench.runtime.calls(FakeCall::Tidy);
    bench
        .runtime
        .fail(FakeCall::Remove, 1, FakeFailure::Refused);
    bench.sessions.sweep().await.unwrap_err();
    assert_eq!((bench.runtime.count(), bench.doors().len()), (2, 1));
    assert_eq!(bench.runtime.calls(FakeCall::Tidy), tidied + 1);
    // Nor does it keep the next daemon from its sessions.
    bench.sessions.leave_all(PATIENCE).await;
    bench
        .runtime
        .fail(FakeCall::Remove, 1, FakeFailure::Refused);
    bench.next_daemon();
    let found = bench.sessions.reconcile().await.unwrap();
    assert_eq!((found.taken_up, found.orphans_removed), (1, 0));
    // It is found again.
    let found = bench.sessions.sweep().await.unwrap();
    assert_eq!((found.orphans_removed, bench.runtime.count()), (1, 1));
    // What only the runtime can remove is asked for each time, and its failure is told.
    bench
        .runtime
        .fail(FakeCall::Tidy, 1, FakeFailure::Unavailable);
    bench.sessions.sweep().await.unwrap_err();
    bench.end(&ready).await;
    bench.nothing_is_left();
}
