//! Certificates of clients: wanted or not, known or not, good or not.

use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::tls::{BOTH, Papers, connect};
use super::{Door, config};
use crate::api::error::Problem;
use crate::api::route::{Answer, Call, Reply, Route};
use crate::api::server::ServerConfig;
use crate::api::tls::Tls;
use crate::model::grant::Role;
use crate::model::settings::{CertificateMark, ClientCertificate, TlsConfig};

/// Somebody who vouches.
struct Ca(Issuer<'static, KeyPair>, CertificateDer<'static>);

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = parameters.self_signed(&key).unwrap().der().clone();
        Self(Issuer::new(parameters, key), der)
    }

    fn vouch(&self, name: &str, year: i32, for_clients: bool) -> Shown {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        parameters.extended_key_usages = vec![if for_clients {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        }];
        let der = parameters.signed_by(&key, &self.0).unwrap().der().clone();
        Shown(der, key.serialize_der())
    }
}

/// A certificate and its key.
struct Shown(CertificateDer<'static>, Vec<u8>);

impl Shown {
    fn fingerprint(&self) -> [u8; 32] {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        digest.as_ref().try_into().unwrap()
    }
}

fn client(papers: &Papers, shown: Option<&Shown>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(papers.der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(BOTH)
        .unwrap()
        .with_root_certificates(roots);
    let client = match shown {
        None => client.with_no_client_auth(),
        Some(Shown(der, key)) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
            client
                .with_client_auth_cert(vec![der.clone()], key)
                .unwrap()
        }
    };
    TlsConnector::from(Arc::new(client))
}

async fn open(papers: &Papers, ca: &Ca, change: impl FnOnce(&mut TlsConfig)) -> Door {
    async fn who(call: &Call) -> Result<Reply, Problem> {
        let who = call.principal()?;
        let team = who.team().map(ToString::to_string).unwrap_or_default();
        let said = format!("{who} of {team}");
        Ok(Reply::bytes(StatusCode::OK, "text/plain", said.into()))
    }
    let routes = [Route::new(http::Method::GET, "/x", "x", "X.", |call| {
        Box::pin(who(call))
    })
    .answer(200, Answer::Bytes(&["text/plain"]))];
    let text = STANDARD.encode(&ca.1);
    let text = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    let mut tls = papers.settings();
    let path = papers.path("issuers.pem");
    std::fs::write(&path, text).unwrap();
    tls.client_ca = Some(path.to_str().unwrap().to_owned());
    change(&mut tls);
    let config = ServerConfig {
        tls: Some(Arc::new(Tls::open(tls, None).unwrap())),
        ..config(64)
    };
    Door::open_with(&routes, config).await
}

fn known(name: &str, mark: CertificateMark) -> ClientCertificate {
    ClientCertificate {
        name: name.parse().unwrap(),
        mark,
        team: "red".parse().unwrap(),
        role: Role::default(),
    }
}

/// What is answered: the status and the end of the body. An error is that of the handshake, which a client of TLS 1.3 sees when it reads.
async fn ask(
    door: &Door,
    papers: &Papers,
    shown: Option<&Shown>,
    headers: &str,
) -> io::Result<String> {
    let mut stream = connect(door, &client(papers, shown)).await?;
    let head = format!("GET /x HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    let (_, body) = said.split_once("\r\n\r\n").unwrap();
    let body = if said[9..].starts_with("200") {
        body
    } else {
        ""
    };
    Ok(format!("{} {body}", &said[9..12]).trim().to_owned())
}

#[tokio::test]
async fn whoever_is_vouched_for_and_listed_is_known_and_anybody_else_needs_a_key() {
    let (papers, ca, others) = (Papers::new(), Ca::new(), Ca::new());
    let by_print = ca.vouch("a.example", 4000, true);
    let by_name = ca.vouch("b.example", 4000, true);
    let unlisted = ca.vouch("c.example", 4000, true);
    let expired = ca.vouch("b.example", 2020, true);
    let of_a_server = ca.vouch("b.example", 4000, false);
    let forged = others.vouch("b.example", 4000, true);
    let clients = vec![
        known("ci", CertificateMark::Fingerprint(by_print.fingerprint())),
        known("lab", CertificateMark::San("b.example".to_owned())),
        known("part", CertificateMark::San("example".to_owned())),
        known("every", CertificateMark::San("*.example".to_owned())),
    ];
    for is_required in [false, true] {
        let clients = clients.clone();
        let door = open(&papers, &ca, |tls| {
            tls.clients = clients;
            tls.require_client = is_required;
        })
        .await;
        let ask = async |shown, headers| ask(&door, &papers, shown, headers).await;
        let said = ask(Some(&by_print), "").await.unwrap();
        assert_eq!(said, "200 certificate:ci of red");
        let said = ask(Some(&by_name), "").await.unwrap();
        assert_eq!(said, "200 certificate:lab of red");
        assert_eq!(ask(Some(&unlisted), "").await.unwrap(), "401");
        for bad in [&expired, &of_a_server, &forged] {
            assert!(ask(Some(bad), "").await.is_err());
        }
        let nobody = ask(None, "").await;
        if is_required {
            assert!(nobody.is_err());
        } else {
            assert_eq!(nobody.unwrap(), "401");
        }
        // What a request says itself counts, right or wrong.
        let wrong_key = ask(Some(&by_print), "x-api-key: nonsense\r\n").await;
        assert_eq!(wrong_key.unwrap(), "401");
        // No page makes a browser use it that is not one of ours.
        for (headers, wanted) in [
            ("sec-fetch-site: none\r\n", "200 certificate:ci of red"),
            (
                "sec-fetch-site: same-origin\r\n",
                "200 certificate:ci of red",
            ),
            ("sec-fetch-site: cross-site\r\n", "401"),
            ("sec-fetch-site: same-site\r\n", "401"),
            ("origin: https://evil.example\r\n", "401"),
            ("origin: https://x\r\n", "200 certificate:ci of red"),
            (
                "origin: https://app.example\r\nsec-fetch-site: cross-site\r\n",
                "200 certificate:ci of red",
            ),
        ] {
            let said = ask(Some(&by_print), headers).await.unwrap();
            assert_eq!(said, wanted, "{headers}");
        }
        door.close().await;
    }
}

#[tokio::test]
async fn whoever_vouches_must_be_a_list_of_certificates() {
    let papers = Papers::new();
    for text in [
        "",
        "nothing",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let path = papers.path("issuers.pem");
        std::fs::write(&path, text).unwrap();
        let mut tls = papers.settings();
        tls.client_ca = Some(path.to_str().unwrap().to_owned());
        let error = Tls::open(tls, None).err().unwrap();
        assert!(error.to_string().contains("client_ca"), "{error}");
    }
}
