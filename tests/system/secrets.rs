//! Planted secrets, and every place where they must not turn up.

mod everywhere;

use std::path::Path;

use serde_json::json;

use crate::support::{Daemon, wait_until};

/// Files of a directory that hold these bytes, as they are or in hexadecimal or base 64.
fn holders(directory: &Path, secret: &str) -> Vec<String> {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret);
    let hex = secret
        .bytes()
        .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holders(&path, secret));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        for spelling in [secret, &base64, &hex] {
            if contains(&bytes, spelling.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Processes of the host whose command line or environment holds a text.
fn processes_with(secret: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.bytes().all(|b| b.is_ascii_digit()) || name == std::process::id().to_string() {
            continue;
        }
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(path.join(file)).unwrap_or_default();
            if contains(&bytes, secret.as_bytes()) {
                found.push(format!("{name}/{file}"));
            }
        }
    }
    found
}

#[tokio::test]
async fn values_of_environments_arguments_and_keys_turn_up_nowhere() {
    let mut daemon = Daemon::up_with(&[("log.level", json!("trace"))]).await;
    let client = daemon.client.clone();
    let mark = |what: &str| format!("mark-{what}-{:x}-planted", std::process::id());
    let (in_env, in_run, in_argument, in_input) = (
        mark("session"),
        mark("run"),
        mark("argument"),
        mark("input"),
    );
    let id = client.session(json!({"env": {"TOKEN": in_env}})).await;
    let run = json!({
        "argv": ["sh", "-c", "touch /tmp/began; cat >/dev/null; sleep 2; echo $TOKEN $MORE $0", in_argument],
        "env": {"MORE": in_run},
        "stdin": in_input,
    });
    let looking = async {
        wait_until("it runs", async || {
            client.sh(&id, "test -e /tmp/began").await.0 == 0
        })
        .await;
        for secret in [&in_env, &in_run, &in_argument, &in_input] {
            assert_eq!(processes_with(secret), [] as [String; 0]);
        }
    };
    let (outcome, ()) = tokio::join!(client.run(&id, run), looking);
    assert_eq!(
        outcome["stdout"],
        format!("{in_env} {in_run} {in_argument}\n")
    );

    // Failures are more talkative than success.
    for run in [
        json!({"argv": ["no-such", in_argument], "env": {"MORE": in_run}, "stdin": in_input}),
        json!({"argv": ["true"], "env": {"MORE": in_run}, "cwd": "/no/such"}),
        json!({"argv": ["true", in_argument], "env": {"": in_run}}),
        json!({"argv": [], "env": {"MORE": in_run}, "stdin": in_input}),
        json!({"argv": ["true"], "env": in_run}),
    ] {
        let answer = client.try_run(&id, run).await;
        assert!(answer.status.is_client_error());
    }
    let key = client.key.clone().unwrap();
    let secret = key.rsplit('_').next().unwrap().to_owned();
    let wrong = format!("{}{}", &key[..key.len() - 4], "0000");
    client
        .with_key(&wrong)
        .get("/v1/sessions")
        .await
        .problem(401, "unauthenticated");

    let records = serde_json::to_string(&client.audit(&id).await).unwrap();
    let log = daemon.log();
    assert!(log.contains("TRACE"), "the log is as talkative as it gets");
    for secret in [
        &in_env,
        &in_run,
        &in_argument,
        &in_input,
        &key,
        &secret,
        &wrong,
    ] {
        assert!(!records.contains(secret.as_str()), "the record has it");
        assert!(!log.contains(secret.as_str()), "the log has it");
    }
    let podman = std::env::var("CASEMATE_TEST_PODMAN_STATE").unwrap();
    let podman_log = std::fs::read_to_string(Path::new(&podman).join("service.log")).unwrap();
    assert!(!podman_log.contains(&in_env));
    let container = daemon.container_of(&id).await.unwrap().id;
    let inspect = crate::support::podman::get(&format!("/containers/{container}/json")).await;
    assert!(!inspect.to_string().contains(&in_env), "podman has it");

    // While it lives the state holds the session's environment and nothing else; then nothing.
    for secret in [&in_run, &in_argument, &in_input, &secret] {
        assert_eq!(holders(&daemon.state_dir(), secret), [] as [String; 0]);
    }
    client.end(&id).await;
    let env = daemon.sql::<String>("SELECT env FROM sessions");
    assert!(!env[0].contains(&in_env), "{env:?}");
    assert_eq!(daemon.term().await, 0);
    for secret in [&in_env, &in_run, &in_argument, &in_input, &secret] {
        assert_eq!(holders(&daemon.home, secret), [] as [String; 0]);
    }
}

#[tokio::test]
async fn a_failed_launch_forgets_its_environment_too() {
    let mut daemon = Daemon::new();
    let guest = daemon.home.join("guest");
    std::fs::write(&guest, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&guest, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    daemon.set("podman.guest", json!(guest));
    daemon.start().await;
    let key = daemon.key("tests").await;
    daemon.client.key = Some(key);
    let secret = format!("mark-launch-{:x}-planted", std::process::id());
    let wanted = json!({"env": {"TOKEN": secret}});
    let answer = daemon.client.post("/v1/sessions", wanted).await;
    assert!(!answer.problem(502, "launch_failed").contains(&secret));
    wait_until("it has failed", async || {
        daemon.sql::<String>("SELECT phase FROM sessions") == ["failed"]
    })
    .await;
    assert_eq!(daemon.term().await, 0);
    assert_eq!(holders(&daemon.home, &secret), [] as [String; 0]);
}
