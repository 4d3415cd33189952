//! Whoever comes with a JSON web token.

use super::*;
use crate::base::clock::Clock;
use crate::identity::jwt::tests::{for_a_door, token_for_a_door};
use crate::model::issuer::Algorithm;

async fn door() -> Door {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemClock.now();
    let app = app_with(&directory, Arc::new(for_a_door(now).await));
    let config = ServerConfig {
        max_body_bytes: 1024,
        max_connections: 16,
        header_timeout: Duration::from_secs(10),
        tls: None,
        browsers: browsers(),
        limits: HttpLimits::off(),
    };
    let server = Server::new(app, config).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let serving = server.serve(listener, stop.clone(), PATIENCE);
    Door {
        address,
        stop,
        serving: tokio::spawn(serving),
        _directory: directory,
    }
}

impl Door {
    async fn sessions(&self, header: &str, value: &str) -> Response<Incoming> {
        let mut sender = self.client().await;
        let request = Request::get("http://x/v1/sessions")
            .header("host", "x")
            .header(header, value)
            .body(Empty::<Bytes>::new())
            .unwrap();
        sender.send_request(request).await.unwrap()
    }
}

#[tokio::test]
async fn a_good_token_lists_sessions_and_any_other_is_401() {
    let door = door().await;
    let token = |algorithm, left_s| token_for_a_door(algorithm, SystemClock.now(), left_s);
    for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
        let good = token(algorithm, 600);
        for (header, value) in [
            ("authorization", format!("Bearer {good}")),
            ("x-api-key", good),
        ] {
            let answer = door.sessions(header, &value).await;
            assert_eq!(answer.status(), 200, "{algorithm:?} {header}");
            let body: Value = serde_json::from_slice(&whole(answer).await).unwrap();
            assert_eq!(body["items"], serde_json::json!([]), "{body}");
        }
    }
    let good = token(Algorithm::Rs256, 600);
    let (message, _) = good.rsplit_once('.').unwrap();
    for bad in [
        token(Algorithm::Rs256, -600),
        token(Algorithm::Hs256, 600),
        format!("{message}."),
        format!("{good}x"),
        format!("{good}.x"),
        "a.b.c".to_owned(),
        "..".to_owned(),
        good.replace('.', ""),
        "x".repeat(17_000),
        format!("{}..", "x".repeat(17_000)),
    ] {
        let answer = door
            .sessions("authorization", &format!("Bearer {bad}"))
            .await;
        let (headers, code) = problem(answer, 401).await;
        assert_eq!(
            (headers["www-authenticate"].to_str().unwrap(), code.as_str()),
            ("Bearer", "unauthenticated")
        );
    }
    door.close().await;
}
