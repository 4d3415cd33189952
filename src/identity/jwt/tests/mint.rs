//! Makes tokens, good and bad, with the example keys of RFC 7515 and RFC 8037.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RsaEncoding, RsaKeyPair,
};
use ring::{hmac, rsa};
use serde_json::{Value, json};

use super::super::token;

/// What the clock shows.
pub(super) const NOW_S: i64 = 1_800_000_000;

pub(super) static KEYS: LazyLock<Value> = LazyLock::new(|| fixture("keys.json"));

pub(super) fn path(name: &str) -> std::path::PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/jwt").join(name)
}

pub(super) fn fixture(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

/// A member of one of the keys, as bytes.
pub(super) fn member(key: &str, name: &str) -> Vec<u8> {
    token::decode(KEYS[key][name].as_str().unwrap()).unwrap()
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// How to sign.
#[derive(Clone)]
pub(super) enum By {
    /// RS256.
    Rsa,
    /// The same key, with another hash or padding.
    Rsa512,
    RsaPss,
    /// ES256.
    Ec,
    /// The same, in the encoding that tokens do not have.
    EcDer,
    /// `EdDSA`.
    Ed,
    /// HS256.
    Hmac,
    /// HS256 with any bytes for a secret.
    Secret(Vec<u8>),
    /// These bytes, whatever is signed.
    Bytes(Vec<u8>),
}

impl By {
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa => by_rsa(&RSA_PKCS1_SHA256, message),
            Self::Rsa512 => by_rsa(&RSA_PKCS1_SHA512, message),
            Self::RsaPss => by_rsa(&RSA_PSS_SHA256, message),
            Self::Ec => by_ec(&ECDSA_P256_SHA256_FIXED_SIGNING, message),
            Self::EcDer => by_ec(&ECDSA_P256_SHA256_ASN1_SIGNING, message),
            Self::Ed => {
                let (seed, public) = (member("ed", "d"), member("ed", "x"));
                let key = Ed25519KeyPair::from_seed_and_public_key(&seed, &public).unwrap();
                key.sign(message).as_ref().to_vec()
            }
            Self::Hmac => Self::Secret(member("hmac", "k")).sign(message),
            Self::Secret(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, message).as_ref().to_vec()
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

fn by_rsa(padding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
    let part = |name| member("rsa", name);
    let components = rsa::KeyPairComponents {
        public_key: rsa::PublicKeyComponents {
            n: part("n"),
            e: part("e"),
        },
        d: part("d"),
        p: part("p"),
        q: part("q"),
        dP: part("dp"),
        dQ: part("dq"),
        qInv: part("qi"),
    };
    let key = RsaKeyPair::from_components(&components).unwrap();
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(padding, &SystemRandom::new(), message, &mut signature)
        .unwrap();
    signature
}

fn by_ec(algorithm: &'static EcdsaSigningAlgorithm, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let point = [&[4], member("ec", "x").as_slice(), &member("ec", "y")].concat();
    let key = EcdsaKeyPair::from_private_key_and_public_key(
        algorithm,
        &member("ec", "d"),
        &point,
        &random,
    );
    key.unwrap()
        .sign(&random, message)
        .unwrap()
        .as_ref()
        .to_vec()
}

/// A token of any texts.
pub(super) fn raw(header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>, by: &By) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = encode(by.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// A token that is to become something else.
#[derive(Clone)]
pub(super) struct Draft {
    pub(super) header: Value,
    pub(super) claims: Value,
    pub(super) by: By,
}

impl Draft {
    /// Of the issuer with public keys.
    pub(super) fn public(alg: &str, kid: &str, by: By) -> Self {
        Self {
            header: json!({"alg": alg, "kid": kid, "typ": "JWT"}),
            claims: json!({
                "iss": "https://public.example.com", "aud": "casemate", "sub": "somebody",
                "iat": NOW_S - 10, "nbf": NOW_S - 10, "exp": NOW_S + 300,
            }),
            by,
        }
    }

    pub(super) fn rsa() -> Self {
        Self::public("RS256", "rsa", By::Rsa)
    }

    /// Of the issuer with a secret, whose claims are mapped.
    pub(super) fn secret() -> Self {
        Self {
            header: json!({"alg": "HS256"}),
            claims: json!({
                "iss": "https://secret.example.com", "aud": ["other", "casemate"], "azp": "web",
                "user": {"id": "u-1"}, "iat": NOW_S - 10, "exp": NOW_S + 300,
                "verified": true, "plan": {"tier": "gold", "seats": 7}, "flags": ["a", "b"],
                "org": {"team": "/acme"}, "roles": ["staff"], "scope": "openid sessions:read",
            }),
            by: By::Hmac,
        }
    }

    /// With this in the header; `null` is taken as it is.
    pub(super) fn header(mut self, name: &str, value: Value) -> Self {
        self.header[name] = value;
        self
    }

    pub(super) fn without_header(mut self, name: &str) -> Self {
        self.header.as_object_mut().unwrap().remove(name);
        self
    }

    /// With this claim, at a path with dots.
    pub(super) fn claim(mut self, path: &str, value: Value) -> Self {
        let mut at = &mut self.claims;
        for name in path.split('.') {
            at = &mut at[name];
        }
        *at = value;
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.claims.as_object_mut().unwrap().remove(name).unwrap();
        self
    }

    pub(super) fn by(mut self, by: By) -> Self {
        self.by = by;
        self
    }

    pub(super) fn token(&self) -> String {
        raw(self.header.to_string(), self.claims.to_string(), &self.by)
    }

    /// With these texts put in place of others before it is signed.
    pub(super) fn with_text(&self, from: &str, to: &str) -> String {
        let (header, claims) = (self.header.to_string(), self.claims.to_string());
        assert!(header.contains(from) || claims.contains(from), "{from}");
        raw(
            header.replacen(from, to, 1),
            claims.replacen(from, to, 1),
            &self.by,
        )
    }
}
