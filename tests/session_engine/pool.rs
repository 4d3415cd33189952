//! Sandboxes that stand ready: claimed once, made again, and nobody's when the daemon is gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use casemate::base::clock::Timestamp;
use casemate::model::sandbox::{GIB, WantedLimits};
use casemate::model::session::{Phase, Reason, Session};
use casemate::model::template::Precondition;
use casemate::model::template::TemplateSpec;
use casemate::runtime::fake::{FakeCall, FakeFailure};
use casemate::session::manager::{NewSession, Settings, is_settled};
use casemate::store::NewTemplate;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::{Bench, of, team, template};

/// The task that fills the shelves, until it is told to stop.
pub struct Keeper(pub CancellationToken, tokio::task::JoinHandle<()>);

impl Keeper {
    pub async fn stop(self) {
        self.0.cancel();
        self.1.await.unwrap();
    }
}

impl Bench {
    /// Sandboxes of the template stand ready from now on.
    pub fn pooled(&self, version: u32, spec: TemplateSpec) {
        let mut template = of(spec);
        template.version = version;
        self.sessions.reload(Settings {
            sessions: self.config.clone(),
            templates: [("base".parse().unwrap(), template)].into(),
        });
    }

    pub fn keeper(&self) -> Keeper {
        let stop = CancellationToken::new();
        let keeping = self.sessions.clone().keep_warm(stop.clone());
        Keeper(stop, tokio::spawn(keeping))
    }

    pub async fn stand_ready(&self, count: usize) {
        let standing = async {
            while self.sessions.warm() != count {
                tokio::task::yield_now().await;
            }
        };
        let standing = tokio::time::timeout(crate::PATIENCE, standing).await;
        assert!(standing.is_ok(), "{} stand ready", self.sessions.warm());
    }

    async fn brought_up(&self, new: NewSession) -> Session {
        let session = self.try_create(new).await.unwrap();
        let session = self.until(&session, is_settled).await;
        assert_eq!(session.status.phase, Phase::Ready, "{:?}", session.status);
        (*session).clone()
    }
}

fn pool_of(count: u32) -> TemplateSpec {
    TemplateSpec {
        pool: count,
        ..template().spec
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_leaves_nothing_ready_though_podman_fails_at_first() {
    let bench = Bench::new();
    bench.pooled(1, pool_of(1));
    let keeper = bench.keeper();
    bench.stand_ready(1).await;
    for nth in 1..=2 {
        bench
            .runtime
            .fail(FakeCall::Remove, nth, FakeFailure::Unavailable);
    }
    keeper.stop().await;
    assert_eq!(bench.runtime.count(), 0);
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_have_a_sandbox_each_and_the_shelf_is_filled_again() {
    let bench = Bench::new();
    bench.pooled(1, pool_of(3));
    let keeper = bench.keeper();
    bench.stand_ready(3).await;
    assert_eq!(bench.runtime.count(), 3);
    let sessions = join_all((0..6).map(|_| bench.brought_up(NewSession::default()))).await;
    let sandboxes: BTreeSet<_> = sessions
        .iter()
        .map(|session| session.sandbox.clone().unwrap())
        .collect();
    assert_eq!(sandboxes.len(), 6);
    // Those that were claimed were ready at once; the generation tells the steps.
    let claimed = sessions.iter().filter(|s| s.status.generation == 2).count();
    assert!(claimed >= 3, "{claimed} were claimed");
    for session in &sessions {
        let handle = bench.sessions.handle(session.id).unwrap();
        handle.guest().await.unwrap();
    }
    bench.stand_ready(3).await;
    for session in &sessions {
        assert_eq!(bench.end(session).await.status.reason, Some(Reason::Client));
    }
    assert_eq!(bench.sessions.sweep().await.unwrap().orphans_removed, 0);
    assert_eq!(bench.runtime.count(), 3);
    keeper.stop().await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_something_else_has_it_made() {
    let bench = Bench::new();
    bench.pooled(1, pool_of(1));
    let keeper = bench.keeper();
    bench.stand_ready(1).await;
    let named = NewSession {
        name: Some("mine".parse().unwrap()),
        ..NewSession::default()
    };
    let large = NewSession {
        limits: WantedLimits {
            memory_bytes: Some(2 * GIB),
            ..WantedLimits::default()
        },
        ..NewSession::default()
    };
    for new in [named, large] {
        assert_eq!(bench.brought_up(new).await.status.generation, 3);
        assert_eq!(bench.sessions.warm(), 1);
    }
    assert_eq!(
        bench
            .brought_up(NewSession::default())
            .await
            .status
            .generation,
        2
    );
    keeper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_and_a_dead_guest_are_thrown_out() {
    let bench = Bench::new();
    bench.pooled(1, pool_of(2));
    let keeper = bench.keeper();
    bench.stand_ready(2).await;
    let made = bench.runtime.made();
    bench.pooled(2, pool_of(1));
    // The old ones go at the next look; no session of the new version has one of them before.
    let session = bench.brought_up(NewSession::default()).await;
    assert_eq!(
        (session.status.generation, session.spec.template_version),
        (3, 2)
    );
    let replaced = async {
        while bench.runtime.made() < made + 2 || bench.runtime.count() != 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::PATIENCE, replaced)
        .await
        .unwrap();
    bench.end(&session).await;
    keeper.stop().await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_orphans_that_the_next_daemon_removes() {
    let mut bench = Bench::new();
    bench.pooled(1, pool_of(2));
    let keeper = bench.keeper();
    bench.stand_ready(2).await;
    let claimed = bench.brought_up(NewSession::default()).await;
    bench.stand_ready(2).await;
    // Killed: nothing is cleared up.
    keeper.1.abort();
    bench.sessions.leave_all(crate::PATIENCE).await;
    bench.next_daemon();
    let found = bench.sessions.reconcile().await.unwrap();
    assert_eq!(
        (found.taken_up, found.orphans_removed, found.doors_removed),
        (1, 2, 2)
    );
    let handle = bench.sessions.handle(claimed.id).unwrap();
    handle.guest().await.unwrap();
    bench.end(&claimed).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_is_tried_again_later_and_leaves_nothing() {
    let bench = Bench::new();
    bench.runtime.fail(FakeCall::Start, 1, FakeFailure::Refused);
    bench.pooled(1, pool_of(1));
    let keeper = bench.keeper();
    bench.asked(FakeCall::Start).await;
    let cleared = async {
        while bench.runtime.count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::PATIENCE, cleared)
        .await
        .unwrap();
    // Sessions are made as ever meanwhile.
    let session = bench.brought_up(NewSession::default()).await;
    assert_eq!(session.status.generation, 3);
    bench.end(&session).await;
    keeper.stop().await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn shelves_are_filled_no_faster_than_is_said() {
    let mut bench = Bench::new();
    bench.config.pool_starts_per_s = 10;
    bench.pooled(1, pool_of(3));
    let began = Instant::now();
    let keeper = bench.keeper();
    bench.stand_ready(3).await;
    // Two times between three starts.
    assert!(began.elapsed() >= Duration::from_millis(200));
    keeper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_s_own_template_has_a_shelf_too() {
    let bench = Bench::new();
    let new = |pool| NewTemplate {
        team: team(),
        name: "own".parse().unwrap(),
        spec: pool_of(pool),
        precondition: Precondition::None,
        max: 8,
        by: "test".into(),
        at: Timestamp::from_millis(0),
    };
    bench.store.put_template(new(2)).await.unwrap();
    let keeper = bench.keeper();
    bench.stand_ready(2).await;
    let own = NewSession {
        template: Some("own".parse().unwrap()),
        ..NewSession::default()
    };
    let session = bench.brought_up(own).await;
    assert_eq!(session.spec.template.as_str(), "own");
    bench.stand_ready(2).await;
    assert_eq!(
        bench.runtime.made(),
        3,
        "one was claimed, and one made for it"
    );
    bench.store.put_template(new(0)).await.unwrap();
    bench.stand_ready(0).await;
    keeper.stop().await;
}
