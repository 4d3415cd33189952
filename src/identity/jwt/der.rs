//! One public key in PEM (RFC 7468) with the DER of RFC 5280 section 4.1 in it, and no more of either than that needs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const NULL: u8 = 0x05;
const OBJECT_ID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// 1.2.840.113549.1.1.1, `rsaEncryption` (RFC 8017 appendix A.1).
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.2.840.10045.2.1, `id-ecPublicKey` (RFC 5480 section 2.1.1).
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.2.840.10045.3.1.7, `secp256r1`.
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// 1.3.101.112, `id-Ed25519` (RFC 8410 section 3).
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// A public key of a kind that we know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PublicKey {
    /// Modulus and exponent, big-endian, without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// An uncompressed point on P-256.
    P256(Vec<u8>),
    /// The bytes of RFC 8032.
    Ed25519(Vec<u8>),
}

/// The one public key of a PEM file. Text before and after it is let be; a second block is not.
pub(super) fn from_pem(text: &str) -> Result<PublicKey, &'static str> {
    if text.contains("PRIVATE KEY-----") {
        return Err("holds a private key, which does not belong here; write the public one");
    }
    if text.matches("-----BEGIN ").count() != 1 {
        return Err("does not hold exactly one PEM block");
    }
    let body = text
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END))
        .ok_or("holds no PUBLIC KEY in PEM; openssl pkey -pubin prints one")?
        .0;
    let joined: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(joined).map_err(|_| "is not base64")?;
    from_der(&der).ok_or(
        "is not a public key of RSA, of the curve P-256 or of Ed25519, in its plain encoding",
    )
}

/// A `SubjectPublicKeyInfo`.
pub(super) fn from_der(der: &[u8]) -> Option<PublicKey> {
    let (info, rest) = read(der, SEQUENCE)?;
    let (algorithm, info) = read(info, SEQUENCE)?;
    let (bits, after) = read(info, BIT_STRING)?;
    let (id, parameters) = read(algorithm, OBJECT_ID)?;
    if !rest.is_empty() || !after.is_empty() {
        return None;
    }
    // No unused bits.
    let (0, key) = bits.split_first().map(|(unused, key)| (*unused, key))? else {
        return None;
    };
    match id {
        RSA => {
            let (null, rest) = read(parameters, NULL)?;
            let (numbers, after) = read(key, SEQUENCE)?;
            let (n, numbers) = positive(numbers)?;
            let (e, numbers) = positive(numbers)?;
            let is_whole = [null, rest, after, numbers]
                .iter()
                .all(|left| left.is_empty());
            is_whole.then(|| PublicKey::Rsa {
                n: n.to_vec(),
                e: e.to_vec(),
            })
        }
        EC => {
            let (curve, rest) = read(parameters, OBJECT_ID)?;
            let is_ours = curve == P256 && rest.is_empty();
            let is_point = key.len() == 65 && key.first() == Some(&4);
            (is_ours && is_point).then(|| PublicKey::P256(key.to_vec()))
        }
        ED25519 => {
            (parameters.is_empty() && key.len() == 32).then(|| PublicKey::Ed25519(key.to_vec()))
        }
        _ => None,
    }
}

/// A positive integer in its shortest form, without the zero that says that it is positive.
fn positive(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (bytes, rest) = read(der, INTEGER)?;
    let number = match bytes {
        [0, number @ ..] if number.first()? & 0x80 != 0 => number,
        [first, ..] if *first != 0 && first & 0x80 == 0 => bytes,
        _ => return None,
    };
    Some((number, rest))
}

/// The content of a value with this tag, and what comes after it. Lengths are as DER writes them (X.690 section 10.1).
fn read(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => {
            let (length, rest) = rest.split_first()?;
            (usize::from(*length).checked_sub(0x80)? + 0x80, rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            let length = usize::from(u16::from_be_bytes(*length));
            (length.checked_sub(0x100)? + 0x100, rest)
        }
        _ => return None,
    };
    (*found == tag).then(|| rest.split_at_checked(length))?
}
