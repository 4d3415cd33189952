//! Keys from files: what is refused at the start, and what happens when a file changes.

use super::super::{IssuerError, SourceError};
use super::mint::{Draft, fixture};
use super::*;
use crate::base::chain::Chain;

async fn problems(issuer: Issuer) -> String {
    let tokens = Tokens::new(None, TaskTracker::new());
    match tokens.prepare(vec![issuer], now()).await {
        Ok(_) => String::new(),
        Err(problems) => {
            let lines = problems.iter().map(|problem| Chain(problem).to_string());
            lines.collect::<Vec<_>>().join("\n")
        }
    }
}

#[tokio::test]
async fn keys_in_pem_that_are_weak_or_of_another_kind_are_refused() {
    let mut files = 0;
    for entry in std::fs::read_dir(path("unfit")).unwrap() {
        let file = entry.unwrap().path();
        let said = problems(public("pem", KeySource::Pem(file.clone()))).await;
        assert!(
            said.contains("have the keys of jwt.pem: what "),
            "{file:?}: {said}"
        );
        files += 1;
    }
    assert!(files >= 9, "only {files} files");
    for good in ["rsa.pem", "ec.pem", "ed.pem"] {
        assert_eq!(
            problems(public("pem", KeySource::Pem(path(good)))).await,
            ""
        );
    }
}

#[tokio::test]
async fn pem_that_is_not_one_public_key_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.pem");
    let good = std::fs::read_to_string(path("ec.pem")).unwrap();
    let body: String = good.lines().filter(|line| !line.starts_with('-')).collect();
    let block =
        |body: &str| format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
    let changed = |at: usize, to: u8| {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;
        let mut der = STANDARD.decode(&body).unwrap();
        der[at] = to;
        block(&STANDARD.encode(der))
    };
    for (name, text) in [
        ("nothing", String::new()),
        ("two keys", format!("{good}{good}")),
        ("a private key", good.replace("PUBLIC", "PRIVATE")),
        (
            "a private key beside it",
            format!("{good}-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"),
        ),
        ("a certificate", good.replace("PUBLIC KEY", "CERTIFICATE")),
        ("no end", good.replace("-----END", "")),
        ("no base64", block("!!!!")),
        ("nothing in the block", block("")),
        ("half of it", block(&body[..60])),
        (
            "more after it",
            block(&format!("{}AAAA", body.trim_end_matches('='))),
        ),
        ("another kind of value", changed(0, 0x31)),
        ("a length that is too long", changed(1, 0x5a)),
        ("a length that is too short", changed(1, 0x58)),
        ("a length without end", changed(1, 0x80)),
        ("another algorithm", changed(10, 0x02)),
        ("another curve", changed(22, 0x06)),
        ("bits that are not used", changed(25, 0x01)),
        ("a compressed point", changed(26, 0x02)),
    ] {
        write(&file, text.as_bytes(), 0o644);
        let said = problems(public("pem", KeySource::Pem(file.clone()))).await;
        assert!(!said.is_empty(), "{name}");
    }
    write(
        &file,
        format!("Our key:\n{good}\nThat was it.\n").as_bytes(),
        0o644,
    );
    assert_eq!(problems(public("pem", KeySource::Pem(file))).await, "");
}

#[tokio::test]
async fn secrets_that_are_short_or_shown_are_refused_and_never_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hush");
    for (bytes, mode, expected) in [
        (vec![b'h'; 31], 0o600, "does not have 32 to 4096 bytes"),
        (Vec::new(), 0o600, "does not have 32 to 4096 bytes"),
        (
            [vec![b'h'; 31], vec![b'\n']].concat(),
            0o600,
            "does not have 32 to 4096 bytes",
        ),
        (vec![b'h'; 4097], 0o600, "does not have 32 to 4096 bytes"),
        (vec![b'h'; 10_000], 0o600, "longer than 4096 bytes"),
        (vec![b'h'; 32], 0o604, "can be read by everybody"),
        (vec![b'h'; 32], 0o602, "can be read by everybody"),
    ] {
        write(&file, &bytes, mode);
        let said = problems(secret(file.clone())).await;
        assert!(said.contains(expected) && !said.contains("hhhh"), "{said}");
    }
    for mode in [0o600, 0o640, 0o400] {
        write(&file, &[b'h'; 32], mode);
        assert_eq!(problems(secret(file.clone())).await, "");
    }
    let said = problems(secret(directory.path().join("none"))).await;
    assert!(said.contains("No such file"), "{said}");
    let said = problems(secret(directory.path().to_owned())).await;
    assert!(said.contains("not a regular file"), "{said}");
    write(&file, &std::fs::read(path("jwks.json")).unwrap(), 0o666);
    let said = problems(public("x", KeySource::JwksFile(file))).await;
    assert!(said.contains("chmod o-w"), "{said}");
}

#[tokio::test]
async fn a_key_for_an_algorithm_that_was_not_written_is_refused() {
    let only = |algorithm, file| Issuer {
        algorithms: [algorithm].into(),
        ..public("pem", KeySource::Pem(path(file)))
    };
    assert_eq!(problems(only(Algorithm::Rs256, "rsa.pem")).await, "");
    for (algorithm, file) in [
        (Algorithm::Es256, "rsa.pem"),
        (Algorithm::Rs256, "ec.pem"),
        (Algorithm::Hs256, "rsa.pem"),
        (Algorithm::Hs256, "ed.pem"),
    ] {
        let said = problems(only(algorithm, file)).await;
        assert!(said.contains("an algorithm that the issuer's"), "{said}");
    }
}

#[tokio::test]
async fn a_secret_can_be_a_credential_of_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("jwt"), &member("hmac", "k"), 0o440);
    let issuer = Issuer {
        keys: KeySource::Credential("jwt".to_owned()),
        ..secret(std::path::PathBuf::new())
    };
    let tokens = Tokens::new(Some(directory.path().to_owned()), TaskTracker::new());
    tokens.trust(tokens.prepare(vec![issuer.clone()], now()).await.unwrap());
    assert!(
        tokens
            .authenticate(&Draft::secret().token(), now())
            .await
            .is_ok()
    );
    let said = problems(issuer).await;
    assert!(said.contains("LoadCredential=jwt:FILE"), "{said}");
}

#[tokio::test]
async fn all_problems_are_told_at_once_and_nothing_changes() {
    let house = House::new().await;
    let good = Draft::rsa().token();
    assert!(house.ask(&good).await.is_ok());
    let missing = house.directory.path().join("none");
    let issuers = vec![
        public("one", KeySource::Pem(missing.clone())),
        public("public", KeySource::JwksFile(path("jwks.json"))),
        public("two", KeySource::JwksFile(missing)),
    ];
    let problems: Vec<IssuerError> = house.tokens.prepare(issuers, now()).await.unwrap_err();
    let names: Vec<_> = problems
        .iter()
        .map(|problem| problem.issuer.as_str())
        .collect();
    assert_eq!(names, ["one", "two"]);
    assert!(
        problems
            .iter()
            .all(|problem| matches!(problem.source, SourceError::File { .. }))
    );
    assert!(house.ask(&good).await.is_ok());
    assert!(house.ask(&token_by(1, "one", "two")).await.is_ok());
}

#[tokio::test]
async fn a_file_that_changes_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.json");
    let put = |keys: &[String]| write(&file, set(keys).as_bytes(), 0o644);
    let (one, two) = (jwk(&ed25519(1), "one"), jwk(&ed25519(2), "two"));
    put(std::slice::from_ref(&one));
    let tokens = trusting(vec![public("public", KeySource::JwksFile(file.clone()))]).await;
    tokens.tasks.close();
    let first = token_by(1, "one", "public");
    let second = token_by(2, "two", "public");
    let says =
        async |token: &str, seconds| tokens.authenticate(token, after(seconds)).await.map(drop);
    assert_eq!(says(&first, 0).await, Ok(()));
    put(&[one, two.clone()]);
    assert_eq!(
        says(&second, 2).await,
        Ok(()),
        "a new name is looked for at once"
    );
    assert_eq!(says(&first, 2).await, Ok(()));
    put(&[two]);
    tokens.refresh(after(7));
    tokens.tasks.wait().await;
    assert_eq!(
        says(&first, 7).await,
        Err(Refused::UnknownKey),
        "what is gone is gone"
    );
    // Half a file, or none, is no reason to forget, for a minute.
    write(&file, b"{\"keys\":[", 0o644);
    assert_eq!(says(&second, 66).await, Ok(()));
    tokens.tasks.wait().await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(says(&second, 67).await, Ok(()));
    tokens.tasks.wait().await;
    assert_eq!(says(&second, 68).await, Err(Refused::NoKeys));
}

#[tokio::test]
async fn nobody_is_trusted_without_settings() {
    let tokens = Tokens::new(None, TaskTracker::new());
    let said = tokens.authenticate(&Draft::rsa().token(), now()).await;
    assert_eq!(said, Err(Refused::Issuer));
    for issuer in ["pyjwt.json", "jose.json"] {
        for row in fixture(issuer)["tokens"].as_array().unwrap() {
            let token = row["token"].as_str().unwrap();
            assert!(tokens.authenticate(token, now()).await.is_err());
        }
    }
}
