//! A session from its admission to its end: what is refused, what is recorded, who ends it.

use std::collections::BTreeMap;
use std::time::Duration;

use casemate::model::event::{AuditEvent, Outcome, Stage};
use casemate::model::sandbox::GIB;
use casemate::model::session::{Phase, Reason};
use casemate::runtime::fake::{FakeCall, FakeFailure};
use casemate::session::SessionError;
use casemate::session::gate::Refused;
use casemate::session::manager::{NewSession, Settings};

use crate::{Bench, PATIENCE};

fn named(name: &str) -> NewSession {
    NewSession {
        name: Some(name.parse().unwrap()),
        ..NewSession::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_and_leaves_nothing() {
    let bench = Bench::new();
    let session = bench.ready().await;
    assert_eq!(bench.doors().len(), 1);
    bench
        .sessions
        .handle(session.id)
        .unwrap()
        .link(PATIENCE)
        .await
        .unwrap();
    let ended = bench.end(&session).await;
    assert_eq!(ended.status.phase, Phase::Stopped);
    assert_eq!(ended.status.reason, Some(Reason::Client));
    assert_eq!(ended.sandbox, None);
    bench.nothing_is_left();
    let again = bench.end(&session).await;
    assert_eq!(again.ended_at, ended.ended_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_phase_is_recorded_with_the_creation_s_intent_and_outcome() {
    let bench = Bench::new();
    let session = bench.ready().await;
    bench.end(&session).await;
    let records = bench.audit().await;
    let phases: Vec<_> = records
        .iter()
        .filter_map(|record| match record.event {
            AuditEvent::SessionPhase { from, to, .. } => Some((from, to)),
            _ => None,
        })
        .collect();
    assert_eq!(
        phases,
        [
            (Phase::Pending, Phase::Starting),
            (Phase::Starting, Phase::Ready),
            (Phase::Ready, Phase::Stopping),
            (Phase::Stopping, Phase::Stopped),
        ]
    );
    assert_eq!(records[0].stage, Stage::Intent);
    let outcome = records
        .iter()
        .find(|record| record.stage == Stage::Outcome)
        .unwrap();
    assert_eq!(outcome.intent, Some(records[0].id));
    assert_eq!(outcome.outcome, Some(Outcome::Ok { detail: None }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_up_that_fails_is_tried_again() {
    let bench = Bench::new();
    let session = bench.ready().await;
    bench
        .runtime
        .fail(FakeCall::Remove, 1, FakeFailure::Unavailable);
    bench
        .runtime
        .fail(FakeCall::Remove, 2, FakeFailure::AnswerLost);
    let ended = bench.end(&session).await;
    assert_eq!(ended.status.phase, Phase::Stopped);
    assert_eq!(bench.runtime.calls(FakeCall::Remove), 3);
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_dies_or_vanishes_fails_its_session() {
    for vanish in [false, true] {
        let bench = Bench::new();
        let session = bench.ready().await;
        let sandbox = session.sandbox.clone().unwrap();
        if vanish {
            // Its processes go too, and with them the link.
            bench.runtime.die(&sandbox, 137);
            bench.runtime.vanish(&sandbox);
        } else {
            bench.runtime.die(&sandbox, 137);
        }
        let ended = bench.ended(&session).await;
        assert_eq!(ended.status.phase, Phase::Failed);
        assert_eq!(ended.status.reason, Some(Reason::SandboxDied));
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_its_time_is_over() {
    let bench = Bench::new();
    let new = NewSession {
        timeout_s: Some(1),
        ..NewSession::default()
    };
    let session = bench.try_create(new).await.unwrap();
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.phase, Phase::Stopped);
    assert_eq!(ended.status.reason, Some(Reason::Deadline));
    assert!(ended.ended_at.unwrap() >= ended.lease.ends_at);
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creates_with_one_name_exactly_one_wins() {
    let bench = Bench::new();
    let creates = (0..20).map(|_| bench.try_create(named("one")));
    let outcomes = futures_util::future::join_all(creates).await;
    let won: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().ok())
        .collect();
    assert_eq!(won.len(), 1);
    for lost in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(matches!(lost, SessionError::NameTaken(_)), "{lost}");
    }
    bench
        .sessions
        .end(won[0].id, Reason::Client, PATIENCE)
        .await
        .unwrap();
    bench.try_create(named("one")).await.unwrap();
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_granted_is_refused_before_anything_is_made() {
    let bench = Bench::new();
    let invalid = |field: &'static str, new: NewSession| {
        let bench = &bench;
        async move {
            match bench.try_create(new).await {
                Err(SessionError::Invalid { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    };
    let mut new = NewSession::default();
    new.limits.memory_bytes = Some(3 * GIB);
    invalid("limits.memory_bytes", new).await;
    let mut new = NewSession::default();
    new.limits.disk_bytes = Some(1);
    invalid("limits", new).await;
    let timeout_s = Some(121);
    invalid(
        "timeout_s",
        NewSession {
            timeout_s,
            ..NewSession::default()
        },
    )
    .await;
    let timeout_s = Some(0);
    invalid(
        "timeout_s",
        NewSession {
            timeout_s,
            ..NewSession::default()
        },
    )
    .await;
    let workdir = Some("relative".to_owned());
    invalid(
        "workdir",
        NewSession {
            workdir,
            ..NewSession::default()
        },
    )
    .await;
    let labels = (0..65).map(|n| (n.to_string(), String::new())).collect();
    invalid(
        "labels",
        NewSession {
            labels,
            ..NewSession::default()
        },
    )
    .await;
    let env = BTreeMap::from([("A=B".to_owned(), String::new())]);
    invalid(
        "env",
        NewSession {
            env,
            ..NewSession::default()
        },
    )
    .await;
    let template = Some("nope".parse().unwrap());
    let unknown = bench
        .try_create(NewSession {
            template,
            ..NewSession::default()
        })
        .await;
    assert!(matches!(unknown, Err(SessionError::UnknownTemplate(_))));
    assert_eq!(bench.runtime.calls(FakeCall::Create), 0);
    assert!(bench.audit().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_and_while_draining_no_session_is_admitted() {
    let mut bench = Bench::new();
    bench.config.max = 1;
    bench.config.queue_timeout = Duration::ZERO;
    bench.next_daemon();
    bench.ready().await;
    let full = bench.try_create(NewSession::default()).await;
    assert!(matches!(full, Err(SessionError::Full(Refused::Full))));
    bench.sessions.end_all(PATIENCE).await;
    bench.nothing_is_left();
    let late = bench.try_create(NewSession::default()).await;
    assert!(matches!(late, Err(SessionError::Draining)));
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_a_request_waits_for_the_next_place_and_a_repeated_one_does_not() {
    let mut bench = Bench::new();
    bench.config.max = 2;
    bench.config.max_of_team = 1;
    bench.next_daemon();
    let key = || Some(("once".to_owned(), [1; 32]));
    let (team, member) = (crate::team(), crate::member());
    let create = |key| {
        bench
            .sessions
            .create(&member, &team, NewSession::default(), key)
    };
    let (first, _) = create(key()).await.unwrap();
    assert_eq!(bench.sessions.load(), (1, 0));
    let (second, ended) = tokio::join!(create(None), async {
        while bench.sessions.load().1 == 0 {
            tokio::task::yield_now().await;
        }
        bench.end(&first).await
    });
    assert!(second.is_ok());
    assert_eq!(ended.status.phase, Phase::Stopped);

    bench.config.queue_timeout = Duration::ZERO;
    let settings = bench.sessions.settings();
    bench.sessions.reload(Settings {
        sessions: bench.config.clone(),
        templates: settings.templates.clone(),
    });
    let (again, repeated) = create(key()).await.unwrap();
    assert!(repeated);
    assert_eq!(again.id, first.id);
    assert!(matches!(
        create(None).await,
        Err(SessionError::Full(Refused::TeamFull))
    ));
    // Who waits no longer than that still finds a place that is there.
    bench.sessions.end_all(PATIENCE).await;
    assert_eq!(bench.sessions.load(), (0, 0));
}
