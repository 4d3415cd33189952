//! `casemate admin`, against a stand-in at the other end of the socket.

use super::*;

/// The daemon's side of the admin socket for one connection.
pub(super) struct Daemon {
    pub(super) directory: tempfile::TempDir,
    pub(super) thread: JoinHandle<(Request, Vec<u8>)>,
}

pub(super) fn administer(answers: Vec<Answer>) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let envelope: Envelope = serde_json::from_slice(&frame(&mut stream)).unwrap();
        assert_eq!(envelope.version, VERSION);
        let mut archive = Vec::new();
        if matches!(envelope.request, Request::ImageImport) {
            loop {
                let chunk = frame(&mut stream);
                if chunk.is_empty() {
                    break;
                }
                archive.extend(chunk);
            }
        }
        for answer in answers {
            let answer = serde_json::to_vec(&answer).unwrap();
            let length = u32::try_from(answer.len()).unwrap();
            stream.write_all(&length.to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
        (envelope.request, archive)
    });
    Daemon { directory, thread }
}

fn frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut frame).unwrap();
    frame
}

impl Daemon {
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = casemate(&["admin"]);
        command.args(arguments);
        command.env("CASEMATE_ADMIN_SOCKET", self.directory.path().join("s"));
        command
    }
}

#[test]
fn a_new_key_is_all_that_stands_on_standard_output() {
    let daemon = administer(vec![Answer::Key(KeyView {
        id: KeyId::from_bytes([1; 16]),
        key: "cmk_public_secret".into(),
    })]);
    let output = daemon
        .command(&["key", "create", "ci", "--team", "red"])
        .output()
        .unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "cmk_public_secret\n");
    assert!(!text(&output.stderr).contains("secret"));
    let (request, _) = daemon.thread.join().unwrap();
    assert!(
        matches!(request, Request::KeyCreate { name, team, role: Role::Member, scopes: None, expires_in_s: None } if name.as_str() == "ci" && team.as_str() == "red")
    );
}

#[test]
fn a_new_vault_key_says_where_it_is_and_what_to_keep() {
    let rotated = casemate::admin::protocol::RotatedView {
        generation: 2,
        sealed: 5,
        origin: "/state/vault.key".into(),
    };
    let daemon = administer(vec![Answer::Rotated(rotated)]);
    let output = daemon.command(&["rotate-key"]).output().unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "2\n");
    let told = text(&output.stderr);
    assert!(
        told.contains("/state/vault.key") && told.contains("keep a copy"),
        "{told}"
    );
    let (request, _) = daemon.thread.join().unwrap();
    assert!(matches!(request, Request::RotateKey));
}

#[test]
fn a_backup_tells_where_it_is_and_names_its_file_from_the_top() {
    let made = || {
        let progress = Answer::Progress {
            received_bytes: 5,
            total_bytes: Some(10),
        };
        let made = Answer::Backup(casemate::admin::protocol::BackupView {
            path: "/backups/b.tar.zst".into(),
            size_bytes: 7,
            made_at: serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap(),
            encrypted: true,
            images: 2,
            images_missing: vec![ImageDigest::from_bytes([7; 32])],
        });
        administer(vec![progress, made])
    };
    let daemon = made();
    let output = daemon
        .command(&["backup", "--images", "--to", "b.tar.zst"])
        .output()
        .unwrap();
    ended(&output, 0);
    assert_eq!(text(&output.stdout), "/backups/b.tar.zst\n");
    let told = text(&output.stderr);
    assert!(
        told.contains("with 2 images, encrypted") && told.contains("sha256:0707"),
        "{told}"
    );
    let (request, _) = daemon.thread.join().unwrap();
    let here = std::env::current_dir().unwrap().join("b.tar.zst");
    assert!(matches!(request, Request::Backup { to: Some(to), images: true } if to == here));
    let daemon = made();
    let output = daemon.command(&["backup", "--json"]).output().unwrap();
    ended(&output, 0);
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(view["encrypted"], true);
    let (request, _) = daemon.thread.join().unwrap();
    assert!(matches!(
        request,
        Request::Backup {
            to: None,
            images: false
        }
    ));
}

#[test]
fn an_archive_arrives_whole_and_only_its_digest_is_printed() {
    let digest = ImageDigest::from_bytes([7; 32]);
    let archive: Vec<u8> = (0..1_000_003_u32)
        .map(|n| n.to_le_bytes()[0] ^ 0x5a)
        .collect();
    for from_stdin in [false, true] {
        let progress = Answer::Progress {
            received_bytes: 5,
            total_bytes: None,
        };
        let daemon = administer(vec![progress, Answer::Image { digest }]);
        let file = daemon.directory.path().join("archive");
        std::fs::write(&file, &archive).unwrap();
        let name = if from_stdin {
            "-"
        } else {
            file.to_str().unwrap()
        };
        let output = daemon
            .command(&["image", "import", name])
            .stdin(std::fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        ended(&output, 0);
        assert_eq!(text(&output.stdout), format!("{digest}\n"));
        assert_eq!(text(&output.stderr), "");
        assert!(daemon.thread.join().unwrap().1 == archive);
    }
}

#[test]
fn a_peer_that_is_turned_away_unheard_still_learns_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let refused = Answer::Refused {
            code: "not_an_operator".into(),
            message: "for root and the group casemate".into(),
        };
        let answer = serde_json::to_vec(&refused).unwrap();
        let length = u32::try_from(answer.len()).unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        stream.write_all(&answer).unwrap();
    });
    let archive = directory.path().join("archive");
    std::fs::write(&archive, vec![0; 4 << 20]).unwrap();
    let output = casemate(&["admin", "image", "import"])
        .arg(&archive)
        .arg("--socket")
        .arg(&path)
        .output()
        .unwrap();
    ended(&output, 77);
    assert!(text(&output.stderr).contains("for root and the group casemate"));
    thread.join().unwrap();
}

#[test]
fn sessions_of_all_teams_are_listed() {
    let line = SessionLine {
        id: SessionId::from_bytes([1; 16]),
        name: None,
        team: "red".parse().unwrap(),
        template: "base".parse().unwrap(),
        phase: Phase::Failed,
        reason: Some(Reason::LaunchFailed),
        message: Some("no\u{1b}[2J image".into()),
        created_at: Timestamp::from_millis(0),
        ends_at: Timestamp::from_millis(1),
    };
    let daemon = administer(vec![Answer::Sessions { items: vec![line] }]);
    let output = daemon
        .command(&["session", "list", "--all", "--limit", "7"])
        .output()
        .unwrap();
    ended(&output, 0);
    assert!(text(&output.stdout).contains("launch_failed: no\\u{1b}[2J image"));
    let (request, _) = daemon.thread.join().unwrap();
    assert!(matches!(
        request,
        Request::SessionList {
            live: false,
            limit: 7
        }
    ));
}
