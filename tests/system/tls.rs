//! TLS at the door with clients that are not ours: `openssl s_client` and `curl`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use casemate::admin::protocol::{Answer, Request};
use casemate::model::grant::Role;
use serde_json::json;

use crate::support::daemon::give_to_daemon;
use crate::support::papers::{NAME, Paper, Papers, WILDCARD};
use crate::support::{Daemon, bench, wait_until};

/// A daemon with TLS, who vouches for its certificate, and that.
pub(crate) async fn door(more: &[(&str, serde_json::Value)]) -> (Daemon, Papers, Paper) {
    let mut daemon = Daemon::new();
    let papers = Papers::new(&daemon, "own");
    let paper = papers.server("server", &["127.0.0.1", NAME, WILDCARD]);
    daemon.set("http.tls", paper.settings());
    daemon.set("http.hosts", json!([NAME, WILDCARD]));
    for (key, value) in more {
        daemon.set(key, value.clone());
    }
    daemon.client.tls = Some(("127.0.0.1".into(), papers.trust()));
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    (daemon, papers, paper)
}

/// Runs a program to its end: its exit code, and all that it said.
fn run(program: &str, arguments: &[&str], input: &str) -> (i32, String) {
    let mut child = Command::new(program)
        .args(["60", arguments[0]])
        .args(&arguments[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have had enough already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().unwrap_or(-1);
    (code, String::from_utf8_lossy(&said).into_owned())
}

/// What `openssl s_client` sees, of which the certificate must be vouched for by these and be for that name.
fn openssl(daemon: &Daemon, ca: &Path, name: &str, more: &[&str]) -> (i32, String) {
    let mut arguments = vec!["openssl", "s_client", "-connect", &daemon.client.address];
    arguments.extend(["-CAfile", ca.to_str().unwrap(), "-verify_return_error"]);
    arguments.extend(["-servername", name, "-verify_hostname", name]);
    arguments.extend(more);
    run("timeout", &arguments, "Q\n")
}

/// The SHA-256 of the certificate that is shown.
fn shown(daemon: &Daemon) -> String {
    let arguments = ["openssl", "s_client", "-connect", &daemon.client.address];
    let (_, said) = run("timeout", &arguments, "Q\n");
    let arguments = ["openssl", "x509", "-noout", "-fingerprint", "-sha256"];
    let (code, print) = run("timeout", &arguments, &said);
    assert_eq!(code, 0, "{said}");
    print.trim().rsplit_once('=').unwrap().1.to_owned()
}

/// What `curl` gets of a path by this name: its exit code, and `VERSION STATUS` after the body.
fn curl(daemon: &Daemon, papers: &Papers, name: &str, path: &str, more: &[&str]) -> (i32, String) {
    let (_, port) = daemon.client.address.rsplit_once(':').unwrap();
    let ca = papers.ca();
    let url = format!("https://{name}:{port}{path}");
    let resolve = format!("{name}:{port}:127.0.0.1");
    let mut arguments = vec!["curl", "--silent", "--show-error", "--cacert"];
    arguments.extend([ca.to_str().unwrap(), "--resolve", &resolve]);
    arguments.extend(["--write-out", "\n%{http_version} %{http_code}"]);
    arguments.extend(more);
    arguments.push(&url);
    run("timeout", &arguments, "")
}

/// A file with the header that carries a key, since arguments can be read by everybody.
fn header(daemon: &Daemon, key: &str) -> String {
    let path = daemon.home.join("header");
    std::fs::write(&path, format!("authorization: Bearer {key}\n")).unwrap();
    format!("@{}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_and_curl_get_versions_suites_and_protocols_as_promised_and_no_weaker_ones() {
    let (daemon, papers, paper) = door(&[]).await;
    let ca = papers.ca();
    for (version, suite) in [
        ("-tls1_2", "-cipher=ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher=ECDHE-ECDSA-AES256-GCM-SHA384"),
        ("-tls1_2", "-cipher=ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("-tls1_3", "-ciphersuites=TLS_AES_128_GCM_SHA256"),
        ("-tls1_3", "-ciphersuites=TLS_AES_256_GCM_SHA384"),
        ("-tls1_3", "-ciphersuites=TLS_CHACHA20_POLY1305_SHA256"),
    ] {
        for protocol in ["h2", "http/1.1"] {
            let (option, name) = suite.split_once('=').unwrap();
            let more = [version, option, name, "-alpn", protocol];
            let (code, said) = openssl(&daemon, &ca, "one.door.example", &more);
            assert_eq!(code, 0, "{more:?}: {said}");
            let version = version.replace("-tls1_", "TLSv1.");
            for wanted in [
                format!("New, {version}, Cipher is {name}"),
                format!("ALPN protocol: {protocol}"),
                "Verify return code: 0 (ok)".to_owned(),
            ] {
                assert!(said.contains(&wanted), "{wanted}: {said}");
            }
        }
    }
    // What is refused is refused by the door, which says so, and not by a client that would not even ask.
    for (more, alert) in [
        (
            &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
            "SSL alert number",
        ),
        (
            &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            "SSL alert number",
        ),
        (
            &["-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"],
            "alert handshake failure",
        ),
        (
            &["-tls1_2", "-cipher", "AES256-GCM-SHA384"],
            "alert handshake failure",
        ),
        (
            &["-tls1_2", "-cipher", "DHE-RSA-AES256-GCM-SHA384"],
            "alert handshake failure",
        ),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"],
            "alert handshake failure",
        ),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384"],
            "alert handshake failure",
        ),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-CCM"],
            "alert handshake failure",
        ),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0"],
            "alert handshake failure",
        ),
        (
            &["-tls1_2", "-cipher", "AECDH-AES128-SHA:@SECLEVEL=0"],
            "alert handshake failure",
        ),
        (
            &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"],
            "alert handshake failure",
        ),
        (&["-alpn", "spdy/3"], "alert no application protocol"),
    ] {
        let (code, said) = openssl(&daemon, &ca, NAME, more);
        assert!(code != 0 && said.contains(alert), "{more:?}: {said}");
    }
    // The certificate is for these names and no others, and it is this one.
    for (name, is_good) in [
        ("a.door.example", true),
        (NAME, true),
        ("a.b.door.example", false),
    ] {
        let (code, said) = openssl(&daemon, &ca, name, &[]);
        assert_eq!(code == 0, is_good, "{name}: {said}");
    }
    assert_eq!(shown(&daemon), paper.fingerprint);

    let key = header(&daemon, daemon.client.key.as_deref().unwrap());
    for (version, more) in [("1.2", &["--tls-max", "1.2"][..]), ("1.3", &["--tlsv1.3"])] {
        for (option, protocol) in [("--http2", "2"), ("--http1.1", "1.1")] {
            let more = [more, &[option, "--header", &key]].concat();
            let (code, said) = curl(&daemon, &papers, "one.door.example", "/v1/sessions", &more);
            assert!(
                code == 0 && said.ends_with(&format!("\n{protocol} 200")),
                "{version}: {said}"
            );
            assert!(said.contains("\"items\":[]"), "{said}");
        }
    }
    let old = [
        "--tlsv1.0",
        "--tls-max",
        "1.1",
        "--ciphers",
        "DEFAULT:@SECLEVEL=0",
    ];
    let (code, said) = curl(&daemon, &papers, NAME, "/health", &old);
    assert_eq!(code, 35, "{said}");
    let (code, said) = curl(&daemon, &papers, "a.b.door.example", "/health", &[]);
    assert_eq!(code, 60, "{said}");
    let (code, said) = curl(&daemon, &papers, NAME, "/v1/sessions", &[]);
    assert!(code == 0 && said.ends_with(" 401"), "{said}");
    let plain = format!("http://{}/v1/sessions", daemon.client.address);
    let (_, said) = run(
        "timeout",
        &["curl", "--silent", "--header", &key, &plain],
        "",
    );
    assert!(said.contains("tls_required"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn curls_certificate_is_its_principal_and_one_that_nobody_knows_is_nobodys() {
    let mut daemon = Daemon::new();
    let (papers, others) = (Papers::new(&daemon, "own"), Papers::new(&daemon, "others"));
    let ours = papers.server("server", &["127.0.0.1", NAME]);
    let ci = papers.client("ci", "ci.example");
    let unlisted = papers.client("unlisted", "unlisted.example");
    let foreign = others.client("foreign", "ci.example");
    let mut tls = ours.settings();
    tls["client_ca"] = json!(papers.ca());
    tls["clients"] =
        json!([{"name": "ci", "team": "red", "role": "team-admin", "sha256": ci.fingerprint}]);
    daemon.set("http.tls", tls.clone());
    daemon.set("http.hosts", json!([NAME]));
    daemon.client.tls = Some(("127.0.0.1".into(), papers.trust()));
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);

    let with = |paper: &Paper, more: &[&str], path: &str| {
        let (certificate, key) = (paper.certificate.to_str(), paper.private_key.to_str());
        let files = ["--cert", certificate.unwrap(), "--key", key.unwrap()];
        curl(&daemon, &papers, NAME, path, &[&files[..], more].concat())
    };
    let new = json!({"name": "of-a-certificate", "expires_in_s": 60}).to_string();
    let make = ["--header", "content-type: application/json", "--data", &new];
    for version in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        let (code, said) = with(&ci, version, "/v1/sessions");
        assert!(code == 0 && said.ends_with(" 200"), "{said}");
        let (code, said) = with(&unlisted, version, "/v1/sessions");
        assert!(code == 0 && said.ends_with(" 401"), "{said}");
        // Vouched for by somebody else: the handshake ends, whether curl notices when it writes (35) or when it reads (55, 56).
        let (code, said) = with(&foreign, version, "/v1/sessions");
        assert!(
            [35, 55, 56].contains(&code) && said.contains("\n0 000"),
            "{code} {said}"
        );
    }
    let (code, said) = with(&ci, &make, "/v1/keys");
    assert!(code == 0 && said.ends_with(" 201"), "{said}");
    let maker = "SELECT principal FROM audit WHERE kind = 'key.create' AND stage = 'intent' ORDER BY seq DESC LIMIT 1";
    assert_eq!(daemon.sql::<String>(maker), ["certificate:ci"]);

    // Where a certificate is required, a client without one does not get as far as a key.
    assert_eq!(daemon.term().await, 0);
    let key = header(&daemon, daemon.client.key.as_deref().unwrap());
    tls["require_client"] = json!(true);
    daemon.set("http.tls", tls);
    daemon.launch();
    wait_until("the door is open", async || daemon.admin_socket().exists()).await;
    wait_until("whoever has a certificate is let in", async || {
        let files = [
            "--cert",
            ci.certificate.to_str().unwrap(),
            "--key",
            ci.private_key.to_str().unwrap(),
        ];
        curl(&daemon, &papers, NAME, "/v1/sessions", &files)
            .1
            .ends_with(" 200")
    })
    .await;
    let (code, said) = curl(&daemon, &papers, NAME, "/v1/sessions", &["--header", &key]);
    assert!(code != 0 && said.contains("\n0 000"), "{said}");
}

/// A certificate of RSA as `openssl` makes one, in place of another.
fn renew(paper: &Paper, days: &str) {
    let beside = [&paper.certificate, &paper.private_key].map(|path| path.with_extension("next"));
    let (certificate, key) = (
        beside[0].to_str().unwrap(),
        beside[1].with_extension("next-key"),
    );
    let key = key.to_str().unwrap();
    let mut arguments = vec![
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", days,
    ];
    arguments.extend([
        "-keyout",
        key,
        "-out",
        certificate,
        "-subj",
        "/CN=door.example",
    ]);
    arguments.extend(["-addext", "subjectAltName=DNS:door.example,IP:127.0.0.1"]);
    let (code, said) = run("timeout", &arguments, "");
    assert_eq!(code, 0, "{said}");
    for (from, to) in [(certificate, &paper.certificate), (key, &paper.private_key)] {
        give_to_daemon(Path::new(from));
        std::fs::rename(from, to).unwrap();
    }
}

async fn reload(daemon: &Daemon) -> Result<(), String> {
    match daemon.admin(Request::Reload).await {
        Answer::Done => Ok(()),
        Answer::Refused { message, .. } => Err(message),
        other => panic!("{other:?}"),
    }
}

/// Makes a key of this name, which the record tells.
async fn record(daemon: &Daemon, name: &str, role: Role) -> String {
    let request = Request::KeyCreate {
        name: name.parse().unwrap(),
        team: "tests".parse().unwrap(),
        role,
        scopes: None,
        expires_in_s: Some(600),
    };
    match daemon.admin(request).await {
        Answer::Key(view) => view.key,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_is_for_who_comes_next_and_a_bad_one_is_for_nobody() {
    let (daemon, papers, paper) = door(&[]).await;
    let auditor = record(&daemon, "eyes", Role::Auditor).await;
    let key = header(&daemon, &auditor);
    let told = daemon.home.join("told");
    let (ca, file) = (papers.ca(), std::fs::File::create(&told).unwrap());
    let url = format!(
        "https://{}/v1/audit/stream?kind=key.create",
        daemon.client.address
    );
    let mut stream = Command::new("curl")
        .args([
            "--silent",
            "--no-buffer",
            "--max-time",
            "120",
            "--header",
            &key,
            "--cacert",
        ])
        .args([ca.to_str().unwrap(), &url])
        .stdin(Stdio::null())
        .stdout(file)
        .spawn()
        .unwrap();
    let hears = async |what: &str| {
        wait_until(what, async || {
            std::fs::read_to_string(&told).unwrap().contains(what)
        })
        .await;
    };
    record(&daemon, "first", Role::Member).await;
    hears("\"first\"").await;

    renew(&paper, "30");
    assert_eq!(shown(&daemon), paper.fingerprint, "it was not told yet");
    reload(&daemon).await.unwrap();
    let second = shown(&daemon);
    assert_ne!(second, paper.fingerprint);
    record(&daemon, "second", Role::Member).await;
    hears("\"second\"").await;

    // None of these takes its place.
    let good = [&paper.certificate, &paper.private_key].map(|path| std::fs::read(path).unwrap());
    let put = |certificate: &[u8], key: &[u8], mode: u32| {
        for (path, bytes) in [(&paper.certificate, certificate), (&paper.private_key, key)] {
            std::fs::write(path, bytes).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path, mode).unwrap();
        }
    };
    let over = papers.expired("over", &["127.0.0.1", NAME]);
    let over = [&over.certificate, &over.private_key].map(|path| std::fs::read(path).unwrap());
    let half = &good[0][..good[0].len() / 2];
    for (what, certificate, private_key, mode) in [
        (
            "a certificate that is over",
            &over[0][..],
            &over[1][..],
            0o600,
        ),
        ("another key", &good[0], &over[1], 0o600),
        ("half a certificate", half, &good[1], 0o600),
        ("nothing", b"", b"", 0o600),
        ("a key that everybody reads", &good[0], &good[1], 0o644),
    ] {
        put(certificate, private_key, mode);
        let refused = reload(&daemon).await.unwrap_err();
        assert!(refused.contains("still in force"), "{what}: {refused}");
        assert_eq!(shown(&daemon), second, "{what}");
    }
    put(&good[0], &good[1], 0o600);
    reload(&daemon).await.unwrap();
    assert_eq!(shown(&daemon), second);
    record(&daemon, "third", Role::Member).await;
    hears("\"third\"").await;
    assert!(stream.try_wait().unwrap().is_none(), "the stream was cut");
    let (code, said) = openssl(&daemon, &paper.certificate, NAME, &[]);
    assert_eq!(code, 0, "{said}");
    stream.kill().unwrap();
    stream.wait().unwrap();
}

/// An operator token as it is wanted: random.
fn operator_token() -> String {
    let mut random = [0; 32];
    getrandom::fill(&mut random).unwrap();
    let digits = casemate::model::record::hex(&random);
    format!("cmo_{digits}")
}

/// Our own client by its options: its exit code, and all that it said.
fn casemate(daemon: &Daemon, name: &str, more: &[&str]) -> (i32, String) {
    let (_, port) = daemon.client.address.rsplit_once(':').unwrap();
    let url = format!("https://{name}:{port}");
    let program = bench().bin.join("casemate");
    let mut arguments = vec![program.to_str().unwrap(), "--url", &url, "session", "list"];
    arguments.extend(more);
    run("timeout", &arguments, "")
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_client_speaks_tls_to_whom_it_trusts_and_shows_its_certificate() {
    let mut daemon = Daemon::new();
    let (papers, others) = (Papers::new(&daemon, "own"), Papers::new(&daemon, "others"));
    let paper = papers.server("server", &["127.0.0.1"]);
    let (ci, foreign) = (
        papers.client("ci", "ci.example"),
        others.client("foreign", "ci.example"),
    );
    let mut tls = paper.settings();
    tls["client_ca"] = json!(papers.ca());
    tls["clients"] = json!([{"name": "ci", "team": "red", "san": "ci.example"}]);
    daemon.set("http.tls", tls);
    daemon.set("http.hosts", json!(["localhost"]));
    let operator = daemon.home.join("operator.token");
    std::fs::write(&operator, operator_token()).unwrap();
    std::fs::set_permissions(
        &operator,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    give_to_daemon(&operator);
    daemon.set("http.operator", json!({"token": operator}));
    daemon.client.tls = Some(("127.0.0.1".into(), papers.trust()));
    daemon.start().await;
    let key = daemon.home.join("key");
    std::fs::write(&key, daemon.key("tests").await).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let with_key = ["--key-file".to_owned(), text(&key)];
    let trusting = |papers: &Papers| ["--ca".to_owned(), text(&papers.ca())];
    let showing = |paper: &Paper| {
        let options = ["--cert", "--cert-key"].map(str::to_owned);
        let [certificate, key] = options;
        vec![
            certificate,
            text(&paper.certificate),
            key,
            text(&paper.private_key),
        ]
    };
    let ask = |name: &str, options: &[&[String]]| {
        let options = options.concat();
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        casemate(&daemon, name, &options)
    };
    let trust = trusting(&papers);
    let (code, said) = ask("127.0.0.1", &[&trust, &with_key]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = ask("127.0.0.1", &[&trust, &showing(&ci)]);
    assert_eq!(code, 0, "with a certificate and no key: {said}");

    // Somebody else vouches, or the system does; the certificate is for another name; the caller's is from elsewhere.
    for (name, options, wanted) in [
        (
            "127.0.0.1",
            [&trusting(&others)[..], &with_key],
            "UnknownIssuer",
        ),
        ("127.0.0.1", [&[][..], &with_key], "UnknownIssuer"),
        ("localhost", [&trust, &with_key], "not valid for name"),
        ("127.0.0.1", [&trust, &showing(&foreign)], "alert"),
    ] {
        let (code, said) = ask(name, &options);
        assert!(code == 69 && said.contains(wanted), "{code} {said}");
        assert!(said.contains("--ca"), "{said}");
    }
    let url = format!("https://{}", daemon.client.address);
    let program = bench().bin.join("casemate");
    let mut elsewhere = vec![program.to_str().unwrap(), "--url", &url, "admin", "status"];
    elsewhere.extend(["--operator-file", operator.to_str().unwrap()]);
    elsewhere.extend(trust.iter().map(String::as_str));
    let (code, said) = run("timeout", &elsewhere, "");
    assert_eq!(code, 0, "an operator elsewhere: {said}");
    let (code, said) = ask("127.0.0.1", &[&trust]);
    assert_eq!(code, 77, "neither a key nor a certificate: {said}");
}
