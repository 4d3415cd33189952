//! What a copy of the database must not show is given to a veil before it is written, and read through it. The store knows neither
//! key nor cipher.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use zeroize::Zeroizing;

use super::{Store, StoreError};
use crate::model::record::hex;
use crate::model::session::Session;

/// Seals and opens what stands in a place.
pub trait Veil: Send + Sync {
    /// Sealed for this place; `None`: it cannot be sealed, and is not written.
    fn seal(&self, place: &str, clear: &[u8]) -> Option<Vec<u8>>;

    /// What was sealed for this place; `None`: it was damaged, or comes from another place.
    fn open(&self, place: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>>;
}

/// The veil of a store, once it has one.
#[derive(Clone, Default)]
pub(super) struct Veiled(Arc<OnceLock<Box<dyn Veil>>>);

impl Store {
    /// Gives the store its veil; the first time counts. Until then no session that has an environment is written or read.
    pub fn draw_veil(&self, veil: Box<dyn Veil>) {
        // A second one would be of the same key.
        let _ = self.veiled.0.set(veil);
    }
}

impl Veiled {
    /// The environment of a session as its row has it: an object that is empty, or a text that is sealed.
    pub(super) fn env(&self, session: &Session) -> Result<String, StoreError> {
        if session.spec.env.is_empty() {
            return Ok("{}".to_owned());
        }
        let clear = serde_json::to_vec(&session.spec.env).map(Zeroizing::new);
        let sealed = clear.ok().and_then(|clear| {
            let veil = self.0.get()?;
            veil.seal(&place(&session.id.to_string()), &clear)
        });
        let sealed = sealed.ok_or_else(|| StoreError::System {
            doing: "seal the environment of a session",
            source: std::io::Error::other("there is no key"),
        })?;
        Ok(serde_json::Value::String(hex(&sealed)).to_string())
    }

    /// The environment that a row has. An object is what a version wrote that sealed nothing.
    pub(super) fn read_env(
        &self,
        session: &str,
        text: &str,
    ) -> Result<BTreeMap<String, String>, String> {
        let unread = |_| "env".to_owned();
        if text.starts_with('{') {
            return serde_json::from_str(text).map_err(unread);
        }
        let sealed: String = serde_json::from_str(text).map_err(unread)?;
        let opened = unhex(&sealed).and_then(|sealed| {
            let veil = self.0.get()?;
            veil.open(&place(session), &sealed)
        });
        let opened = opened.ok_or("env, which does not open with the key of this state")?;
        serde_json::from_slice(&opened).map_err(unread)
    }
}

fn place(session: &str) -> String {
    format!("environment of {session}")
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    bytes.collect::<Option<_>>().filter(|_| rest.is_empty())
}

/// For tests: turns every bit, and says for which place.
#[cfg(test)]
pub(super) struct Turned;

#[cfg(test)]
impl Veil for Turned {
    fn seal(&self, place: &str, clear: &[u8]) -> Option<Vec<u8>> {
        let turned = clear.iter().map(|byte| !byte);
        Some(place.bytes().chain(turned).collect())
    }

    fn open(&self, place: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let turned = sealed.strip_prefix(place.as_bytes())?;
        Some(turned.iter().map(|byte| !byte).collect::<Vec<_>>().into())
    }
}
