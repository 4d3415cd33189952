//! Signed addresses of files: whoever has one may read or write that file, until it is over.
//!
//! The signature is E2B's `v1`: base64 without padding of SHA-256 over path, operation, user, the sandbox's access token and the end, with
//! colons between. That the token is in it as it is, and not as the key of a MAC, is how clients make it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::Method;
use subtle::ConstantTimeEq;

use crate::api::body;
use crate::base::clock::Timestamp;
use crate::identity::digest;

/// What an address says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::api) struct Signed {
    path: String,
    operation: &'static str,
    user: String,
    expires_s: Option<String>,
    signature: String,
}

impl Signed {
    /// What is signed of a request; `None` where nothing is.
    pub(in crate::api) fn read(method: &Method, query: Option<&str>) -> Option<Self> {
        let operation = match *method {
            Method::GET | Method::HEAD => "read",
            Method::POST => "write",
            _ => return None,
        };
        let mut signed = Self {
            path: String::new(),
            operation,
            user: String::new(),
            expires_s: None,
            signature: String::new(),
        };
        for (name, value) in body::pairs(query?).ok()? {
            let slot = match name.as_str() {
                "path" => &mut signed.path,
                "username" => &mut signed.user,
                "signature" => &mut signed.signature,
                "signature_expiration" => signed.expires_s.get_or_insert_default(),
                _ => continue,
            };
            // What is there twice could be read in two ways.
            if !slot.is_empty() {
                return None;
            }
            *slot = value;
        }
        (!signed.signature.is_empty()).then_some(signed)
    }

    /// Whether it is over, or says no time that can be read.
    pub(in crate::api) fn is_over(&self, now: Timestamp) -> bool {
        let Some(text) = &self.expires_s else {
            return false;
        };
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let end = text.parse::<i64>().ok().filter(|_| is_plain);
        let end = end.and_then(|seconds| seconds.checked_mul(1000));
        end.is_none_or(|end| now.as_millis() >= end)
    }

    /// Whether it was signed with this token.
    pub(in crate::api) fn is_by(&self, token: &str) -> bool {
        let mut text = format!("{}:{}:{}:{token}", self.path, self.operation, self.user);
        if let Some(end) = &self.expires_s {
            text.push(':');
            text.push_str(end);
        }
        let made = format!("v1_{}", STANDARD_NO_PAD.encode(digest(text.as_bytes())));
        made.as_bytes().ct_eq(self.signature.as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // sha256("/home/user/a b.txt:read::token:1700000000"), as E2B's Python client makes it.
    const SIGNATURE: &str = "v1_6ezZXR9pEimnWDIY4qQlvgFoN6mWSd4NfZ8F2jf2SNg";

    fn read(query: &str) -> Option<Signed> {
        Signed::read(&Method::GET, Some(query))
    }

    #[test]
    fn a_signature_is_of_one_file_one_operation_one_user_and_one_end() {
        let query = |path: &str, end: &str| {
            let signature = SIGNATURE.replace('+', "%2B");
            format!("path={path}&signature={signature}&signature_expiration={end}")
        };
        let good = query("%2Fhome%2Fuser%2Fa+b.txt", "1700000000");
        assert!(read(&good).unwrap().is_by("token"));
        assert!(!read(&good).unwrap().is_by("tokem"));
        assert!(
            !read(&query("%2Fhome%2Fuser%2Fa+c.txt", "1700000000"))
                .unwrap()
                .is_by("token")
        );
        assert!(
            !read(&query("%2Fhome%2Fuser%2Fa+b.txt", "1700000001"))
                .unwrap()
                .is_by("token")
        );
        assert!(
            !read(&format!("{good}&username=root"))
                .unwrap()
                .is_by("token")
        );
        let write = Signed::read(&Method::POST, Some(&good)).unwrap();
        assert!(!write.is_by("token"));
        assert_eq!(read(&format!("{good}&path=%2Fetc%2Fpasswd")), None);
        assert_eq!(read("path=%2Fa"), None);
        assert_eq!(Signed::read(&Method::DELETE, Some(&good)), None);
    }

    #[test]
    fn an_end_is_in_seconds_and_anything_else_is_over() {
        let over = |end: &str, now_ms: i64| {
            read(&format!("signature=v1_x&signature_expiration={end}"))
                .unwrap()
                .is_over(Timestamp::from_millis(now_ms))
        };
        assert!(!over("1700000000", 1_699_999_999_999));
        assert!(over("1700000000", 1_700_000_000_000));
        for bad in [
            "x",
            "-1",
            "+1",
            "99999999999999999999",
            "9223372036854775807",
        ] {
            assert!(over(bad, 0), "{bad}");
        }
        assert!(
            !read("signature=v1_x")
                .unwrap()
                .is_over(Timestamp::from_millis(i64::MAX))
        );
    }
}
