//! The compact form of a signed token (RFC 7515 section 7.1), taken apart as strictly as it is written down. Nothing is verified
//! here.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::json::{self, Json, Object};
use super::{MAX_TOKEN_BYTES, Refused};
use crate::model::issuer::Algorithm;

/// Longest `kid`, in bytes.
pub(super) const MAX_KID_BYTES: usize = 256;

/// base64url without padding; bits that nothing needs must be zero, so that a text has one spelling.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(false),
);

/// What a header must not have, whatever it says: keys that come with the token, extensions that must be understood, tokens
/// in tokens. A word for the log beside each.
const FORBIDDEN: [(&str, Refused); 9] = [
    ("crit", Refused::Critical),
    ("jwk", Refused::KeyInToken),
    ("jku", Refused::KeyInToken),
    ("x5u", Refused::KeyInToken),
    ("x5c", Refused::KeyInToken),
    ("b64", Refused::Critical),
    ("enc", Refused::Encrypted),
    ("zip", Refused::Encrypted),
    ("cty", Refused::Type),
];

/// What `typ` may be, in any letters; `application/` before it is left out (RFC 7515 section 4.1.9). A token for another purpose, such as
/// `logout+jwt`, is none for us.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// A token that was taken apart.
pub(super) struct Parts<'a> {
    /// How it says that it is signed. The key decides whether that is so.
    pub(super) algorithm: Algorithm,
    /// Which key it says that it is signed with.
    pub(super) kid: Option<String>,
    /// What it claims.
    pub(super) claims: Object,
    /// What is signed.
    pub(super) message: &'a [u8],
    /// The signature.
    pub(super) signature: Vec<u8>,
}

/// base64url, exactly as it must be.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64URL.decode(text).ok()
}

/// Takes a token apart.
pub(super) fn parse(text: &str) -> Result<Parts<'_>, Refused> {
    if text.len() > MAX_TOKEN_BYTES {
        return Err(Refused::TooLong);
    }
    let (message, signature) = text.rsplit_once('.').ok_or(Refused::Malformed)?;
    let (header, claims) = message.split_once('.').ok_or(Refused::Malformed)?;
    // A fourth dot is no letter of base64url.
    let decoded = |text: &str| decode(text).ok_or(Refused::Malformed);
    let header = json::object(&decoded(header)?).ok_or(Refused::Malformed)?;
    let (algorithm, kid) = read_header(&header)?;
    let claims = json::object(&decoded(claims)?).ok_or(Refused::Malformed)?;
    let signature = decoded(signature)?;
    if signature.is_empty() {
        return Err(Refused::Signature);
    }
    Ok(Parts {
        algorithm,
        kid,
        claims,
        message: message.as_bytes(),
        signature,
    })
}

fn read_header(header: &Object) -> Result<(Algorithm, Option<String>), Refused> {
    for (name, refused) in FORBIDDEN {
        if header.contains_key(name) {
            return Err(refused);
        }
    }
    let is_type = |text: &str| {
        let text = text.to_ascii_lowercase();
        TYPES.contains(&text.strip_prefix("application/").unwrap_or(&text))
    };
    match header.get("typ") {
        None => {}
        Some(Json::Text(text)) if is_type(text) => {}
        Some(_) => return Err(Refused::Type),
    }
    let kid = match header.get("kid") {
        None => None,
        Some(Json::Text(kid)) if (1..=MAX_KID_BYTES).contains(&kid.len()) => Some(kid.clone()),
        Some(_) => return Err(Refused::Malformed),
    };
    let algorithm = header.get("alg").and_then(Json::text);
    let algorithm = algorithm.and_then(Algorithm::named);
    Ok((algorithm.ok_or(Refused::Algorithm)?, kid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_spelling() {
        assert_eq!(decode("_-8"), Some(vec![0xff, 0xef]));
        assert_eq!(decode(""), Some(Vec::new()));
        for bad in ["_-8=", "/+8", "_-9", "_", " _-8", "_-8\n", "_-.8", "ä"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
