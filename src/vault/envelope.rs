//! Envelopes: each value of a credential is sealed under a random key of its own, and that key under the root key.
//!
//! Both seals are bound to team, name, version and the form of the envelope: what was put in another's place does not open. A new
//! root key needs no value: only data keys are opened and sealed anew.

use zeroize::Zeroizing;

use super::root::{KeyBytes, Root, fill, seal, unseal};
use super::{ROOT_KEY_BYTES, Vault, VaultError};
use crate::model::credential::{CredentialPlace, CredentialValue, SealedValue};

/// What is authenticated of a data key, and of a value. The number is that of the envelope's form.
const DATA_KEY: &[u8] = b"casemate credential key 1\0";
const VALUE: &[u8] = b"casemate credential value 1\0";

/// Why a value cannot be had. Both are rare, and say what to do.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is under a key of another generation than the vault has. Read it again: the key was changed meanwhile.
    #[error("the credential is sealed under generation {0} of the vault's key")]
    OtherGeneration(u64),
    /// It was damaged or put here from another place.
    #[error(
        "the credential {0} does not open: its row was damaged or comes from another place; set its value anew"
    )]
    Damaged(String),
    /// It cannot be sealed.
    #[error(transparent)]
    Vault(VaultError),
}

impl Vault {
    /// Seals a value for its place, under the root key of this generation.
    ///
    /// # Errors
    /// [`EnvelopeError::OtherGeneration`] when the vault has no such key, [`EnvelopeError::Vault`].
    pub fn seal_value(
        &self,
        generation: u64,
        place: &CredentialPlace,
        value: &CredentialValue,
    ) -> Result<SealedValue, EnvelopeError> {
        let root = self.root(generation)?;
        let mut key = Zeroizing::new([0; ROOT_KEY_BYTES]);
        fill(key.as_mut_slice()).map_err(EnvelopeError::Vault)?;
        let sealed = seal(&key, &context(VALUE, place), value.expose());
        let data_key = root.seal(&context(DATA_KEY, place), key.as_slice());
        Ok(SealedValue {
            generation,
            data_key: data_key.map_err(EnvelopeError::Vault)?,
            value: sealed.map_err(EnvelopeError::Vault)?,
        })
    }

    /// Opens the value of this place.
    ///
    /// # Errors
    /// [`EnvelopeError::OtherGeneration`], [`EnvelopeError::Damaged`].
    pub fn open_value(
        &self,
        place: &CredentialPlace,
        sealed: &SealedValue,
    ) -> Result<CredentialValue, EnvelopeError> {
        let root = self.root(sealed.generation)?;
        let damaged = || EnvelopeError::Damaged(place.to_string());
        let key = open_data_key(&root, place, &sealed.data_key).ok_or_else(damaged)?;
        let mut text = unseal(&key, &context(VALUE, place), &sealed.value).ok_or_else(damaged)?;
        CredentialValue::new(std::mem::take(&mut *text)).map_err(|_| damaged())
    }
}

/// Seals a data key of this place anew: `None` when it does not open.
pub(super) fn rewrap(
    from: &Root,
    to: &Root,
    place: &CredentialPlace,
    data_key: &[u8],
) -> Option<Result<Vec<u8>, VaultError>> {
    let key = open_data_key(from, place, data_key)?;
    Some(to.seal(&context(DATA_KEY, place), key.as_slice()))
}

fn open_data_key(
    root: &Root,
    place: &CredentialPlace,
    data_key: &[u8],
) -> Option<Zeroizing<KeyBytes>> {
    let bytes = root.unseal(&context(DATA_KEY, place), data_key)?;
    let key = KeyBytes::try_from(bytes.as_slice()).ok()?;
    Some(Zeroizing::new(key))
}

/// What a seal of this place is bound to. Names have fewer than 256 bytes, so that no two places read the same.
fn context(what: &[u8], place: &CredentialPlace) -> Vec<u8> {
    let mut context = what.to_vec();
    for name in [&place.team, &place.name] {
        let length = u8::try_from(name.as_str().len()).unwrap_or(u8::MAX);
        context.push(length);
        context.extend_from_slice(name.as_str().as_bytes());
    }
    context.extend_from_slice(&place.version.to_be_bytes());
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(team: &str, name: &str, version: u32) -> CredentialPlace {
        CredentialPlace {
            team: team.parse().unwrap(),
            name: name.parse().unwrap(),
            version,
        }
    }

    fn value(text: &str) -> CredentialValue {
        CredentialValue::new(text.into()).unwrap()
    }

    #[test]
    fn a_value_opens_in_its_own_place_alone() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(None, directory.path(), false).unwrap();
        let own = place("red", "db", 2);
        let sealed = vault.seal_value(1, &own, &value("open sesame")).unwrap();
        let whole = [sealed.data_key.as_slice(), &sealed.value].concat();
        assert!(!whole.windows(11).any(|window| window == b"open sesame"));
        let opened = vault.open_value(&own, &sealed).unwrap();
        assert_eq!(opened.expose(), b"open sesame");
        let others = [
            place("blue", "db", 2),
            place("red", "dc", 2),
            place("red", "db", 1),
            place("red", "db", 3),
            // What is left of the border cannot be taken for what is right of it.
            place("re", "ddb", 2),
            place("redd", "b", 2),
        ];
        for other in others {
            let error = vault.open_value(&other, &sealed).unwrap_err();
            assert!(matches!(error, EnvelopeError::Damaged(_)), "{other}");
            // Nor does the value under a data key of that place.
            let theirs = vault.seal_value(1, &other, &value("theirs")).unwrap();
            let mixed = SealedValue {
                data_key: theirs.data_key,
                ..sealed.clone()
            };
            assert!(vault.open_value(&other, &mixed).is_err(), "{other}");
        }
    }

    #[test]
    fn no_byte_of_an_envelope_can_be_another() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(None, directory.path(), false).unwrap();
        let own = place("red", "db", 1);
        let sealed = vault.seal_value(1, &own, &value("x")).unwrap();
        for at in 0..sealed.data_key.len() {
            let mut changed = sealed.clone();
            changed.data_key[at] ^= 1;
            assert!(vault.open_value(&own, &changed).is_err(), "{at}");
        }
        for at in 0..sealed.value.len() {
            let mut changed = sealed.clone();
            changed.value[at] ^= 1;
            assert!(vault.open_value(&own, &changed).is_err(), "{at}");
        }
        for cut in 0..sealed.value.len() {
            let mut short = sealed.clone();
            short.value.truncate(cut);
            assert!(vault.open_value(&own, &short).is_err(), "{cut}");
        }
    }

    #[test]
    fn the_same_value_is_never_sealed_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(None, directory.path(), false).unwrap();
        let own = place("red", "db", 1);
        let one = vault.seal_value(1, &own, &value("x")).unwrap();
        let two = vault.seal_value(1, &own, &value("x")).unwrap();
        assert!(one.data_key != two.data_key && one.value != two.value);
        // Each has a key of its own: the other's does not open it.
        let mixed = SealedValue {
            data_key: one.data_key,
            ..two
        };
        assert!(vault.open_value(&own, &mixed).is_err());
    }

    #[test]
    fn another_generation_is_no_damage() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(None, directory.path(), false).unwrap();
        let own = place("red", "db", 1);
        let error = vault.seal_value(2, &own, &value("x")).unwrap_err();
        assert!(matches!(error, EnvelopeError::OtherGeneration(2)));
    }
}
