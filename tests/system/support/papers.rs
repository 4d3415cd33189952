//! Certificates and their keys, in files, as an operator has them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use super::daemon::{Daemon, give_to_daemon};

/// Whom the door's certificates are of, beside `127.0.0.1`, and a wildcard.
pub const NAME: &str = "door.example";
pub const WILDCARD: &str = "*.door.example";

/// Somebody who vouches, and the directory with what they vouched for.
pub struct Papers {
    pub directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// A certificate and its key, each in PEM.
pub struct Paper {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` spells it.
    pub fingerprint: String,
    /// The key as it is in memory: PKCS #8.
    pub der: Vec<u8>,
}

impl Papers {
    /// Someone new who vouches, with files in the home of a daemon: `NAME.ca.pem` is theirs.
    pub fn new(daemon: &Daemon, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let named = &mut parameters.distinguished_name;
        named.push(rcgen::DnType::CommonName, name);
        let root = parameters.self_signed(&key).unwrap().der().clone();
        let directory = daemon.home.join(format!("{name}.tls"));
        std::fs::create_dir(&directory).unwrap();
        write(&directory.join("ca.pem"), "CERTIFICATE", &root);
        Self {
            directory,
            issuer: Issuer::new(parameters, key),
            root,
        }
    }

    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// For a server of these names, in files of this name; what was there is replaced.
    pub fn server(&self, file: &str, names: &[&str]) -> Paper {
        let purpose = ExtendedKeyUsagePurpose::ServerAuth;
        self.vouch(file, names, purpose, 4000)
    }

    /// For a client of this name.
    pub fn client(&self, file: &str, name: &str) -> Paper {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        self.vouch(file, &[name], purpose, 4000)
    }

    /// Like [`Papers::server`], and over since long.
    pub fn expired(&self, file: &str, names: &[&str]) -> Paper {
        let purpose = ExtendedKeyUsagePurpose::ServerAuth;
        self.vouch(file, names, purpose, 2001)
    }

    fn vouch(
        &self,
        file: &str,
        names: &[&str],
        purpose: ExtendedKeyUsagePurpose,
        until: i32,
    ) -> Paper {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
        parameters.extended_key_usages = vec![purpose];
        let subject = &mut parameters.distinguished_name;
        subject.push(rcgen::DnType::CommonName, file);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let paper = Paper {
            certificate: self.directory.join(format!("{file}.pem")),
            private_key: self.directory.join(format!("{file}.key")),
            fingerprint: fingerprint(certificate.der()),
            der: key.serialize_der(),
        };
        write(&paper.certificate, "CERTIFICATE", certificate.der());
        write(&paper.private_key, "PRIVATE KEY", &paper.der);
        paper
    }

    /// What a client of ours trusts: whom these vouch for.
    pub fn trust(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(client)
    }
}

impl Paper {
    /// The section `http.tls`.
    pub fn settings(&self) -> Value {
        json!({"certificate": self.certificate, "key": self.private_key})
    }
}

fn fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let bytes = digest.as_ref().iter().map(|byte| format!("{byte:02X}"));
    bytes.collect::<Vec<_>>().join(":")
}

/// As the daemon's own file, in lines as RFC 7468 has them.
fn write(path: &Path, label: &str, der: &[u8]) {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let lines = lines.join("\n");
    let text = format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n");
    // Beside it and then in its place: whoever reads sees the one or the other.
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::set_permissions(&beside, Permissions::from_mode(0o600)).unwrap();
    give_to_daemon(&beside);
    std::fs::rename(&beside, path).unwrap();
}
