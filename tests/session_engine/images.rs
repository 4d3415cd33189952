//! Images that were made of sessions: they go when nobody means them any more, and not before.

use casemate::model::image::{Image, ImageDigest};
use casemate::model::name::Name;
use casemate::model::template::{Precondition, TemplateSpec};
use casemate::runtime::SandboxRuntime;
use casemate::runtime::fake::{FakeCall, FakeFailure};
use casemate::session::manager::NewSession;
use casemate::store::NewTemplate;

use super::{Bench, IMAGE, member, team};

const SNAPSHOT: ImageDigest = ImageDigest::from_bytes([8; 32]);

impl Bench {
    fn has_snapshot(&self, of: &str) {
        self.runtime.put_image(Image {
            digest: SNAPSHOT,
            names: Vec::new(),
            size_bytes: 1,
            snapshot_of: Some(of.to_owned()),
        });
    }

    fn installation(&self) -> String {
        self.store.installation().to_string()
    }

    async fn is_there(&self) -> bool {
        let images = self.runtime.images().await.unwrap();
        images.iter().any(|image| image.digest == SNAPSHOT)
    }

    async fn put(&self, image: ImageDigest) {
        let new = NewTemplate {
            team: team(),
            name: name(),
            spec: TemplateSpec::new(image),
            precondition: Precondition::None,
            max: 9,
            by: member().to_string(),
            at: casemate::base::clock::Timestamp::from_millis(1),
        };
        self.store.put_template(new).await.unwrap();
    }

    async fn swept(&self) -> usize {
        self.sessions.try_sweep_images().await.unwrap()
    }
}

fn name() -> Name {
    "mine".parse().unwrap()
}

#[tokio::test]
async fn an_image_goes_when_nobody_means_it_and_not_before() {
    let bench = Bench::new();
    bench.has_snapshot(&bench.installation());
    bench.put(SNAPSHOT).await;
    assert_eq!((bench.swept().await, bench.swept().await), (0, 0));

    // A session of it lives on when the template has another version.
    let new = NewSession {
        template: Some(name()),
        ..NewSession::default()
    };
    let session = bench.try_create(new).await.unwrap();
    bench
        .until(&session, |session| session.ready_at.is_some())
        .await;
    bench.put(IMAGE).await;
    assert_eq!((bench.swept().await, bench.swept().await), (0, 0));
    bench.end(&session).await;

    // At the second look only: whoever read the template before it changed may still come.
    assert_eq!(bench.swept().await, 0);
    assert!(bench.is_there().await);
    assert_eq!(bench.swept().await, 1);
    assert!(!bench.is_there().await);
    let recorded = bench.audit().await;
    assert!(
        recorded
            .iter()
            .any(|record| record.event.kind() == "image.remove")
    );
    bench.nothing_is_left();
}

#[tokio::test]
async fn what_was_left_by_a_daemon_before_goes_at_the_first_look() {
    let mut bench = Bench::new();
    assert_eq!(bench.swept().await, 0);
    bench.has_snapshot(&bench.installation());
    assert_eq!(bench.swept().await, 0);
    bench.next_daemon();
    assert_eq!(bench.swept().await, 1);
    assert!(!bench.is_there().await);
}

#[tokio::test]
async fn what_is_being_made_stays() {
    let bench = Bench::new();
    let (making, twice) = (
        bench.sessions.making(SNAPSHOT).await,
        bench.sessions.making(SNAPSHOT).await,
    );
    bench.has_snapshot(&bench.installation());
    assert_eq!((bench.swept().await, bench.swept().await), (0, 0));
    drop(twice);
    assert_eq!(bench.swept().await, 0);
    drop(making);
    assert_eq!(bench.swept().await, 1);
}

#[tokio::test]
async fn another_installation_s_images_and_those_with_a_name_stay() {
    let bench = Bench::new();
    bench.has_snapshot("ins_00000000000000000000000001");
    assert_eq!((bench.swept().await, bench.swept().await), (0, 0));
    bench.runtime.put_image(Image {
        digest: SNAPSHOT,
        names: vec!["localhost/kept:latest".to_owned()],
        size_bytes: 1,
        snapshot_of: Some(bench.installation()),
    });
    assert_eq!((bench.swept().await, bench.swept().await), (0, 0));
    assert!(bench.is_there().await);
}

#[tokio::test]
async fn what_cannot_be_removed_now_is_found_again() {
    let bench = Bench::new();
    bench.has_snapshot(&bench.installation());
    bench
        .runtime
        .fail(FakeCall::RemoveImage, 1, FakeFailure::Unavailable);
    bench.sessions.try_sweep_images().await.unwrap_err();
    assert_eq!(bench.swept().await, 1);
}
