//! The installation's own certificate authority. Sandboxes whose template asks for it trust it, so that requests over TLS can be read
//! where a rule adds something to them; nobody else does. Its key is kept sealed, and signs for hosts for a few days at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::base::clock::Timestamp;
use crate::model::host::HostName;

/// How long an authority lasts.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long before its end another one takes its place: longer than sessions last.
const RENEWAL: Duration = Duration::from_secs(365 * 86_400);
/// How long a host's certificate lasts, and after which time there is another one.
const LEAF_LIFETIME: Duration = Duration::from_secs(4 * 86_400);
const LEAF_RENEWAL: Duration = Duration::from_secs(86_400);
/// How far back certificates hold: clocks in sandboxes are the machine's, which may be set back.
const BACKDATED: Duration = Duration::from_secs(86_400);
/// Most hosts whose certificates are kept.
const MAX_LEAVES: usize = 256;
/// What is spoken to sandboxes.
const ALPN: &[u8] = b"http/1.1";

/// What is kept of an authority cannot be used, or a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// What is kept is no authority.
    #[error("what is kept of the certificate authority for sandboxes cannot be read")]
    Malformed,
    /// A certificate cannot be made.
    #[error("make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// TLS cannot be set up with it.
    #[error("set up TLS towards a sandbox")]
    Tls(#[source] tokio_rustls::rustls::Error),
}

/// Signs for hosts.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    until: Timestamp,
    /// Of all hosts' certificates: it never leaves this process.
    leaf_key: KeyPair,
    leaves: Mutex<HashMap<HostName, Leaf>>,
}

struct Leaf {
    from: Timestamp,
    config: Arc<ServerConfig>,
}

impl Authority {
    /// Makes another one; what is to be kept of it, sealed. `name` tells it from those of other installations.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`].
    pub fn make(name: &str, now: Timestamp) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        let key = key.map_err(AuthorityError::Certificate)?;
        let until = now.after(LIFETIME);
        let mut parameters = parameters(name);
        hold(&mut parameters, now, until);
        let made = parameters.self_signed(&key);
        let made = made.map_err(AuthorityError::Certificate)?;
        let mut kept = Zeroizing::new(until.as_millis().to_be_bytes().to_vec());
        let length = u32::try_from(made.der().len()).map_err(|_| AuthorityError::Malformed)?;
        kept.extend_from_slice(&length.to_be_bytes());
        kept.extend_from_slice(made.der());
        kept.extend_from_slice(key.serialized_der());
        Ok(kept)
    }

    /// The one of which this is kept, by the name that it was made with.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn open(name: &str, kept: &[u8]) -> Result<Self, AuthorityError> {
        let (until, certificate, key) = parts(kept).ok_or(AuthorityError::Malformed)?;
        let key = PrivatePkcs8KeyDer::from(key);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256);
        let key = key.map_err(|_| AuthorityError::Malformed)?;
        let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        Ok(Self {
            issuer: Issuer::new(parameters(name), key),
            certificate: CertificateDer::from(certificate.to_vec()),
            until,
            leaf_key: leaf_key.map_err(AuthorityError::Certificate)?,
            leaves: Mutex::default(),
        })
    }

    /// Whether it is time for another one.
    #[must_use]
    pub fn is_old(&self, now: Timestamp) -> bool {
        now.after(RENEWAL) >= self.until
    }

    /// Its certificate, which is no secret.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// How TLS is spoken to a sandbox in the name of a host.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(super) fn serve(
        &self,
        host: &HostName,
        now: Timestamp,
    ) -> Result<Arc<ServerConfig>, AuthorityError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        // Whichever way the clock was set: one that is of another day is no good.
        let is_good = |leaf: &Leaf| now.since(leaf.from).max(leaf.from.since(now)) < LEAF_RENEWAL;
        if let Some(leaf) = leaves.get(host)
            && is_good(leaf)
        {
            return Ok(Arc::clone(&leaf.config));
        }
        if leaves.len() >= MAX_LEAVES {
            leaves.clear();
        }
        let config = self.sign(host, now)?;
        let leaf = Leaf {
            from: now,
            config: Arc::clone(&config),
        };
        leaves.insert(host.clone(), leaf);
        Ok(config)
    }

    fn sign(&self, host: &HostName, now: Timestamp) -> Result<Arc<ServerConfig>, AuthorityError> {
        let parameters = CertificateParams::new(vec![host.to_string()]);
        let mut parameters = parameters.map_err(AuthorityError::Certificate)?;
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        hold(&mut parameters, now, now.after(LEAF_LIFETIME));
        let leaf = parameters.signed_by(&self.leaf_key, &self.issuer);
        let leaf = leaf.map_err(AuthorityError::Certificate)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let key = PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der());
        let config =
            ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .and_then(|builder| {
                    builder
                        .with_no_client_auth()
                        .with_single_cert(chain, key.into())
                });
        let mut config = config.map_err(AuthorityError::Tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

/// What the certificate says, but for its time.
fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters
        .distinguished_name
        .push(DnType::CommonName, format!("Casemate {name}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

/// Until when, the certificate, and the key.
fn parts(kept: &[u8]) -> Option<(Timestamp, &[u8], &[u8])> {
    let (until, rest) = kept.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (certificate, key) = rest.split_at_checked(length)?;
    let until = Timestamp::from_millis(i64::from_be_bytes(*until));
    Some((until, certificate, key))
}

/// Makes it hold from a day ago on, and until then.
fn hold(parameters: &mut CertificateParams, now: Timestamp, until: Timestamp) {
    /// The last year that X.509 can write is 9999.
    const MOST_S: u64 = 221_845_000_000;
    let moment = |at: Timestamp| {
        let seconds = u64::try_from(at.as_millis() / 1000).unwrap_or(0);
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.min(MOST_S))
    };
    let back = i64::try_from(BACKDATED.as_millis()).unwrap_or(i64::MAX);
    parameters.not_before = moment(Timestamp::from_millis(now.as_millis().saturating_sub(back)));
    parameters.not_after = moment(until);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: i64) -> Timestamp {
        Timestamp::from_millis(1_900_000_000_000 + days * 86_400_000)
    }

    #[test]
    fn it_is_the_same_from_what_is_kept_and_broken_ones_are_told() {
        let kept = Authority::make("ins_x", at(0)).unwrap();
        let one = Authority::open("ins_x", &kept).unwrap();
        let same = Authority::open("ins_x", &kept).unwrap();
        assert_eq!(one.certificate(), same.certificate());
        let other = Authority::make("ins_x", at(0)).unwrap();
        assert_ne!(kept, other);
        for end in [0, 7, 11, 40, kept.len() - 1] {
            assert!(Authority::open("ins_x", &kept[..end]).is_err(), "{end}");
        }
        assert!(!one.is_old(at(0)) && !one.is_old(at(9 * 365 - 1)));
        assert!(one.is_old(at(9 * 365)));
    }

    #[test]
    fn a_hosts_certificate_is_kept_for_a_day_whichever_way_the_clock_is_set() {
        let kept = Authority::make("ins_x", at(0)).unwrap();
        let authority = Authority::open("ins_x", &kept).unwrap();
        let host: crate::model::host::Host = "example.org".parse().unwrap();
        let crate::model::host::Host::Name(host) = host else {
            panic!("a name");
        };
        let first = authority.serve(&host, at(0)).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.serve(&host, at(0)).unwrap()));
        assert!(!Arc::ptr_eq(
            &first,
            &authority.serve(&host, at(1)).unwrap()
        ));
        let later = authority.serve(&host, at(1)).unwrap();
        assert!(!Arc::ptr_eq(
            &later,
            &authority.serve(&host, at(0)).unwrap()
        ));
    }
}
