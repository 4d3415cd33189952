//! A named recipe for a sandbox.

use std::collections::BTreeMap;

use super::image::ImageDigest;
use super::name::Name;
use super::sandbox::Limits;

/// What sessions of one kind are made of, and what they get when they do not say.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// Its name.
    pub name: Name,
    /// The pinned image.
    pub image: ImageDigest,
    /// The limits of a session that asks for none.
    pub limits: Limits,
    /// The most that a session may ask for.
    pub max_limits: Limits,
    /// Whether programs may run as root in a session, with the capabilities that make root useful
    /// inside and none on the host.
    pub allow_root: bool,
    /// Environment of every process; a session's own wins.
    pub env: BTreeMap<String, String>,
    /// Where processes start when neither they nor their session say.
    pub workdir: Option<String>,
    /// Lifetime of a session that does not say, in seconds.
    pub timeout_s: u64,
    /// Longest lifetime that a session may ask for, in seconds.
    pub max_timeout_s: u64,
}
