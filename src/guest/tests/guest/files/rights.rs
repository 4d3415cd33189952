//! Whose rights count: those of the user who acts, and nobody else's.

use std::fs;
use std::path::Path;

use casemate_link::file::{ListRequest, Place, ReadRequest, RemoveRequest, SetRequest};
use casemate_link::refusal::code;

use super::{bench, chmod, get, is_root};
use crate::support::{at, pattern, put, refused, soon, writing};

/// A place, acted on by the user who may do least.
fn as_nobody(path: &Path) -> Place {
    Place {
        user: Some("nobody".into()),
        ..at(path)
    }
}

#[tokio::test]
async fn each_user_has_their_own_rights_and_no_others() {
    if !is_root() {
        return;
    }
    let (_bench, link, dir) = bench().await;
    let path = |name: &str| dir.path().join(name);
    fs::write(path("secret"), "x").unwrap();
    chmod(&path("secret"), 0o600);
    fs::create_dir(path("open")).unwrap();
    chmod(&path("open"), 0o777);
    fs::write(path("open/roots"), "x").unwrap();
    fs::create_dir(path("closed")).unwrap();
    chmod(&path("closed"), 0o700);
    let denied = code::FILE_DENIED;
    for _ in 0..20 {
        // On threads that were root a moment ago.
        assert_eq!(get(&link, &path("secret"), None).await.unwrap(), b"x");
        let place = as_nobody(&path("secret"));
        assert_eq!(
            refused(soon(link.read(&ReadRequest { place, range: None })).await),
            denied
        );
    }
    let writing_as_nobody = |name: &str| casemate_link::file::WriteRequest {
        place: as_nobody(&path(name)),
        ..writing("/")
    };
    assert_eq!(
        refused(put(&link, &writing_as_nobody("new"), "x".into()).await),
        denied
    );
    assert_eq!(
        refused(put(&link, &writing_as_nobody("open/roots"), "x".into()).await),
        denied
    );
    assert_eq!(
        refused(put(&link, &writing_as_nobody("closed/x"), "x".into()).await),
        denied
    );
    let place = as_nobody(&path("closed"));
    assert_eq!(
        refused(
            soon(link.list(&ListRequest {
                place,
                depth: 1,
                limit: 1
            }))
            .await
        ),
        denied
    );
    let place = as_nobody(&path("open"));
    assert_eq!(
        refused(
            soon(link.remove(&RemoveRequest {
                place,
                recursive: true
            }))
            .await
        ),
        denied
    );
    let request = SetRequest {
        place: as_nobody(&path("open/roots")),
        mode: Some(0o666),
        ..SetRequest::default()
    };
    assert_eq!(refused(soon(link.set(&request)).await), denied);

    let entry = put(&link, &writing_as_nobody("open/theirs"), "x".into())
        .await
        .unwrap();
    assert_eq!((entry.owner.as_deref(), entry.uid), (Some("nobody"), 65534));
    let request = SetRequest {
        place: as_nobody(&path("open/theirs")),
        owner: Some("root".into()),
        ..SetRequest::default()
    };
    assert_eq!(refused(soon(link.set(&request)).await), denied);
    // A tree with a closed directory is listed, but for what is in that.
    let place = as_nobody(dir.path());
    let listing = soon(link.list(&ListRequest {
        place,
        depth: 5,
        limit: 50,
    }))
    .await
    .unwrap();
    assert!(
        listing
            .entries
            .iter()
            .any(|entry| entry.path.ends_with("/closed"))
    );
}

#[tokio::test]
async fn many_users_at_once_are_never_mistaken_for_one_another() {
    if !is_root() {
        return;
    }
    let (_bench, link, dir) = bench().await;
    chmod(dir.path(), 0o777);
    let mut tasks = tokio::task::JoinSet::new();
    for uid in 20_000..20_040_u32 {
        let (link, dir) = (link.clone(), dir.path().to_owned());
        tasks.spawn(async move {
            for round in 0..10 {
                let place = Place {
                    user: Some(uid.to_string()),
                    ..at(dir.join(format!("{uid}-{round}")))
                };
                let request = casemate_link::file::WriteRequest {
                    place,
                    ..writing("/")
                };
                let entry = put(&link, &request, pattern(10_000)).await.unwrap();
                assert_eq!((entry.uid, entry.gid), (uid, uid));
                if round % 3 == 0 {
                    let mut spec = crate::support::spec(&["id", "-u"]);
                    spec.user = Some(uid.to_string());
                    let outcome = crate::support::run(&link, spec).await;
                    assert_eq!(outcome.stdout, format!("{uid}\n").as_bytes());
                }
            }
        });
    }
    tasks.join_all().await;
}
