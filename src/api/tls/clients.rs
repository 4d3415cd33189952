//! Certificates of clients: who vouches for them, and whom the operator says that they are.
//!
//! rustls checks that one is signed, meant for clients and valid, before a request is read. Only then it is looked up here; one that is not
//! listed is nobody's, and its holder needs a key like everybody. There are no lists of revoked ones: take it out of the settings, or its issuer.

use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use webpki::EndEntityCert;

use super::{TlsError, Validity, certificates};
use crate::base::clock::Timestamp;
use crate::model::grant::Grant;
use crate::model::principal::{Client, Principal, Proof};
use crate::model::settings::{CertificateMark, ClientCertificate};

const NO_ISSUERS: TlsError = TlsError::Malformed {
    key: "client_ca",
    wanted: "a list of certificates that vouch for clients",
};

/// Checks what clients show.
pub(super) fn verifier(
    issuers: &[u8],
    is_required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for issuer in certificates(issuers).map_err(|_| NO_ISSUERS)? {
        roots.add(issuer).map_err(|_| NO_ISSUERS)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if is_required {
        builder
    } else {
        builder.allow_unauthenticated()
    };
    builder.build().map_err(|_| NO_ISSUERS)
}

/// Whoever showed a certificate that is known.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    principal: Principal,
    validity: Validity,
}

impl Shown {
    /// Whose it is, if anybody's. The first of the list that it fits.
    pub(super) fn of(
        certificate: &CertificateDer<'_>,
        known: &[ClientCertificate],
    ) -> Option<Self> {
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        let fits = |one: &&ClientCertificate| match &one.mark {
            CertificateMark::Fingerprint(print) => {
                digest(&SHA256, certificate).as_ref() == print.as_slice()
            }
            CertificateMark::San(san) => {
                let mut names = parsed.valid_dns_names().chain(parsed.valid_uri_names());
                names.any(|name| name == san)
            }
        };
        let known = known.iter().find(fits)?;
        Some(Self {
            validity: Validity::of(certificate)?,
            principal: Principal::Client(Client {
                by: Proof::Certificate {
                    name: known.name.to_string(),
                },
                team: known.team.clone(),
                grant: Grant::whole(known.role),
                session: None,
            }),
        })
    }

    /// Who it is, as long as the certificate holds: connections may outlive it.
    pub(crate) fn principal(&self, now: Timestamp) -> Option<&Principal> {
        self.validity.holds(now).then_some(&self.principal)
    }
}
