//! The fake runtime: it keeps the contract of every runtime, and fails as it is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

#[path = "runtime/archive.rs"]
#[expect(dead_code, reason = "the other runtime's tests use all of it")]
mod archive;
#[path = "runtime/contract.rs"]
mod contract;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use casemate::model::image::ImageDigest;
use casemate::runtime::fake::{FakeCall, FakeFailure, FakeRuntime};
use casemate::runtime::{RuntimeError, SandboxRuntime};
use contract::Bench;
use futures_util::{FutureExt, StreamExt, stream};

const IMAGE: ImageDigest = ImageDigest::from_bytes([7; 32]);

#[tokio::test]
async fn keeps_the_contract() {
    let links = tempfile::tempdir().unwrap();
    let runtime = FakeRuntime::new([IMAGE]);
    contract::contract(&Bench::new(&runtime, IMAGE, links.path())).await;
    assert_eq!(runtime.count(), 0);
}

#[tokio::test]
async fn the_nth_call_fails_as_told() {
    let links = tempfile::tempdir().unwrap();
    let runtime = FakeRuntime::new([IMAGE]);
    let bench = Bench::new(&runtime, IMAGE, links.path());
    runtime.fail(FakeCall::Create, 2, FakeFailure::Unavailable);
    runtime.fail(FakeCall::Create, 3, FakeFailure::AnswerLost);
    runtime.fail(FakeCall::Create, 4, FakeFailure::NotAsAsked);
    let create = || async { runtime.create(&bench.spec()).await };
    assert!(create().await.is_ok());
    assert!(matches!(
        create().await,
        Err(RuntimeError::Unavailable { .. })
    ));
    assert_eq!(runtime.count(), 1);
    assert!(matches!(
        create().await,
        Err(RuntimeError::Unavailable { .. })
    ));
    assert_eq!(runtime.count(), 2, "only the answer was lost");
    assert!(matches!(
        create().await,
        Err(RuntimeError::NotAsAsked { .. })
    ));
    assert_eq!(runtime.count(), 2);
    runtime.fail(FakeCall::Create, 1, FakeFailure::Hangs);
    assert!(create().now_or_never().is_none());
    assert_eq!(runtime.calls(FakeCall::Create), 5);
}

#[tokio::test]
async fn a_sandbox_that_vanishes_is_gone_and_its_waiter_hears() {
    let links = tempfile::tempdir().unwrap();
    let runtime = FakeRuntime::new([IMAGE]);
    let bench = Bench::new(&runtime, IMAGE, links.path());
    let id = bench.running().await;
    runtime.say(&id, "good bye\n");
    assert_eq!(runtime.last_words(&id).await, "good bye\n");
    let (waited, ()) = tokio::join!(runtime.wait(&id), async { runtime.vanish(&id) });
    assert_eq!(waited.unwrap(), None);
    assert_eq!(bench.phase(&id).await, None);
}

#[tokio::test]
async fn the_hook_runs_at_the_first_start_and_what_it_gave_is_dropped_at_the_end() {
    struct Guest(Arc<AtomicUsize>);
    impl Drop for Guest {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let links = tempfile::tempdir().unwrap();
    let alive = Arc::new(AtomicUsize::new(0));
    let hook = {
        let alive = alive.clone();
        move |_: &_| {
            alive.fetch_add(1, Ordering::SeqCst);
            Box::new(Guest(alive.clone())) as _
        }
    };
    let runtime = FakeRuntime::new([IMAGE]).with_start_hook(Box::new(hook));
    let bench = Bench::new(&runtime, IMAGE, links.path());
    let (dying, removed) = (bench.running().await, bench.running().await);
    runtime.start(&dying).await.unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 2);
    runtime.die(&dying, 1);
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    runtime.remove(&removed).await.unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_archive_with_a_digest_is_an_image() {
    let runtime = FakeRuntime::new([]);
    let archive = stream::iter([Ok(IMAGE.to_string().into())]).boxed();
    assert_eq!(runtime.load_image(archive).await.unwrap(), IMAGE);
    assert_eq!(runtime.images().await.unwrap().len(), 1);
}
