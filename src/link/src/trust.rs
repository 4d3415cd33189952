//! The document by which a sandbox's programs come to trust somebody besides those whom its image trusts.

use serde::{Deserialize, Serialize};

/// Where the certificate is put alone.
pub const OWN_PATH: &str = "/etc/casemate/ca.pem";
/// Where it is put with all that the image trusts.
pub const ALL_PATH: &str = "/etc/casemate/ca-bundle.pem";
/// Longest certificate, in bytes.
pub const MAX_PEM_BYTES: usize = 16 << 10;

/// Whom to trust from now on. A repetition is success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustRequest {
    /// A certificate as text (RFC 7468), of at most [`MAX_PEM_BYTES`].
    pub pem: String,
}
