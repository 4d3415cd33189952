//! Templates over the door: the real table, real keys of two teams, a fake runtime that has one image.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Door, PATIENCE};
use crate::api::route::Route;
use crate::api::routes::ROUTES;
use crate::api::server::{Server, ServerConfig};
use crate::app::fake::Ground;
use crate::app::{App, NewKey};
use crate::base::clock::{ManualClock, Timestamp};
use crate::credential::vault_of;
use crate::model::event::{AuditEvent, Outcome, Stage};
use crate::model::image::ImageDigest;
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::query::AuditFilter;
use crate::model::settings::{SessionsConfig, TeamTemplates};
use crate::model::template::{Origin, Template, TemplateSpec};
use crate::runtime::fake::FakeRuntime;
use crate::session::manager::Settings;
use crate::store::Store;

const IMAGE: ImageDigest = ImageDigest::from_bytes([7; 32]);

pub(super) struct House {
    pub(super) door: Door,
    pub(super) store: Store,
    pub(super) app: App,
    pub(super) clock: Arc<ManualClock>,
    pub(super) red: String,
    pub(super) blue: String,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    etag: Option<String>,
    pub(super) body: Value,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// The templates in files: `base` for everybody, `secret` for the team blue.
fn files() -> BTreeMap<Name, Template> {
    let file = |named: &str, teams: Option<&str>| Template {
        name: name(named),
        version: 5,
        origin: Origin::File,
        made_by: "casemated".into(),
        made_at: Timestamp::from_millis(0),
        spec: TemplateSpec {
            teams: teams.map(|team| [name(team), name("green")].into()),
            ..TemplateSpec::new(IMAGE)
        },
    };
    let files = [file("base", None), file("secret", Some("blue"))];
    files.map(|one| (one.name.clone(), one)).into()
}

/// Those files, and room for three templates of a team.
fn settings() -> Settings {
    Settings {
        sessions: SessionsConfig {
            team_templates: TeamTemplates {
                max: 3,
                ..TeamTemplates::default()
            },
            ..SessionsConfig::default()
        },
        templates: files(),
    }
}

impl House {
    pub(super) async fn open() -> Self {
        Self::open_with(&[]).await
    }

    /// One that has these routes too.
    pub(super) async fn open_with(more: &[Route]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let clock = Arc::new(ManualClock::at(1_700_000_000_000));
        let vault = vault_of(&store, None, directory.path()).await.unwrap();
        let ground = Ground {
            runtime: Arc::new(FakeRuntime::new([IMAGE])),
            settings: settings(),
            ..Ground::new(store.clone(), vault, clock.clone())
        };
        let app = App::new(ground.parts(directory.path()).unwrap());
        let operator = Principal::Operator { uid: 0 };
        let key = async |team| {
            let made = app.create_key(&operator, NewKey::member(name("k"), name(team)));
            made.await.unwrap().text.expose().clone()
        };
        let (red, blue) = (key("red").await, key("blue").await);
        let config = ServerConfig {
            max_body_bytes: 1 << 20,
            max_connections: 16,
            header_timeout: PATIENCE,
            tls: None,
            browsers: super::browsers(),
            limits: crate::model::settings::HttpLimits::off(),
        };
        let routes = [&ROUTES[..], more].concat();
        let server = Server::with_routes(app.clone(), config, &routes).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.serve(listener, stop.clone(), PATIENCE));
        let door = Door {
            address,
            stop,
            serving,
            _directory: directory,
        };
        Self {
            door,
            store,
            app,
            clock,
            red,
            blue,
        }
    }

    pub(super) async fn ask(
        &self,
        key: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://x{path}"))
            .header("host", "x")
            .header("x-api-key", key);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let bytes = if body.is_null() {
            Bytes::new()
        } else {
            request = request.header("content-type", "application/json");
            body.to_string().into()
        };
        let request = request.body(Full::new(bytes)).unwrap();
        let mut sender = self.door.client().await;
        let answer: Response<_> = sender.send_request(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let etag = head.headers.get("etag");
        let etag = etag.map(|tag| tag.to_str().unwrap().to_owned());
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status,
            etag,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        }
    }

    pub(super) async fn get(&self, key: &str, path: &str) -> Answer {
        self.ask(key, Method::GET, path, &[], &Value::Null).await
    }

    /// An answer that streams, of which only the head has come.
    pub(super) async fn open_stream(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Response<Incoming> {
        let key = [("x-api-key", self.red.as_str())];
        self.open_stream_with(path, &[&key, headers].concat()).await
    }

    /// The same, with what is presented among the headers.
    pub(super) async fn open_stream_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Response<Incoming> {
        let mut request = Request::builder()
            .uri(format!("http://x{path}"))
            .header("host", "x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let mut sender = self.door.client().await;
        sender.send_request(request).await.unwrap()
    }

    async fn put(&self, named: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let path = format!("/v1/templates/{named}");
        self.ask(&self.red, Method::PUT, &path, headers, body).await
    }

    async fn delete(&self, named: &str, headers: &[(&str, &str)]) -> Answer {
        let path = format!("/v1/templates/{named}");
        self.ask(&self.red, Method::DELETE, &path, headers, &Value::Null)
            .await
    }

    async fn names(&self, key: &str) -> Vec<String> {
        let listed = self.get(key, "/v1/templates").await;
        assert_eq!(listed.status, 200);
        let items = listed.body["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

pub(super) fn problem(answer: &Answer, status: u16, code: &str) -> String {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.body["code"], code, "{}", answer.body);
    answer.body["detail"].as_str().unwrap().to_owned()
}

fn web() -> Value {
    json!({
        "image": IMAGE, "limits": {"pids": 300}, "max_limits": {"cpus": 2.0}, "env": {"A": "b"},
        "user": "app", "start": {"command": "serve", "cwd": "/srv"}, "ready": {"port": 8000},
        "ports": [8000], "endpoints": {"any_port": false, "public": [8000], "headers": {"8000": {"X-A": "b"}}}, "pool": 1,
    })
}

#[tokio::test]
async fn a_template_is_made_read_changed_and_removed_under_its_version() {
    let house = House::open().await;
    let made = house.put("web", &[("if-none-match", "*")], &web()).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.etag.as_deref(), Some("\"1\""));
    assert_eq!(
        (&made.body["version"], &made.body["origin"]),
        (&json!(1), &json!("api"))
    );
    assert_eq!(made.body["teams"], json!(["red"]));
    assert_eq!(made.body["limits"]["pids"], 300);
    assert_eq!(
        made.body["max_limits"]["pids"], 300,
        "what is absent is as in limits"
    );
    assert_eq!(
        made.body["ready"],
        json!({"port": 8000, "timeout_s": 60, "interval_ms": 200})
    );

    let found = house.get(&house.red, "/v1/templates/web").await;
    assert_eq!((found.status.as_u16(), &found.body), (200, &made.body));
    assert_eq!(found.etag, made.etag);
    let tag = [("if-none-match", "\"1\"")];
    let same = house
        .ask(
            &house.red,
            Method::GET,
            "/v1/templates/web",
            &tag,
            &Value::Null,
        )
        .await;
    assert_eq!((same.status.as_u16(), same.body), (304, Value::Null));

    // What was read, without what is said beside it, is no change.
    let mut again = found.body.clone();
    for field in ["name", "version", "origin", "made_at", "made_by"] {
        again.as_object_mut().unwrap().remove(field);
    }
    let kept = house.put("web", &[], &again).await;
    assert_eq!(
        (kept.status.as_u16(), kept.etag.as_deref()),
        (200, Some("\"1\""))
    );

    let mut other = web();
    other["env"]["A"] = json!("c");
    let stale = house.put("web", &[("if-match", "\"7\"")], &other).await;
    problem(&stale, 412, "condition_failed");
    let taken = house.put("web", &[("if-none-match", "*")], &other).await;
    problem(&taken, 412, "condition_failed");
    let changed = house.put("web", &[("if-match", "\"1\"")], &other).await;
    assert_eq!(
        (changed.status.as_u16(), changed.etag.as_deref()),
        (200, Some("\"2\""))
    );
    let before = house.get(&house.red, "/v1/templates/web?version=1").await;
    assert_eq!(before.body, made.body);
    problem(
        &house.get(&house.red, "/v1/templates/web?version=3").await,
        404,
        "template_version_not_found",
    );

    assert_eq!(house.names(&house.red).await, ["base", "web"]);
    let stale = house.delete("web", &[("if-match", "\"1\"")]).await;
    problem(&stale, 412, "condition_failed");
    assert_eq!(
        house.delete("web", &[("if-match", "\"2\"")]).await.status,
        204
    );
    problem(&house.delete("web", &[]).await, 404, "template_not_found");
    problem(
        &house.get(&house.red, "/v1/templates/web").await,
        404,
        "template_not_found",
    );
    let before = house.get(&house.red, "/v1/templates/web?version=2").await;
    assert_eq!(before.body, changed.body, "sessions of it may live");
    house.door.close().await;
}

#[tokio::test]
async fn every_change_is_recorded_before_and_after() {
    let house = House::open().await;
    house.put("web", &[], &web()).await;
    house.put("web", &[("if-match", "\"9\"")], &web()).await;
    house.delete("web", &[]).await;
    house.delete("web", &[]).await;
    // What is refused before anything is decided leaves nothing.
    house.put("base", &[], &web()).await;
    let filter = AuditFilter {
        limit: 100,
        ..AuditFilter::default()
    };
    let records = house.store.audit(filter).await.unwrap();
    let told: Vec<_> = records
        .into_iter()
        .map(|(_, record)| record)
        .filter(|record| record.event.kind().starts_with("template."))
        .map(|record| match (record.stage, record.outcome) {
            (Stage::Intent, None) => record.event.kind().to_owned(),
            (_, Some(Outcome::Ok { detail })) => format!("ok {}", detail.unwrap_or_default()),
            (_, Some(Outcome::Failed { code })) => code,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            "template.put",
            "ok version 1",
            "template.put",
            "condition_failed",
            "template.remove",
            "ok ",
            "template.remove",
            "template_not_found",
        ]
    );
    let event = AuditEvent::TemplatePut {
        template: name("web"),
        team: name("red"),
        image: IMAGE,
    };
    assert!(!serde_json::to_string(&event).unwrap().contains("env"));
    house.door.close().await;
}

#[tokio::test]
async fn a_template_of_a_file_is_changed_in_its_file() {
    let house = House::open().await;
    let base = house.get(&house.red, "/v1/templates/base").await;
    assert_eq!(base.etag.as_deref(), Some("\"5\""));
    assert_eq!(
        (&base.body["origin"], &base.body["teams"]),
        (&json!("file"), &Value::Null)
    );
    for refused in [
        house.put("base", &[], &web()).await,
        house.delete("base", &[]).await,
    ] {
        let detail = problem(&refused, 409, "template_from_file");
        assert!(detail.contains("templates/base.yaml"), "{detail}");
    }
    house.door.close().await;
}

#[tokio::test]
async fn what_is_not_for_a_team_is_not_there_for_it() {
    let house = House::open().await;
    assert_eq!(house.names(&house.red).await, ["base"]);
    assert_eq!(house.names(&house.blue).await, ["base", "secret"]);
    // Not even under which teams it is besides the own.
    let secret = house.get(&house.blue, "/v1/templates/secret").await;
    assert_eq!(secret.body["teams"], json!(["blue"]));
    let hidden = house.get(&house.red, "/v1/templates/secret").await;
    let missing = house.get(&house.red, "/v1/templates/nothing").await;
    let hidden = problem(&hidden, 404, "template_not_found");
    let missing = problem(&missing, 404, "template_not_found");
    assert_eq!(hidden.replace("secret", "nothing"), missing);
    let create = |template: &str| {
        let body = json!({"template": template, "wait": false});
        let red = &house.red;
        let house = &house;
        async move {
            let answer = house
                .ask(red, Method::POST, "/v1/sessions", &[], &body)
                .await;
            problem(&answer, 400, "unknown_template")
        }
    };
    let (hidden, missing) = (create("secret").await, create("nothing").await);
    assert_eq!(hidden.replace("secret", "nothing"), missing);

    // The name is free for the team, whose template is another's no more than the file's is its.
    let made = house.put("secret", &[("if-none-match", "*")], &web()).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let theirs = house.get(&house.blue, "/v1/templates/secret").await;
    assert_eq!(theirs.body["origin"], "file");
    house.put("own", &[], &web()).await;
    problem(
        &house.get(&house.blue, "/v1/templates/own").await,
        404,
        "template_not_found",
    );
    problem(
        &house.get(&house.blue, "/v1/templates/own?version=1").await,
        404,
        "template_version_not_found",
    );
    house.door.close().await;
}

#[tokio::test]
async fn a_team_goes_no_further_than_it_is_let() {
    let house = House::open().await;
    let with = |field: &str, value: Value| {
        let mut body = web();
        body[field] = value;
        body
    };
    for (body, field) in [
        (with("allow_root", json!(true)), "allow_root"),
        (with("max_timeout_s", json!(86_401)), "max_timeout_s"),
        (with("pool", json!(5)), "pool"),
        (
            with("max_limits", json!({"memory_bytes": 5_u64 << 30})),
            "max_limits.memory_bytes",
        ),
        (with("ports", json!([3128])), "ports"),
        (
            with("start", json!({"argv": ["a"], "command": "hush"})),
            "start",
        ),
        (with("start", json!({})), "start"),
        (with("ready", json!({"timeout_s": 5})), "ready"),
        (with("user", json!("root")), "user"),
        (with("env", json!({"A-B": "hush"})), "env.A-B"),
        (
            with("egress", json!({"x": {"hosts": []}})),
            "egress.x.hosts",
        ),
    ] {
        let detail = problem(&house.put("web", &[], &body).await, 400, "invalid_request");
        assert!(detail.starts_with(&format!("{field}: ")), "{detail}");
        assert!(!detail.contains("hush"), "{detail}");
    }
    for body in [
        with("network", json!({})),
        with("egress", json!({"x": {"hosts": ["*.*.org"]}})),
        with("egress", json!({"x": {"hosts": ["a.org"], "port": [1]}})),
        with("image", json!("debian:12")),
        with("ports", json!([65_536])),
        json!({}),
        Value::Null,
    ] {
        problem(&house.put("web", &[], &body).await, 400, "invalid_request");
    }
    problem(&house.put("Web", &[], &web()).await, 400, "invalid_request");
    for teams in [json!(["blue"]), json!(["blue", "red"])] {
        problem(
            &house.put("web", &[], &with("teams", teams)).await,
            403,
            "denied",
        );
    }
    problem(
        &house.put("web", &[], &with("teams", json!([]))).await,
        400,
        "invalid_request",
    );
    let missing = with("image", json!(ImageDigest::from_bytes([9; 32])));
    problem(&house.put("web", &[], &missing).await, 422, "image_missing");
    assert_eq!(house.names(&house.red).await, ["base"], "nothing was made");

    for one in ["a", "b", "c"] {
        assert_eq!(house.put(one, &[], &web()).await.status, 201);
    }
    let full = house.put("d", &[], &web()).await;
    let detail = problem(&full, 409, "too_many_templates");
    assert!(detail.contains('3'), "{detail}");
    house.door.close().await;
}
