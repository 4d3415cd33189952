//! Volumes: who may have one, when it is mounted, and what is left after whatever happens.

use std::path::PathBuf;
use std::sync::Arc;

use casemate::base::clock::Timestamp;
use casemate::base::id::VolumeId;
use casemate::model::event::AuditEvent;
use casemate::model::name::Name;
use casemate::model::session::{Phase, Reason, Session};
use casemate::model::template::TemplateSpec;
use casemate::model::volume::{Volume, VolumeMode, VolumeState};
use casemate::runtime::fake::{FakeCall, FakeFailure};
use casemate::session::manager::{NewSession, is_settled};
use casemate::session::{SessionError, VolumeRefusal};
use casemate::store::VolumeBudget;

use crate::{Bench, member, team, template};

const MIB: u64 = 1 << 20;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn wants(volumes: &[(&str, VolumeMode)]) -> NewSession {
    NewSession {
        volumes: volumes.iter().map(|(of, mode)| (name(of), *mode)).collect(),
        ..NewSession::default()
    }
}

impl Bench {
    async fn make(&self, team: Name, of: &str, size_bytes: u64) -> Result<Volume, SessionError> {
        let by = member();
        let sessions = &self.sessions;
        sessions
            .create_volume(&by, team, name(of), size_bytes)
            .await
    }

    async fn volume(&self, of: &str) -> Volume {
        self.make(team(), of, 32 * MIB).await.unwrap()
    }

    async fn up_with(&self, volumes: &[(&str, VolumeMode)]) -> Arc<Session> {
        let session = self.try_create(wants(volumes)).await.unwrap();
        let session = self.until(&session, is_settled).await;
        assert_eq!(session.status.phase, Phase::Ready, "{:?}", session.status);
        session
    }

    async fn holders(&self, of: &str) -> usize {
        let found = self.store.volume(team(), name(of)).await.unwrap();
        found.unwrap().1.len()
    }

    fn files(&self) -> Vec<PathBuf> {
        let directory = self.directory.path().join("volumes");
        let directory = directory.join(self.store.installation().to_string());
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn refused(result: Result<Arc<Session>, SessionError>) -> VolumeRefusal {
    let refusal = result.err().and_then(|error| match error {
        SessionError::Volume(refusal) => Some(refusal),
        _ => None,
    });
    refusal.unwrap()
}

#[tokio::test]
async fn a_session_has_its_volumes_before_it_is_ready_and_lets_them_go_at_its_end() {
    let bench = Bench::new();
    let volume = bench.volume("data").await;
    assert_eq!(
        bench.files(),
        [bench.sessions.volumes().files.path(volume.id)]
    );
    for round in 1..=2 {
        let session = bench.up_with(&[("data", VolumeMode::Rw)]).await;
        assert_eq!(bench.runtime.calls(FakeCall::Attach), round);
        assert_eq!(session.spec.volumes[0].id, volume.id);
        assert_eq!(bench.holders("data").await, 1);
        let (link, _) = bench.door_of(&session);
        let room = link.with_added_extension("volumes");
        let wanted = std::fs::read_to_string(room.join("wanted")).unwrap();
        let file = bench.sessions.volumes().files.path(volume.id);
        assert_eq!(wanted, format!("rw data {}\n", file.display()));
        // Nothing of it is in the directory that the guest sees.
        assert!(!link.join("wanted").exists());
        bench.end(&session).await;
        assert_eq!(bench.holders("data").await, 0);
        bench.nothing_is_left();
    }
    let attached = AuditEvent::VolumeAttach {
        volume: name("data"),
        mode: VolumeMode::Rw,
    };
    let records = bench.audit().await;
    let attached = records.iter().filter(|record| record.event == attached);
    assert_eq!(attached.count(), 2);
    // Whoever wants none is asked nothing.
    let plain = bench.ready().await;
    assert_eq!(bench.runtime.calls(FakeCall::Attach), 2);
    bench.end(&plain).await;
}

#[tokio::test]
async fn one_writes_or_many_read() {
    let bench = Bench::new();
    bench.volume("data").await;
    let writer = bench.up_with(&[("data", VolumeMode::Rw)]).await;
    for mode in [VolumeMode::Rw, VolumeMode::Ro] {
        let refusal = refused(bench.try_create(wants(&[("data", mode)])).await);
        assert!(matches!(&refusal, VolumeRefusal::Held(_, by) if by.session == writer.id));
        assert!(
            refusal.to_string().contains(&writer.id.to_string()),
            "{refusal}"
        );
    }
    bench.end(&writer).await;
    let one = bench.up_with(&[("data", VolumeMode::Ro)]).await;
    let two = bench.up_with(&[("data", VolumeMode::Ro)]).await;
    assert_eq!(bench.holders("data").await, 2);
    let refusal = refused(bench.try_create(wants(&[("data", VolumeMode::Rw)])).await);
    assert!(refusal.to_string().contains("ask for ro"), "{refusal}");
    bench.end(&one).await;
    bench.end(&two).await;
    bench.nothing_is_left();
}

#[tokio::test]
async fn what_is_not_the_team_s_or_not_possible_is_refused_by_name() {
    let bench = Bench::new();
    bench.make(name("blue"), "data", 32 * MIB).await.unwrap();
    for unknown in ["data", "nothing"] {
        let refusal = refused(bench.try_create(wants(&[(unknown, VolumeMode::Rw)])).await);
        assert!(matches!(refusal, VolumeRefusal::Unknown(_)), "{refusal}");
        let gone = bench.sessions.remove_volume(team(), name(unknown)).await;
        let missing = VolumeRefusal::NotFound(name(unknown)).to_string();
        assert_eq!(gone.unwrap_err().to_string(), missing);
    }
    bench.volume("mine").await;
    let twice = wants(&[("mine", VolumeMode::Ro), ("mine", VolumeMode::Ro)]);
    let many: Vec<_> = (0..9).map(|n| format!("v{n}")).collect();
    let many: Vec<_> = many
        .iter()
        .map(|of| (of.as_str(), VolumeMode::Ro))
        .collect();
    for bad in [twice, wants(&many)] {
        let error = bench.try_create(bad).await.unwrap_err();
        assert!(
            matches!(
                error,
                SessionError::Invalid {
                    field: "volumes",
                    ..
                }
            ),
            "{error}"
        );
    }
    for size in [0, MIB, 32 * MIB + 1, 1 << 60] {
        let error = bench.make(team(), "odd", size).await.unwrap_err();
        assert!(
            matches!(
                error,
                SessionError::Invalid {
                    field: "size_bytes",
                    ..
                }
            ),
            "{error}"
        );
    }
    assert!(matches!(
        bench.make(team(), "mine", 32 * MIB).await.unwrap_err(),
        SessionError::Volume(VolumeRefusal::NameTaken(_))
    ));
    assert_eq!(bench.files().len(), 2);
}

#[tokio::test]
async fn an_attached_volume_is_not_removed_and_another_is_with_its_file() {
    let bench = Bench::new();
    bench.volume("data").await;
    let session = bench.up_with(&[("data", VolumeMode::Ro)]).await;
    let held = bench.sessions.remove_volume(team(), name("data")).await;
    assert!(matches!(
        held.unwrap_err(),
        SessionError::Volume(VolumeRefusal::Held(_, by)) if by.session == session.id
    ));
    bench.end(&session).await;
    bench
        .sessions
        .remove_volume(team(), name("data"))
        .await
        .unwrap();
    assert!(bench.files().is_empty());
    assert_eq!(bench.store.all_volumes().await.unwrap(), []);
    // The name is free, for another volume.
    bench.volume("data").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_with_volumes_claims_a_sandbox_that_stands_ready() {
    let bench = Bench::new();
    bench.volume("data").await;
    bench.pooled(
        1,
        TemplateSpec {
            pool: 1,
            ..template().spec
        },
    );
    let keeper = bench.keeper();
    bench.stand_ready(1).await;
    let session = bench.up_with(&[("data", VolumeMode::Rw)]).await;
    // Sandboxes are numbered.
    let sandbox = session.sandbox.as_ref().unwrap().as_str();
    assert!(
        sandbox.ends_with("001"),
        "a sandbox was made for it: {sandbox}"
    );
    assert_eq!(bench.runtime.calls(FakeCall::Attach), 1);
    bench.end(&session).await;
    keeper.stop().await;
    bench.nothing_is_left();
}

#[tokio::test]
async fn what_cannot_be_attached_fails_the_session_and_leaves_the_volume_free() {
    let bench = Bench::new();
    bench.volume("data").await;
    for failure in [
        FakeFailure::Refused,
        FakeFailure::Unavailable,
        FakeFailure::AnswerLost,
    ] {
        bench.runtime.fail(FakeCall::Attach, 1, failure);
        let session = bench.try_create(wants(&[("data", VolumeMode::Rw)])).await;
        let session = bench.ended(&session.unwrap()).await;
        assert_eq!(session.status.phase, Phase::Failed);
        assert_eq!(session.ready_at, None);
        bench.nothing_is_left();
    }
    let session = bench.up_with(&[("data", VolumeMode::Rw)]).await;
    bench.end(&session).await;
}

#[tokio::test]
async fn a_session_whose_volume_is_no_longer_served_ends_and_says_so() {
    let bench = Bench::new();
    bench.volume("data").await;
    let session = bench.up_with(&[("data", VolumeMode::Rw)]).await;
    bench
        .runtime
        .lose_volumes(session.sandbox.as_ref().unwrap());
    let session = bench.ended(&session).await;
    assert_eq!(session.status.reason, Some(Reason::VolumeLost));
    assert!(session.status.message.as_ref().unwrap().contains("data"));
    bench.nothing_is_left();
    let session = bench.up_with(&[("data", VolumeMode::Rw)]).await;
    bench.end(&session).await;
}

#[tokio::test]
async fn the_next_daemon_finds_volumes_attached_and_finishes_what_was_begun() {
    let mut bench = Bench::new();
    let volume = bench.volume("data").await;
    let session = bench.up_with(&[("data", VolumeMode::Rw)]).await;
    bench.sessions.leave_all(crate::PATIENCE).await;
    // One was being made, one was being removed, and of one there is only a file.
    let budget = VolumeBudget {
        volumes: 10,
        bytes: 1 << 40,
    };
    let files = bench.sessions.volumes().files.clone();
    let half = |number: u8, of: &str| Volume {
        id: VolumeId::from_bytes([number; 16]),
        team: team(),
        name: name(of),
        size_bytes: 32 * MIB,
        created_by: "x".into(),
        created_at: Timestamp::from_millis(1),
        state: VolumeState::Making,
    };
    for (number, of) in [(1, "making"), (2, "removing")] {
        let half = half(number, of);
        bench
            .store
            .admit_volume(half.clone(), budget)
            .await
            .unwrap();
        files.create(half.id, 32 * MIB).await.unwrap();
    }
    bench
        .store
        .begin_volume_removal(team(), name("removing"))
        .await
        .unwrap();
    files
        .create(VolumeId::from_bytes([3; 16]), 32 * MIB)
        .await
        .unwrap();
    assert_eq!(bench.files().len(), 4);

    // A look meanwhile leaves alone what may be under way.
    bench.sessions.sweep().await.unwrap();
    let kept = bench.store.all_volumes().await.unwrap();
    let names: Vec<_> = kept.iter().map(|kept| kept.name.as_str()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&"making"));
    assert_eq!(bench.files().len(), 2);

    bench.next_daemon();
    bench.sessions.reconcile().await.unwrap();
    assert_eq!(bench.files(), [files.path(volume.id)]);
    let adopted = bench.until(&session, |session| session.status.phase == Phase::Ready);
    adopted.await;
    assert_eq!(
        bench.runtime.calls(FakeCall::Attach),
        1,
        "it was mounted again"
    );
    let refusal = refused(bench.try_create(wants(&[("data", VolumeMode::Rw)])).await);
    assert!(matches!(refusal, VolumeRefusal::Held(..)));
    bench.end(&session).await;
    bench.nothing_is_left();
}

#[tokio::test]
async fn a_machine_that_cannot_have_volumes_says_what_to_do_and_has_sessions_all_the_same() {
    let mut bench = Bench::new();
    bench.volume("data").await;
    bench.volumes_problem = Some("install fuse2fs".to_owned());
    bench.next_daemon();
    let refusal = refused(bench.try_create(wants(&[("data", VolumeMode::Rw)])).await);
    assert!(
        refusal.to_string().ends_with("install fuse2fs"),
        "{refusal}"
    );
    let made = bench.make(team(), "more", 32 * MIB).await.unwrap_err();
    assert!(made.to_string().ends_with("install fuse2fs"), "{made}");
    // What there is can still be seen and removed.
    assert_eq!(bench.holders("data").await, 0);
    bench
        .sessions
        .remove_volume(team(), name("data"))
        .await
        .unwrap();
    let plain = bench.ready().await;
    bench.end(&plain).await;
    bench.nothing_is_left();
}
