//! A launch: whichever step fails, hangs or loses its answer, nothing is left.

use std::time::Duration;

use casemate::model::event::Outcome;
use casemate::model::session::{Phase, Reason};
use casemate::runtime::fake::{FakeCall, FakeFailure, FakeRuntime};
use casemate::session::launch::End;

use crate::{Bench, IMAGE};

fn by_client() -> End {
    End {
        reason: Reason::Client,
        message: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_step_of_a_launch_fails_nothing_is_left() {
    let failures = [
        (FakeCall::Create, FakeFailure::Unavailable),
        (FakeCall::Create, FakeFailure::AnswerLost),
        (FakeCall::Create, FakeFailure::Refused),
        (FakeCall::Create, FakeFailure::NotAsAsked),
        (FakeCall::Start, FakeFailure::Unavailable),
        (FakeCall::Start, FakeFailure::AnswerLost),
        (FakeCall::Start, FakeFailure::Refused),
    ];
    for (call, failure) in failures {
        let bench = Bench::new();
        bench.runtime.fail(call, 1, failure);
        let session = bench.create().await;
        let ended = bench.ended(&session).await;
        assert_eq!(ended.status.phase, Phase::Failed, "{call:?} {failure:?}");
        // Who can mend it: whoever waits for podman, or an operator.
        let reason = match failure {
            FakeFailure::Unavailable | FakeFailure::AnswerLost => Reason::RuntimeUnavailable,
            _ => Reason::LaunchFailed,
        };
        assert_eq!(ended.status.reason, Some(reason), "{call:?} {failure:?}");
        assert!(ended.status.message.is_some());
        bench.nothing_is_left();
        let records = bench.audit().await;
        let outcome = records.iter().find_map(|record| record.outcome.clone());
        let code = reason.as_str().to_owned();
        assert_eq!(
            outcome,
            Some(Outcome::Failed { code }),
            "{call:?} {failure:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_dials_fails_the_launch_with_its_last_words() {
    let runtime = FakeRuntime::new([IMAGE]).with_start_hook(Box::new(|_| Box::new(())));
    let mut bench = Bench::with(runtime);
    bench.config.link_timeout = Duration::from_millis(200);
    bench.next_daemon();
    let session = bench.create().await;
    let starting = bench
        .until(&session, |session| session.sandbox.is_some())
        .await;
    bench.runtime.say(
        starting.sandbox.as_ref().unwrap(),
        "I have lost\x1b[31m my way",
    );
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.reason, Some(Reason::LaunchFailed));
    let message = ended.status.message.clone().unwrap();
    assert!(
        message.contains("did not dial") && message.contains("I have lost"),
        "{message}"
    );
    assert!(
        !message.contains('\x1b'),
        "a terminal's language must not get out"
    );
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_dies_before_it_links_fails_at_once() {
    let runtime = FakeRuntime::new([IMAGE]).with_start_hook(Box::new(|_| Box::new(())));
    let bench = Bench::with(runtime);
    let session = bench.create().await;
    let starting = bench
        .until(&session, |session| session.sandbox.is_some())
        .await;
    let sandbox = starting.sandbox.clone().unwrap();
    // It can only die once it runs.
    bench.asked(FakeCall::Wait).await;
    bench.runtime.die(&sandbox, 3);
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.reason, Some(Reason::LaunchFailed));
    assert!(
        ended
            .status
            .message
            .clone()
            .unwrap()
            .contains("exit code 3")
    );
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_interrupts_whatever_a_launch_is_doing() {
    for call in [FakeCall::Create, FakeCall::Start] {
        let bench = Bench::new();
        bench.runtime.fail(call, 1, FakeFailure::Hangs);
        let session = bench.create().await;
        bench.asked(call).await;
        let ended = bench.end(&session).await;
        assert_eq!(ended.status.phase, Phase::Stopped, "{call:?}");
        bench.nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_made_while_its_session_ends_is_not_forgotten() {
    // podman goes on making it although nobody waits any more; it is there only after the session
    // was asked to end.
    let bench = Bench::new();
    bench.runtime.fail(FakeCall::Create, 1, FakeFailure::Late);
    let session = bench.create().await;
    bench.asked(FakeCall::Create).await;
    assert_eq!(bench.runtime.count(), 0);
    let ended = bench.end(&session).await;
    assert_eq!(ended.status.phase, Phase::Stopped);
    while bench.runtime.made() == 0 {
        tokio::task::yield_now().await;
    }
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_asked_before_the_first_step_is_heard() {
    let bench = Bench::new();
    let session = bench.create().await;
    bench.sessions.handle(session.id).unwrap().end(by_client());
    let ended = bench.ended(&session).await;
    assert_eq!(ended.status.reason, Some(Reason::Client));
    bench.nothing_is_left();
    let records = bench.audit().await;
    assert!(
        records.iter().any(|record| record.outcome.is_some()),
        "the intent has an outcome"
    );
}
