//! Whose JSON web tokens are taken, and what becomes of their claims. Plain values; `identity/jwt` acts on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::grant::Role;
use super::name::Name;

/// A way to sign a token (RFC 7518 section 3.1, RFC 8037 section 3.1). There is no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256: whoever checks a token can make one.
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

/// Every algorithm.
pub const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::Hs256,
    Algorithm::Rs256,
    Algorithm::Es256,
    Algorithm::EdDsa,
];

impl Algorithm {
    /// Its name in a token's header, and in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The one of this name; letters count as they are.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        ALGORITHMS.into_iter().find(|one| one.as_str() == name)
    }
}

/// Where a claim stands: names from the top of the token's claims. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimPath(Vec<String>);

/// The text says of no claim where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a claim's name; write names with dots between them, at most {MAX_CLAIM_DEPTH}, or a name that is a URL"
)]
pub struct NotAClaim;

/// Most names in a path, and levels of a token's claims.
pub const MAX_CLAIM_DEPTH: usize = 8;

impl ClaimPath {
    /// Reads `realm_access.roles`; what has `://` in it is the name of one claim.
    ///
    /// # Errors
    /// [`NotAClaim`] for an empty name, or too many.
    pub fn parse(text: &str) -> Result<Self, NotAClaim> {
        let names: Vec<String> = if text.contains("://") {
            vec![text.to_owned()]
        } else {
            text.split('.').map(str::to_owned).collect()
        };
        let is_good = names.len() <= MAX_CLAIM_DEPTH && names.iter().all(|name| !name.is_empty());
        if is_good {
            Ok(Self(names))
        } else {
            Err(NotAClaim)
        }
    }

    /// The names, the outermost first.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A PEM file with one public key (`SubjectPublicKeyInfo`, RFC 5280 section 4.1).
    Pem(PathBuf),
    /// A file with the secret of HS256.
    Secret(PathBuf),
    /// A credential of the unit with that secret (systemd.exec(5)), by its name.
    Credential(String),
    /// A file with a set of public keys (RFC 7517).
    JwksFile(PathBuf),
    /// A set of public keys on a server.
    JwksUrl {
        /// `https`, or `http` to a loopback address.
        url: String,
        /// The certificates that the server's must lead to; those of the system when there is none.
        ca_file: Option<PathBuf>,
    },
}

/// When keys are asked for anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTimes {
    /// Keys older than this are asked for again.
    pub max_age: Duration,
    /// At least so long between two askings, whoever wants them.
    pub min_interval: Duration,
    /// While they cannot be had, the last ones hold for so long after they were had.
    pub stale: Duration,
}

impl Default for KeyTimes {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(600),
            min_interval: Duration::from_secs(30),
            stale: Duration::from_secs(24 * 3600),
        }
    }
}

/// Which team a token acts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TeamRule {
    /// This one.
    Fixed(Name),
    /// What a claim says.
    Claim {
        /// The claim: text, or a list with one entry that counts.
        claim: ClaimPath,
        /// What it may say and which team that is; `None`: it says the team's name.
        map: Option<BTreeMap<String, Name>>,
    },
}

/// What role a token has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRule {
    /// A claim and what its values mean: text, or a list of which any may count.
    pub claim: Option<(ClaimPath, BTreeMap<String, Role>)>,
    /// The role of those to whom the claim gives none; `None`: they are refused.
    pub otherwise: Option<Role>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What the record calls it.
    pub name: Name,
    /// Exactly what its tokens have as `iss`. No two issuers have the same.
    pub issuer: String,
    /// One of these must be in `aud`. Empty: a token must have no `aud`.
    pub audiences: BTreeSet<String>,
    /// `azp` must be one of these; empty: it does not count. Not empty when there are no audiences.
    pub authorized_parties: BTreeSet<String>,
    /// How its tokens may be signed. Never empty.
    pub algorithms: BTreeSet<Algorithm>,
    /// Where its keys are.
    pub keys: KeySource,
    /// When they are asked for anew.
    pub times: KeyTimes,
    /// How far its clock and ours may be apart.
    pub leeway: Duration,
    /// How old a token may be by its `iat`, which it must then have.
    pub max_age: Option<Duration>,
    /// Claims that must be there, each with one of these values, or with a list that has one of them.
    pub required: BTreeMap<ClaimPath, BTreeSet<String>>,
    /// The claim that says whom the token is about.
    pub subject: ClaimPath,
    /// The team.
    pub team: TeamRule,
    /// The role.
    pub role: RoleRule,
    /// The claim that narrows the role to scopes; those that we do not know do not count.
    pub scopes: Option<ClaimPath>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_names_between_dots_and_a_url_is_one_name() {
        let names = |text| ClaimPath::parse(text).map(|path| path.names().to_vec());
        assert_eq!(names("sub").unwrap(), ["sub"]);
        assert_eq!(
            names("realm_access.roles").unwrap(),
            ["realm_access", "roles"]
        );
        let url = "https://example.com/roles";
        assert_eq!(names(url).unwrap(), [url]);
        for bad in ["", ".", "a.", ".a", "a..b", "a.b.c.d.e.f.g.h.i"] {
            assert_eq!(names(bad), Err(NotAClaim), "{bad}");
        }
    }

    #[test]
    fn algorithms_are_named_exactly() {
        for algorithm in ALGORITHMS {
            assert_eq!(Algorithm::named(algorithm.as_str()), Some(algorithm));
        }
        for bad in ["none", "hs256", "HS512", "RS256 ", "EDDSA", ""] {
            assert_eq!(Algorithm::named(bad), None, "{bad}");
        }
    }
}
