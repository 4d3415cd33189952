//! Marked secrets are planted in every place where one goes in, and looked for in every place where something comes out.
//!
//! To extend it: what is planted is a line of [`PLANTED`], where it is looked for is what [`Ground::places`] gathers, and what is done with it
//! is `use_it`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::api::{Browsers, Server, ServerConfig};
use casemate::app::{App, AppError, NewKey, Parts, fake};
use casemate::audit::{AuditLog, Signer};
use casemate::backup::keeper::Progress;
use casemate::backup::restore::{Place, Wish, restore};
use casemate::base::chain::Chain;
use casemate::base::clock::{Clock, SystemClock};
use casemate::base::id::KeyId;
use casemate::credential::{Credentials, Wanted, vault_of};
use casemate::model::credential::{CredentialPlace, CredentialValue, Description};
use casemate::model::grant::{Grant, Role};
use casemate::model::name::Name;
use casemate::model::principal::{Client, Principal, Proof};
use casemate::model::query::AuditFilter;
use casemate::model::settings::{AuditConfig, HttpLimits};
use casemate::model::template::Precondition;
use casemate::store::{NewCredential, Store};
use casemate::volume::VolumeFiles;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is planted: where it goes in, and what. Each is long enough to be nobody's by chance.
const PLANTED: [(&str, &str); 7] = [
    ("value", "planted-value-7Qm2xWv9LkT4"),
    ("value of before", "planted-before-Zr8NcYp3HsD6"),
    ("value that was removed", "planted-removed-Fb5VgJu1EoA0"),
    ("body that is no JSON", "planted-syntax-Kt6RwXi4MnC8"),
    ("body of another shape", "planted-shape-Ls9QyBa2PvG7"),
    ("name of a field", "planted-field-Wd3HzOe5UjT1"),
    ("value in bad base64", "planted*base64-Nf0SkIr7YcM2"),
];

fn planted(what: &str) -> &'static str {
    let found = PLANTED.iter().find(|(planted, _)| *planted == what);
    found
        .unwrap_or_else(|| panic!("{what} is not in the list"))
        .1
}

/// How a secret may look elsewhere.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let hex = |upper: bool| -> String {
        let digits = secret.bytes().map(|byte| {
            if upper {
                format!("{byte:02X}")
            } else {
                format!("{byte:02x}")
            }
        });
        digits.collect()
    };
    // As numbers, which is how Debug shows bytes.
    let listed: Vec<_> = secret.bytes().map(|byte| byte.to_string()).collect();
    let mut forms = vec![
        secret.as_bytes().to_vec(),
        secret.to_uppercase().into_bytes(),
        hex(false).into_bytes(),
        hex(true).into_bytes(),
        listed.join(", ").into_bytes(),
        secret.encode_utf16().flat_map(u16::to_le_bytes).collect(),
    ];
    // At each place within a longer text; what depends on its neighbours is left out.
    for before in 0..3 {
        let text = STANDARD.encode(["x".repeat(before).as_str(), secret].concat());
        let inner = text.get(4..text.len() - 4).unwrap_or_default();
        forms.push(inner.as_bytes().to_vec());
    }
    forms
}

/// The planted secrets that are in a text.
fn found_in(text: &[u8]) -> Vec<&'static str> {
    let is_in = |form: &Vec<u8>| text.windows(form.len()).any(|window| window == form);
    let hits = PLANTED
        .iter()
        .filter(|(_, secret)| forms(secret).iter().any(is_in));
    hits.map(|(what, _)| *what).collect()
}

/// Everything that was logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<StdMutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Where secrets are looked for.
#[derive(Default)]
struct Places(BTreeMap<String, Vec<u8>>);

impl Places {
    fn add(&mut self, place: impl Into<String>, text: impl Into<Vec<u8>>) {
        let text = text.into();
        assert!(!text.is_empty());
        self.0.entry(place.into()).or_default().extend(text);
    }

    /// Every file below a directory.
    fn add_files(&mut self, what: &str, directory: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.add_files(what, &path);
            } else if let Ok(text) = fs::read(&path)
                && !text.is_empty()
            {
                self.add(format!("{what}: {}", path.display()), text);
            }
        }
    }

    fn are_clean(&self) {
        let problems: Vec<_> = self
            .0
            .iter()
            .filter_map(|(place, text)| match found_in(text).as_slice() {
                [] => None,
                found => Some(format!("{place}: {}", found.join(", "))),
            })
            .collect();
        assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn admin() -> Principal {
    Principal::Client(Client {
        by: Proof::Key(KeyId::from_bytes([1; 16])),
        team: name("red"),
        grant: Grant::whole(Role::TeamAdmin),
        session: None,
    })
}

const OPERATOR: Principal = Principal::Operator { uid: 0 };

/// A daemon without a machine.
struct Ground {
    directory: tempfile::TempDir,
    store: Store,
    credentials: Credentials,
    app: App,
    address: String,
    stop: CancellationToken,
    key: String,
}

impl Ground {
    async fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        fs::create_dir_all(&state).unwrap();
        let store = Store::open(&state.join("state.db")).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let vault = vault_of(&store, None, &state).await.unwrap();
        let (signer, _) = Signer::open(&store, &vault, clock.now()).await.unwrap();
        let audit = AuditLog::new(store.clone(), Arc::clone(&clock));
        let audit = audit.with(AuditConfig::default(), signer);
        let credentials = Credentials::new(store.clone(), vault.clone(), audit.clone());
        let ground = fake::Ground {
            audit,
            ..fake::Ground::new(store.clone(), vault, clock)
        };
        let app = App::new(Parts {
            credentials: credentials.clone(),
            ..ground.parts(&state).unwrap()
        });
        let new = NewKey {
            grant: Grant::whole(Role::TeamAdmin),
            ..NewKey::member(name("k"), name("red"))
        };
        let made = app.create_key(&OPERATOR, new).await.unwrap();
        let key = made.text.expose().clone();
        let config = ServerConfig {
            max_body_bytes: 1 << 20,
            max_connections: 16,
            header_timeout: PATIENCE,
            tls: None,
            browsers: Browsers {
                hosts: vec!["x".parse().unwrap()],
                origins: Vec::new(),
            },
            limits: HttpLimits::off(),
        };
        let server = Server::new(app.clone(), config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(listener, stop.clone(), PATIENCE));
        Self {
            directory,
            store,
            credentials,
            app,
            address,
            stop,
            key,
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The whole answer, head and all.
    async fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer));
        read.await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        answer
    }

    async fn put(&self, named: &str, text: &str) -> Result<String, AppError> {
        let value = CredentialValue::new(text.into()).unwrap();
        let about = Some(Description::new("what it is for".into()).unwrap());
        let by = admin();
        let put = self
            .app
            .put_credential(&by, name(named), value, about, Precondition::None);
        put.await.map(|kept| format!("{kept:?}"))
    }

    async fn open_for_use(&self, named: &str) -> CredentialValue {
        let by = admin();
        let (team, named, purpose) = (name("red"), name(named), name("test"));
        let opened = self
            .credentials
            .open_for_use(&by, None, &team, &named, &purpose);
        opened.await.unwrap()
    }

    /// Everything that somebody else could read.
    async fn gather(&self, what: &str, places: &mut Places) {
        places.add_files(what, &self.state());
        let filter = AuditFilter {
            limit: 1000,
            ..AuditFilter::default()
        };
        for (_, line) in self.store.audit_lines(filter).await.unwrap() {
            places.add(format!("{what}: the record"), line);
        }
    }
}

/// Everything that is in a backup.
fn unpack(backup: &Path, into: &Path) {
    let file = fs::File::open(backup).unwrap();
    let plain = zstd::stream::read::Decoder::new(file).unwrap();
    tar::Archive::new(plain).unpack(into).unwrap();
}

/// Requests that cannot be taken, each with a secret in it.
async fn mistakes(ground: &Ground, places: &mut Places) {
    let (syntax, shape) = (
        planted("body that is no JSON"),
        planted("body of another shape"),
    );
    let (field, base64) = (planted("name of a field"), planted("value in bad base64"));
    let bodies = [
        format!("{{\"value\": {syntax}}}"),
        format!("{{\"value\": \"{syntax}"),
        format!("\"{shape}\""),
        format!("[\"{shape}\"]"),
        format!("{{\"value\": [\"{shape}\"]}}"),
        format!("{{\"value\": {{\"{shape}\": 1}}}}"),
        format!("{{\"description\": [\"{shape}\"], \"value\": \"x\"}}"),
        format!("{{\"value\": \"{shape}\", \"value\": \"{shape}\"}}"),
        format!("{{\"value\": \"{shape}\", \"value_base64\": \"{shape}\"}}"),
        format!("{{\"{field}\": \"x\"}}"),
        format!("{{\"value_base64\": \"{base64}\"}}"),
    ];
    for body in bodies {
        let answer = ground.ask("PUT", "/v1/credentials/db", &body).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        places.add(format!("the answer to {body}"), answer);
    }
    // And one that is none: what comes by the wire is kept as what the app is given.
    let body = format!("{{\"value\": \"{shape}\"}}");
    let answer = ground.ask("PUT", "/v1/credentials/wire", &body).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    places.add(format!("the answer to {body}"), answer);
}

/// What holds a value on its way, as Debug and Display show it.
async fn shown(ground: &Ground, places: &mut Places) {
    let text = planted("value");
    let value = || CredentialValue::new(text.into()).unwrap();
    let wanted = Wanted {
        team: name("red"),
        name: name("db"),
        value: value(),
        description: None,
        precondition: Precondition::None,
        by: "key_x".into(),
        at: ground.app.now(),
    };
    places.add("Debug of Wanted", format!("{wanted:?} {wanted:#?}"));
    places.add("Debug of a value", format!("{:?} {:#?}", value(), value()));
    let apart = ground.directory.path().join("apart");
    fs::create_dir(&apart).unwrap();
    let vault = casemate::vault::Vault::open(None, &apart, false).unwrap();
    let place = CredentialPlace {
        team: name("red"),
        name: name("db"),
        version: 1,
    };
    let sealed = vault.seal_value(1, &place, &value()).unwrap();
    places.add("Debug of Vault", format!("{vault:?}"));
    let mut other = place.clone();
    other.version = 2;
    let error = vault.open_value(&other, &sealed).unwrap_err();
    places.add("the vault's error", format!("{error:?} {}", Chain(&error)));
    let new = NewCredential {
        place,
        description: None,
        sealed,
        precondition: Precondition::None,
        max: 1,
        by: "key_x".into(),
        at: ground.app.now(),
    };
    places.add("Debug of NewCredential", format!("{new:?}"));
    let error = ground
        .app
        .put_credential(&OPERATOR, name("db"), value(), None, Precondition::None)
        .await
        .unwrap_err();
    places.add("the app's error", format!("{error:?} {}", Chain(&error)));
    let error = ground
        .app
        .put_credential(&admin(), name("db"), value(), None, Precondition::Absent)
        .await
        .unwrap_err();
    places.add("the app's error", format!("{error:?} {}", Chain(&error)));
}

#[test]
fn what_is_looked_for_would_be_found() {
    let secret = planted("value");
    let looks = [
        secret.to_owned(),
        format!("x{secret}y"),
        STANDARD.encode(format!("a longer text with {secret} in it")),
        STANDARD.encode(format!("a longer text, with {secret} in it")),
        STANDARD.encode(format!("a longer text: with {secret} in it")),
        format!("{:?}", secret.as_bytes()),
        format!("{:?}", Some(secret)),
    ];
    for look in looks {
        assert_eq!(found_in(look.as_bytes()), ["value"], "{look}");
    }
    assert_eq!(found_in(b"planted-value"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_secret_turns_up_nowhere() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .init();
    let mut places = Places::default();
    let ground = Ground::open().await;

    for text in [planted("value of before"), planted("value")] {
        places.add(
            "an answer of the app",
            ground.put("db", text).await.unwrap(),
        );
    }
    ground
        .put("gone", planted("value that was removed"))
        .await
        .unwrap();
    let by = admin();
    let removed = ground
        .app
        .remove_credential(&by, name("gone"), Precondition::None);
    removed.await.unwrap();
    mistakes(&ground, &mut places).await;
    shown(&ground, &mut places).await;
    let listed = ground.ask("GET", "/v1/credentials", "").await;
    assert!(listed.contains("\"version\":2"), "{listed}");
    places.add("the list", listed);
    let used = ground.open_for_use("db").await;
    assert_eq!(used.expose(), planted("value").as_bytes());
    ground.gather("in use", &mut places).await;

    let (told, _) = watch::channel(Progress::default());
    let made = ground.app.make_backup(&OPERATOR, None, false, told).await;
    let made = made.unwrap();
    let unpacked = ground.directory.path().join("unpacked");
    unpack(&made.path, &unpacked);
    places.add_files("the backup", &unpacked);
    restored(&ground, &made.path, &mut places).await;

    let key_before = fs::read(ground.state().join("vault.key")).unwrap();
    let rotated = ground.app.rotate_key(&OPERATOR).await.unwrap();
    places.add("the answer to a rotation", format!("{rotated:?}"));
    let used = ground.open_for_use("db").await;
    assert_eq!(used.expose(), planted("value").as_bytes());
    ground.gather("after a rotation", &mut places).await;
    ground.stop.cancel();
    places.add_files("at the end", &ground.state());

    let logged = log.0.lock().unwrap().clone();
    places.add("the log", logged);
    let has = |what: &str| places.0.keys().any(|place| place.contains(what));
    for what in [
        "state.db",
        "state.db-wal",
        "unpacked/state.db",
        "the record",
        "the log",
    ] {
        assert!(has(what), "{what} was not looked at");
    }
    places.are_clean();
    // Nor is the secret part of the API key that asked for all of it.
    let (_, secret) = ground.key.rsplit_once('_').unwrap();
    for (place, text) in &places.0 {
        let is_in = text
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!is_in, "the API key is in {place}");
    }
    // Nor is the root key anywhere but in its file, and there no longer than it is the key.
    for (place, text) in &places.0 {
        let is_in = text.windows(32).any(|window| window == key_before);
        let is_its_file = place.starts_with("in use") && place.ends_with("vault.key");
        assert_eq!(is_in, is_its_file, "{place}");
    }
}

/// What is in a backup opens with the key that it was made under, and with no other.
async fn restored(ground: &Ground, backup: &Path, places: &mut Places) {
    let fresh = ground.directory.path().join("fresh");
    for part in ["state", "templates", "volumes"] {
        fs::create_dir_all(fresh.join(part)).unwrap();
    }
    let state = fresh.join("state");
    let place = Place {
        state_dir: state.clone(),
        volumes: VolumeFiles::new(&fresh.join("volumes")),
        templates: fresh.join("templates"),
    };
    let file = fs::File::open(backup).unwrap();
    restore(file, None, &place, Wish::default(), ground.app.now()).unwrap();
    places.add_files("restored", &state);
    let store = Store::open(&state.join("state.db")).unwrap();
    let refused = vault_of(&store, None, &state).await.unwrap_err();
    let told = Chain(&refused).to_string();
    assert!(told.contains("there is no vault key"), "{told}");
    let own = ground.state().join("vault.key");
    let mut key = Vec::new();
    fs::File::open(&own).unwrap().read_to_end(&mut key).unwrap();
    fs::copy(&own, state.join("vault.key")).unwrap();
    fs::write(state.join("vault.key"), [9; 32]).unwrap();
    let refused = vault_of(&store, None, &state).await.unwrap_err();
    let told = Chain(&refused).to_string();
    assert!(told.contains("put the key back"), "{told}");
    fs::write(state.join("vault.key"), key).unwrap();
    let vault = vault_of(&store, None, &state).await.unwrap();
    let audit = AuditLog::new(store.clone(), Arc::new(SystemClock));
    let credentials = Credentials::new(store.clone(), vault, audit);
    let (team, named, purpose) = (name("red"), name("db"), name("test"));
    let opened = credentials
        .open_for_use(&admin(), None, &team, &named, &purpose)
        .await;
    assert_eq!(opened.unwrap().expose(), planted("value").as_bytes());
    drop(credentials);
    store.close().await;
}
