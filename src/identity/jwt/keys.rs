//! Keys, each pinned to one algorithm: what a token says of its own only chooses among them.
//!
//! From a secret, a PEM file, or a set (RFC 7517). Nothing private is taken but the secret of HS256, and that from a file of its
//! own alone: a set may lie on a server that everybody can ask.

use std::collections::BTreeSet;
use std::fmt;

use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};

use super::der::{self, PublicKey};
use super::json::{self, Json, Object};
use super::token::{MAX_KID_BYTES, decode};
use crate::base::secret::Secret;
use crate::model::issuer::Algorithm;

/// Least bytes of a secret: as many as the hash has (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;
/// Most bytes of a secret.
pub(super) const MAX_SECRET_BYTES: usize = 4096;
/// Least bits of an RSA modulus (RFC 7518 section 3.3).
const MIN_RSA_BITS: usize = 2048;
/// Most bits, as ring has it.
const MAX_RSA_BITS: usize = 8192;
/// Most bytes of an RSA exponent: ring's bound is 33 bits.
const MAX_EXPONENT_BYTES: usize = 4;
/// The least exponent (FIPS 186-5 section A.1.1).
const MIN_EXPONENT: u64 = 65_537;
/// Most keys of a set that are looked at.
const MAX_KEYS: usize = 128;
/// What only private and secret keys have (RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// A key and the one algorithm that it is for.
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    /// Its name in a set.
    pub(super) kid: Option<String>,
    material: Material,
}

enum Material {
    Secret(hmac::Key),
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kid = self.kid.as_deref().unwrap_or_default();
        write!(f, "Key({}, {kid:?})", self.algorithm.as_str())
    }
}

/// The keys of an issuer. Never empty.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// Whether any has a name; where none has, the name in a token means nothing.
    has_names: bool,
}

/// There is no key for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// None has this name: a newer set may have it.
    Unknown,
    /// The key is for another algorithm.
    Algorithm,
    /// The token names none, and more than one could be meant.
    Ambiguous,
}

/// Why keys were not taken, and what to do.
pub(super) type Unfit = &'static str;

impl Key {
    /// A secret for HS256.
    pub(super) fn secret(secret: &Secret<Vec<u8>>) -> Result<Self, Unfit> {
        let bytes = plain_secret(secret.expose());
        if !(MIN_SECRET_BYTES..=MAX_SECRET_BYTES).contains(&bytes.len()) {
            return Err(
                "does not have 32 to 4096 bytes; openssl rand -base64 48 makes a secret that has",
            );
        }
        Ok(Self {
            algorithm: Algorithm::Hs256,
            kid: None,
            material: Material::Secret(hmac::Key::new(hmac::HMAC_SHA256, bytes)),
        })
    }

    /// A public key from PEM.
    pub(super) fn pem(text: &str) -> Result<Self, Unfit> {
        Self::public(der::from_pem(text)?, None)
            .ok_or("is too weak; an RSA key has 2048 to 8192 bits and an exponent from 65537")
    }

    fn public(key: PublicKey, kid: Option<String>) -> Option<Self> {
        let (algorithm, material) = match key {
            PublicKey::Rsa { n, e } => {
                is_strong(&n, &e).then_some((Algorithm::Rs256, Material::Rsa { n, e }))?
            }
            PublicKey::P256(point) => (Algorithm::Es256, Material::P256(point)),
            PublicKey::Ed25519(bytes) => (Algorithm::EdDsa, Material::Ed25519(bytes)),
        };
        Some(Self {
            algorithm,
            kid,
            material,
        })
    }

    /// Whether this key made this signature, by its own algorithm.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Rsa { n, e } => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            Material::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
            Material::Ed25519(bytes) => UnparsedPublicKey::new(&ED25519, bytes)
                .verify(message, signature)
                .is_ok(),
        }
    }
}

/// A text without the line's end that an editor or a shell put there; anything that is no text as it is.
fn plain_secret(bytes: &[u8]) -> &[u8] {
    match bytes {
        [text @ .., b'\n'] if text.iter().all(|b| matches!(b, b' '..=b'~')) => text,
        other => other,
    }
}

fn is_strong(n: &[u8], e: &[u8]) -> bool {
    let bits = |bytes: &[u8]| match bytes.first() {
        Some(0) | None => 0,
        Some(first) => bytes.len() * 8 - first.leading_zeros() as usize,
    };
    let exponent = e
        .iter()
        .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits(n))
        && n.last().is_some_and(|last| last % 2 == 1)
        && (1..=MAX_EXPONENT_BYTES).contains(&e.len())
        && e.first() != Some(&0)
        && exponent >= MIN_EXPONENT
        && exponent % 2 == 1
}

impl KeySet {
    /// One key, which is meant by every token.
    pub(super) fn one(key: Key, allowed: &BTreeSet<Algorithm>) -> Result<Self, Unfit> {
        if !allowed.contains(&key.algorithm) {
            return Err("holds a key for an algorithm that the issuer's algorithms do not have");
        }
        Ok(Self {
            keys: vec![key],
            has_names: false,
        })
    }

    /// The keys of a set that are for us: what is for encryption, of other kinds, too weak or not understood is let be, as RFC 7517
    /// section 5 says.
    pub(super) fn from_jwks(bytes: &[u8], allowed: &BTreeSet<Algorithm>) -> Result<Self, Unfit> {
        let set = json::object(bytes).ok_or("is not a JSON object without doubled names")?;
        let Some(Json::List(entries)) = set.get("keys") else {
            return Err("is no set of keys: it has no list keys");
        };
        if entries.len() > MAX_KEYS {
            return Err("has more than 128 keys");
        }
        let mut keys: Vec<Key> = Vec::new();
        for entry in entries {
            let Json::Object(entry) = entry else { continue };
            let is_private = PRIVATE.iter().any(|name| entry.contains_key(*name));
            if is_private || entry.get("kty").and_then(Json::text) == Some("oct") {
                return Err(
                    "holds a private or secret key; make new keys, and publish only the public parts",
                );
            }
            let Some(key) = from_jwk(entry).filter(|key| allowed.contains(&key.algorithm)) else {
                continue;
            };
            let is_twice = |other: &Key| key.kid.is_some() && other.kid == key.kid;
            if keys.iter().any(is_twice) {
                return Err("has two keys with one kid");
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err("has no key for any of the issuer's algorithms");
        }
        Ok(Self {
            has_names: keys.iter().any(|key| key.kid.is_some()),
            keys,
        })
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key for a token that says this of itself.
    pub(super) fn choose(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&Key, NoKey> {
        let key = match kid {
            Some(kid) if self.has_names => {
                let mut keys = self.keys.iter();
                let found = keys.find(|key| key.kid.as_deref() == Some(kid));
                found.ok_or(NoKey::Unknown)?
            }
            _ => {
                let mut fitting = self.keys.iter().filter(|key| key.algorithm == algorithm);
                match (fitting.next(), fitting.next()) {
                    (Some(key), None) => key,
                    (None, _) => return Err(NoKey::Algorithm),
                    (Some(_), Some(_)) => return Err(NoKey::Ambiguous),
                }
            }
        };
        (key.algorithm == algorithm)
            .then_some(key)
            .ok_or(NoKey::Algorithm)
    }
}

/// A key of a set, if it is one to verify signatures with, of a kind that we know.
fn from_jwk(jwk: &Object) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Json::text);
    let bytes = |name: &str| text(name).and_then(decode);
    let is_for_signatures = match jwk.get("use") {
        None => true,
        Some(usage) => usage.text() == Some("sig"),
    };
    let verifies = match jwk.get("key_ops") {
        None => true,
        Some(Json::List(uses)) => uses.iter().any(|one| one.text() == Some("verify")),
        Some(_) => false,
    };
    let kid = match jwk.get("kid") {
        None => None,
        Some(Json::Text(kid)) if (1..=MAX_KID_BYTES).contains(&kid.len()) => Some(kid.clone()),
        Some(_) => return None,
    };
    if !is_for_signatures || !verifies {
        return None;
    }
    let public = match (text("kty")?, text("crv")) {
        ("RSA", None) => PublicKey::Rsa {
            n: bytes("n")?,
            e: bytes("e")?,
        },
        ("EC", Some("P-256")) => {
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != 32 || y.len() != 32 {
                return None;
            }
            PublicKey::P256([&[4], x.as_slice(), &y].concat())
        }
        ("OKP", Some("Ed25519")) => {
            PublicKey::Ed25519(bytes("x").filter(|bytes| bytes.len() == 32)?)
        }
        _ => return None,
    };
    let key = Key::public(public, kid)?;
    let is_pinned = match jwk.get("alg") {
        None => true,
        Some(algorithm) => algorithm.text() == Some(key.algorithm.as_str()),
    };
    is_pinned.then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> BTreeSet<Algorithm> {
        crate::model::issuer::ALGORITHMS.into()
    }

    /// The key of RFC 8037 appendix A.2.
    const ED25519: &str =
        r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;

    fn set(entries: &[String]) -> Result<KeySet, Unfit> {
        let text = format!("{{\"keys\":[{}]}}", entries.join(","));
        KeySet::from_jwks(text.as_bytes(), &all())
    }

    #[test]
    fn a_secret_has_the_bytes_of_its_file_without_the_end_of_a_line() {
        let key = |bytes: &[u8]| Key::secret(&Secret::new(bytes.to_vec()));
        let text = [b'a'; 32];
        let with_end = [text.as_slice(), b"\n"].concat();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &text), b"m");
        assert!(key(&with_end).unwrap().verifies(b"m", tag.as_ref()));
        assert!(key(&text).unwrap().verifies(b"m", tag.as_ref()));
        let binary = [[0xff; 31].as_slice(), b"\n"].concat();
        assert!(
            key(&binary).is_ok(),
            "bytes that are no text stay as they are"
        );
        assert!(key(&text[..31]).is_err());
        assert!(key(&with_end[1..]).is_err());
        assert!(key(&[1; MAX_SECRET_BYTES + 1]).is_err());
        assert!(!format!("{:?}", key(&text)).contains("aaaa"));
    }

    #[test]
    fn a_set_with_anything_private_is_refused_whole() {
        let good = format!("{{{ED25519}}}");
        assert!(set(std::slice::from_ref(&good)).is_ok());
        for bad in [
            format!("{{{ED25519},\"d\":\"nWGx\"}}"),
            format!("{{{ED25519},\"d\":null}}"),
            r#"{"kty":"oct","k":"AAAA"}"#.to_owned(),
            r#"{"kty":"oct"}"#.to_owned(),
            r#"{"kty":"RSA","n":"AA","e":"AQAB","p":"AA"}"#.to_owned(),
        ] {
            assert!(set(&[good.clone(), bad.clone()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_that_are_not_for_us_are_let_be() {
        for other in [
            format!("{{{ED25519},\"use\":\"enc\"}}"),
            format!("{{{ED25519},\"use\":1}}"),
            format!("{{{ED25519},\"key_ops\":[\"encrypt\"]}}"),
            format!("{{{ED25519},\"key_ops\":\"verify\"}}"),
            format!("{{{ED25519},\"alg\":\"ES256\"}}"),
            format!("{{{ED25519},\"alg\":\"none\"}}"),
            format!("{{{ED25519},\"kid\":\"\"}}"),
            format!("{{{ED25519},\"kid\":7}}"),
            ED25519.replace("OKP", "EC").replacen('"', "{\"", 1) + "}",
            r#"{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#
                .to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qY"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519"}"#.to_owned(),
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.to_owned(),
            r#"{"kty":"RSA","n":"AAAA","e":"AQAB"}"#.to_owned(),
            format!(
                "{{\"kty\":\"RSA\",\"n\":\"{}\",\"e\":\"AQAB\"}}",
                "_".repeat(340)
            ),
            format!(
                "{{\"kty\":\"RSA\",\"n\":\"{}8\",\"e\":\"Aw\"}}",
                "_".repeat(342)
            ),
            format!(
                "{{\"kty\":\"RSA\",\"n\":\"{}8\",\"e\":\"AQAA\"}}",
                "_".repeat(342)
            ),
            "7".to_owned(),
        ] {
            assert!(set(std::slice::from_ref(&other)).is_err(), "{other}");
            let good = format!("{{{ED25519},\"kid\":\"good\"}}");
            let keys = set(&[other.clone(), good]).expect(&other);
            assert_eq!(keys.keys.len(), 1, "{other}");
        }
    }

    #[test]
    fn a_set_that_is_none_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            "{\"keys\":{}}",
            "{\"keys\":[]}",
            "{\"keys\":[],\"keys\":[]}",
            "<html>",
        ] {
            assert!(KeySet::from_jwks(bad.as_bytes(), &all()).is_err(), "{bad}");
        }
        let one = format!("{{{ED25519},\"kid\":\"a\"}}");
        assert_eq!(
            set(&[one.clone(), one]).unwrap_err(),
            "has two keys with one kid"
        );
        let many = vec!["7".to_owned(); MAX_KEYS + 1];
        assert_eq!(set(&many).unwrap_err(), "has more than 128 keys");
        let text = format!("{{\"keys\":[{{{ED25519}}}]}}");
        let other = [Algorithm::Rs256].into();
        assert!(KeySet::from_jwks(text.as_bytes(), &other).is_err());
    }

    #[test]
    fn a_key_is_chosen_by_its_name_and_never_for_another_algorithm() {
        let named = |kid| format!("{{{ED25519},\"kid\":\"{kid}\"}}");
        let two = set(&[named("a"), named("b")]).unwrap();
        let choose = |kid, algorithm| two.choose(kid, algorithm).map(|key| key.kid.clone());
        assert_eq!(
            choose(Some("b"), Algorithm::EdDsa),
            Ok(Some("b".to_owned()))
        );
        assert_eq!(choose(Some("c"), Algorithm::EdDsa), Err(NoKey::Unknown));
        assert_eq!(choose(Some("a"), Algorithm::Hs256), Err(NoKey::Algorithm));
        assert_eq!(choose(None, Algorithm::EdDsa), Err(NoKey::Ambiguous));
        assert_eq!(choose(None, Algorithm::Hs256), Err(NoKey::Algorithm));
        let one = set(&[named("a")]).unwrap();
        assert!(one.choose(None, Algorithm::EdDsa).is_ok());
    }
}
