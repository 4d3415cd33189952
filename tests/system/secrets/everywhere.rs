//! One daemon, used as it is in earnest with a marked secret of every kind, and everything that somebody could read of it.
//!
//! A bait goes where names and labels go, into a file and into an environment: what finds it there would find the others.

use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use casemate::admin::protocol::{Answer as Told, Request as Asked};
use casemate::base::clock::Timestamp;
use casemate::identity::{KeyHasher, PresentedKey};
use casemate::model::query::AuditFilter;
use http::Method;
use serde_json::{Value, json};

use crate::support::hunt::{Found, Hunt, assert_only};
use crate::support::journal::Journal;
use crate::support::papers::Papers;
use crate::support::{Answer, Client, Daemon, PATIENCE, wait_for, wait_until};

/// A daemon with TLS and an issuer of tokens, and what was seen of it.
struct Ground {
    daemon: Daemon,
    hunt: Hunt,
    found: Found,
    bait: String,
}

impl Ground {
    fn mark(what: &str) -> String {
        format!("planted-{what}-{:x}-Qm2xWv9LkT4", std::process::id())
    }

    /// A text of which every place is known where it may be.
    fn plant(&mut self, what: &str) -> String {
        let secret = Self::mark(&what.replace(' ', "-"));
        self.hunt.plant(what, secret.as_bytes());
        secret
    }

    /// The random part of one of our keys.
    fn plant_key(&mut self, what: &str, text: &str) {
        let (_, secret) = text.rsplit_once('_').unwrap();
        let digits = secret.as_bytes().chunks(2);
        let bytes: Vec<u8> = digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        self.hunt.plant(what, &bytes);
        let key = PresentedKey::parse(text).unwrap();
        self.look("Debug", format!("{key:?} {key:#?}").as_bytes());
    }

    fn look(&mut self, place: &str, bytes: &[u8]) {
        self.hunt.look(place, bytes, &mut self.found);
    }

    fn hear(&mut self, what: &str, answer: &Answer) {
        self.look(
            &format!("answer to {what}"),
            format!("{:?}", answer.headers).as_bytes(),
        );
        self.look(&format!("answer to {what}"), &answer.body);
    }

    async fn ask(&mut self, client: &Client, path: &str) -> Answer {
        let answer = client.get(path).await;
        self.hear(path, &answer);
        answer
    }

    async fn tell(&mut self, request: Asked) -> Told {
        let what = request.name();
        let told = self.daemon.admin(request).await;
        let text = format!("{told:?} {}", serde_json::to_string(&told).unwrap());
        self.look(&format!("admin's answer to {what}"), text.as_bytes());
        told
    }

    /// Whether the bait was found in a place whose name has this in it.
    fn is_found_in(&self, place: &str) -> bool {
        let mut found = self.found.iter();
        found.any(|(seen, what)| what == "bait" && seen.contains(place))
    }
}

/// The operator token of this run.
fn operator_token() -> String {
    let digest = casemate::identity::digest(Ground::mark("operator").as_bytes());
    let digits = casemate::model::record::hex(&digest);
    format!("cmo_{digits}")
}

/// A token as the issuer `planted` makes them.
fn token(secret: &[u8]) -> String {
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({
        "iss": "https://planted.example", "aud": "casemate", "sub": "somebody", "iat": now, "exp": now + 3600,
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!(
        "{}.{}",
        part(json!({"alg": "HS256", "typ": "JWT"})),
        part(claims)
    );
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let signature = ring::hmac::sign(&key, text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The private number of an elliptic curve's key in PKCS #8: the octets of `ECPrivateKey` (RFC 5915).
fn scalar(der: &[u8]) -> &[u8] {
    let at = der.windows(2).position(|two| two == [4, 32]).unwrap();
    &der[at + 2..at + 34]
}

async fn open() -> (Ground, Journal) {
    let mut daemon = Daemon::new();
    let journal = Journal::open(&daemon.home);
    daemon.journal = Some(journal.socket.clone());
    let papers = Papers::new(&daemon, "here");
    let paper = papers.server("server", &["127.0.0.1"]);
    daemon.set("http.tls", paper.settings());
    daemon.client.tls = Some(("127.0.0.1".into(), papers.trust()));
    daemon.set("log.level", json!("trace"));
    daemon.set("templates.base.allow_root", json!(true));
    let mut ground = Ground {
        daemon,
        hunt: Hunt::default(),
        found: Found::new(),
        bait: format!("bait-{:x}-planted", std::process::id()),
    };
    let bait = ground.bait.clone();
    ground.hunt.plant("bait", bait.as_bytes());
    ground.hunt.plant("private key of TLS", scalar(&paper.der));
    let secret = ground.plant("secret of HS256");
    let file = ground.daemon.home.join("jwt.secret");
    std::fs::write(&file, &secret).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    crate::support::daemon::give_to_daemon(&file);
    let issuer = json!({
        "issuer": "https://planted.example", "audiences": ["casemate"], "algorithms": ["HS256"],
        "secret_file": file, "team": "tests", "role": "team-admin",
    });
    ground.daemon.set("jwt", json!({"planted": issuer}));
    let operator = ground.daemon.home.join("operator.token");
    std::fs::write(&operator, operator_token()).unwrap();
    std::fs::set_permissions(
        &operator,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    crate::support::daemon::give_to_daemon(&operator);
    ground
        .daemon
        .set("http.operator", json!({"token": operator}));
    ground.daemon.start().await;
    for (what, file) in [("root key", "vault.key"), ("hash key", "keys.hmac")] {
        let bytes = std::fs::read(ground.daemon.state_dir().join(file)).unwrap();
        ground.hunt.plant(what, &bytes);
        if let Ok(bytes) = bytes.try_into() {
            let hasher = KeyHasher::new(&casemate::base::secret::Secret::new(bytes));
            ground.look("Debug", format!("{hasher:?}").as_bytes());
        }
    }
    (ground, journal)
}

/// What a client in a hurry does with its key.
async fn misplace(ground: &mut Ground, key: &str) {
    let (nobody, owner) = (
        ground.daemon.client.stranger(),
        ground.daemon.client.with_key(key),
    );
    let bearer = format!("Bearer {key}");
    for path in [
        format!("/v1/sessions?api_key={key}"),
        format!("/v1/sessions?authorization=Bearer%20{key}"),
        format!("/v1/sessions/{key}"),
        format!("/v1/sessions/{key}/run"),
        format!("/v1/credentials/{key}"),
        format!("/{key}"),
        format!("/v1/{key}/sessions"),
    ] {
        for client in [&nobody, &owner] {
            for method in [Method::GET, Method::POST, Method::PUT] {
                let answer = client.send(method, &path, &[], Bytes::new()).await;
                ground.hear("a key in a path", &answer);
            }
        }
    }
    let cookie = format!("session={key}");
    let basic = format!("Basic {key}");
    let page = format!("https://{}.example", &key[..40]);
    for (name, value) in [
        ("cookie", cookie.as_str()),
        ("authorization", &basic),
        ("authorization", key),
        ("proxy-authorization", &bearer),
        ("x-api-keys", key),
        ("origin", &page),
        ("user-agent", key),
        ("content-type", key),
        ("range", key),
        ("if-match", key),
    ] {
        let headers = [(name, value)];
        let answer = nobody
            .send(Method::GET, "/v1/sessions", &headers, Bytes::new())
            .await;
        ground.hear(name, &answer);
    }
    for body in [
        json!({"authorization": bearer}),
        json!({key: 1}),
        json!({"template": key}),
        json!({"labels": key}),
        json!([key]),
        json!(key),
    ] {
        for path in ["/v1/sessions", "/v1/keys", "/v1/volumes"] {
            for client in [&nobody, &owner] {
                let answer = client.post(path, body.clone()).await;
                assert!(answer.status.is_client_error(), "{:?}", answer.body);
                ground.hear("a key in a body", &answer);
            }
        }
    }
    let broken = format!("{{\"template\": {key}");
    let json = [("content-type", "application/json")];
    let answer = owner
        .send(Method::POST, "/v1/sessions", &json, broken.into())
        .await;
    ground.hear("a broken body", &answer);
}

/// Everything in a sandbox that root can read: each file, and what processes were given.
async fn inside(ground: &mut Ground, id: &str) {
    let client = ground.daemon.client.clone();
    let (code, names) = client.sh_as(id, "root", "ls -A /").await;
    assert_eq!(code, 0);
    let mut looked = 0;
    for name in names.lines() {
        // The kernel's, which has what is asked about below.
        if ["proc", "sys", "dev"].contains(&name) {
            continue;
        }
        let is_directory = format!("test -d /{name} -a ! -L /{name}");
        if client.sh_as(id, "root", &is_directory).await.0 != 0 {
            continue;
        }
        let path = format!("/v1/sessions/{id}/archive?path=/{name}&user=root");
        let archive = client.get(&path).await;
        assert_eq!(archive.status, 200, "{name}: {:?}", archive.body);
        let place = format!("sandbox's /{name}");
        looked += ground.hunt.unpack(&place, &archive.body, &mut ground.found);
    }
    assert!(looked > 1000, "only {looked} files were looked at");
    let walk = "for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline /dev/shm/* /proc/mounts; do echo \"== $f\"; tr '\\0' '\\n' <$f; done 2>/dev/null";
    let (_, text) = client.sh_as(id, "root", walk).await;
    for part in text.split("== ") {
        let name = part.lines().next().unwrap_or_default();
        ground.look(&format!("sandbox's {name}"), part.as_bytes());
    }
}

#[tokio::test]
async fn secrets_of_every_kind_turn_up_nowhere_that_anybody_looks() {
    let (mut ground, journal) = open().await;
    let admin = token(Ground::mark("secret-of-HS256").as_bytes());
    let (_, signature) = admin.rsplit_once('.').unwrap();
    ground.hunt.plant(
        "signature of a token",
        &URL_SAFE_NO_PAD.decode(signature).unwrap(),
    );
    let admin = ground.daemon.client.with_key(&admin);
    let bait = ground.bait.clone();

    // Keys of each kind, one of them named by the bait.
    let key = admin
        .post("/v1/keys", json!({"name": bait, "expires_in_s": 600}))
        .await
        .expect(201);
    let key = key["key"].as_str().unwrap().to_owned();
    ground.plant_key("API key", &key);
    ground.daemon.client.key = Some(key.clone());
    let client = ground.daemon.client.clone();
    let lost = ground.daemon.key("tests").await;
    ground.plant_key("misplaced key", &lost);
    misplace(&mut ground, &lost).await;
    let digest = casemate::identity::digest(Ground::mark("operator").as_bytes());
    ground.hunt.plant("operator token", &digest);
    misplace(&mut ground, &operator_token()).await;

    // A credential, right and wrong.
    let value = ground.plant("value of a credential");
    for (body, status) in [
        (json!({"value": value, "description": bait}), 201),
        (json!({"value": value, "value_base64": value}), 400),
        (json!({"valeu": value}), 400),
        (json!(value), 400),
    ] {
        let headers = [("content-type", "application/json")];
        let path = "/v1/credentials/db";
        let answer = admin
            .send(Method::PUT, path, &headers, body.to_string().into())
            .await;
        assert_eq!(answer.status, status, "{:?}", answer.body);
        ground.hear("a credential", &answer);
    }

    // A session whose programs are given secrets in every way.
    let in_session = ground.plant("environment of a session");
    let in_run = ground.plant("environment of a run");
    let in_argument = ground.plant("argument");
    let in_input = ground.plant("input");
    let id = client
        .session(json!({"env": {"TOKEN": in_session}, "labels": {"bait": bait}}))
        .await;
    let answer = client
        .post(
            &format!("/v1/sessions/{id}/tokens"),
            json!({"expires_in_s": 300}),
        )
        .await;
    let of_session = answer.expect(201)["key"].as_str().unwrap().to_owned();
    ground.plant_key("token of a session", &of_session);
    let of_session = client.with_key(&of_session);
    assert_eq!(of_session.out(&id, "echo hello").await, "hello\n");
    client.out(&id, &format!("echo {bait} >/tmp/bait")).await;
    let run = json!({
        "argv": ["sh", "-c", "cat >/dev/null; touch /tmp/began; until test -e /tmp/over; do sleep 0.1; done; echo $TOKEN $MORE $0", in_argument],
        "env": {"MORE": in_run},
        "stdin": in_input,
        // As long as it takes to look everywhere.
        "timeout_s": 600,
    });
    let mut baited = Command::new("sleep")
        .arg("600")
        .env("BAIT", &bait)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let looking = async {
        wait_until("it runs", async || {
            client.sh(&id, "test -e /tmp/began").await.0 == 0
        })
        .await;
        let looked = ground.hunt.processes(&mut ground.found);
        assert!(looked > 5, "{looked}");
        inside(&mut ground, &id).await;
        client.out(&id, "touch /tmp/over").await;
    };
    let (outcome, ()) = tokio::join!(client.run(&id, run), looking);
    let _ = baited.kill();
    let _ = baited.wait();
    let expected = format!("{in_session} {in_run} {in_argument}\n");
    assert_eq!(outcome["stdout"], expected);
    let refused =
        json!({"argv": ["no-such", in_argument], "env": {"MORE": in_run}, "stdin": in_input});
    for run in [
        refused,
        json!({"argv": ["true", in_argument], "env": {"": in_run}}),
        json!({"argv": in_argument}),
    ] {
        let answer = client.try_run(&id, run).await;
        assert!(answer.status.is_client_error());
        ground.hear("a program that is refused", &answer);
    }

    everything_else(&mut ground, &admin, &id).await;
    ground.look("journal", &journal.heard());

    // The same in lines, where there is no journal.
    ground.daemon.journal = None;
    ground.daemon.restart().await;
    misplace(&mut ground, &lost).await;
    client
        .run(
            &id,
            json!({"argv": ["true", in_argument], "env": {"MORE": in_run}, "stdin": in_input}),
        )
        .await;
    let again = admin.post("/v1/keys", json!({"name": bait, "expires_in_s": 60}));
    again.await.expect(201);
    wait_until("the record is in the log", async || {
        ground.daemon.log().contains(&bait)
    })
    .await;
    client.end(&id).await;
    assert_eq!(ground.daemon.term().await, 0);
    ground.look("journal", &journal.heard());
    let home = ground.daemon.home.clone();
    ground.hunt.walk(&home, &mut ground.found);
    // Nor has any row it, sealed.
    let rows = ground.daemon.sql::<String>("SELECT env FROM sessions");
    assert!(rows.iter().all(|env| env == "{}"), "{rows:?}");
    is_clean(&ground, &home.display().to_string());
}

/// The API, the admin socket and what is on the disk while it runs, with a backup and with records in files.
async fn everything_else(ground: &mut Ground, admin: &Client, id: &str) {
    let client = ground.daemon.client.clone();
    for path in [
        "/openapi.json",
        "/health",
        "/health/detailed",
        "/ready",
        "/v1/sessions",
        "/v1/templates",
        "/v1/volumes",
        "/v1/keys",
        "/v1/credentials",
        &format!("/v1/sessions/{id}"),
        &format!("/v1/sessions/{id}/processes"),
        &format!("/v1/sessions/{id}/usage"),
        &format!("/v1/sessions/{id}/ports"),
        &format!("/v1/audit?session={id}&limit=200"),
        "/v1/audit?limit=1000",
    ] {
        for client in [&client, admin] {
            ground.ask(client, path).await;
        }
    }
    let filter = AuditFilter {
        limit: 1000,
        ..AuditFilter::default()
    };
    for request in [
        Asked::Status,
        Asked::Doctor,
        Asked::AuditVerify,
        Asked::AuditKey,
        Asked::ImageList,
        Asked::PolicyList,
        Asked::SessionList {
            live: false,
            limit: 100,
        },
        Asked::KeyList {
            team: None,
            after: None,
            limit: 100,
        },
        Asked::AuditList { filter },
        Asked::Reload,
    ] {
        ground.tell(request).await;
    }
    let backup = Asked::Backup {
        to: None,
        images: false,
    };
    let told = ground.tell(backup).await;
    assert!(matches!(told, Told::Backup(_)), "{told:?}");
    wait_for("records are in files", PATIENCE, async || {
        let before = Some(Timestamp::from_millis(4_102_444_800_000));
        let told = ground.tell(Asked::AuditArchive { before }).await;
        match told {
            Told::AuditArchived { archives, .. } => (archives > 0).then_some(()),
            other => panic!("{other:?}"),
        }
    })
    .await;
    // The newest is in the database's log as well.
    let wanted = json!({"name": ground.bait, "expires_in_s": 60});
    let made = admin.post("/v1/keys", wanted).await;
    made.expect(201);
    let home = ground.daemon.home.clone();
    let looked = ground.hunt.walk(&home, &mut ground.found);
    assert!(looked > 10, "{looked}");
}

/// Nothing was found but what is where it belongs, and the bait in each kind of place.
fn is_clean(ground: &Ground, home: &str) {
    for place in [
        "answer to /v1/keys",
        "admin's answer to key-list",
        "journal",
        "/log",
        "/state.db",
        "/state.db-wal",
        "/state/archive/",
        "/state/backups/",
        ".zst: state.db",
        "/environ",
        "sandbox's /tmp: ",
    ] {
        assert!(
            ground.is_found_in(place),
            "nothing would be found in {place}: {:#?}",
            ground.found
        );
    }
    let is_program = |place: &str| place.starts_with("sandbox's /proc/");
    for (what, file) in [
        ("environment of a session", "/environ"),
        ("environment of a run", "/environ"),
        ("argument", "/cmdline"),
    ] {
        let mut found = ground.found.iter();
        assert!(
            found.any(|(place, found)| is_program(place) && place.ends_with(file) && found == what),
            "{what}"
        );
    }
    assert_only(&ground.found, |place, what| match what {
        "bait" => true,
        "root key" => place == format!("{home}/state/vault.key"),
        "hash key" => {
            place == format!("{home}/state/keys.hmac")
                || place.ends_with(".zst: keys.hmac")
                || place.ends_with(".zst unpacked")
        }
        // What a body has in the wrong place is said back to whoever sent it, and to nobody else.
        "misplaced key" => place == "answer to a key in a body",
        "operator token" => {
            place == format!("{home}/operator.token") || place == "answer to a key in a body"
        }
        "secret of HS256" => place == format!("{home}/jwt.secret"),
        "private key of TLS" => place == format!("{home}/here.tls/server.key"),
        // What a program was given is in that program.
        "environment of a session" | "environment of a run" => {
            is_program(place) && place.ends_with("/environ")
        }
        "argument" => {
            is_program(place) && place.ends_with("/cmdline")
                || place == "answer to a program that is refused"
        }
        _ => false,
    });
}
