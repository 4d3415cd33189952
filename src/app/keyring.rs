//! The keys that were presented lately, kept in memory: how each opens what it opens, and when it was last used.
//!
//! A key that is revoked is gone from here before its revocation is answered, and what was read from the store before that is
//! not remembered after it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::base::clock::Timestamp;
use crate::base::id::KeyId;
use crate::model::key::ApiKey;

/// Most keys in memory. Past that those that were used longest ago go, but not those that have something open.
const MAX_KNOWN: usize = 4096;

/// The keys that were presented lately.
#[derive(Debug, Default)]
pub struct KeyRing(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    keys: HashMap<KeyId, Entry>,
    /// Grows with each revocation: what was read from the store before one is not remembered after it.
    revocations: u64,
    /// Counts uses, to tell which were used longest ago.
    uses: u64,
    /// Uses of those that were forgotten which are not written down yet.
    unwritten: BTreeMap<KeyId, Timestamp>,
}

#[derive(Debug)]
struct Entry {
    key: Arc<ApiKey>,
    revoked: Arc<CancellationToken>,
    used: u64,
    /// When it was last used, where that is not written down yet.
    unwritten: Option<Timestamp>,
}

impl KeyRing {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key, if it is known, else how many revocations there have been.
    pub(super) fn find(&self, id: KeyId) -> Result<(Arc<ApiKey>, Arc<CancellationToken>), u64> {
        let mut known = self.lock();
        known.uses += 1;
        let (uses, revocations) = (known.uses, known.revocations);
        let entry = known.keys.get_mut(&id).ok_or(revocations)?;
        entry.used = uses;
        Ok((Arc::clone(&entry.key), Arc::clone(&entry.revoked)))
    }

    /// Remembers what was read; `None` when something was revoked meanwhile, and it has to be read again.
    pub(super) fn remember(
        &self,
        key: Arc<ApiKey>,
        revocations: u64,
    ) -> Option<Arc<CancellationToken>> {
        let mut known = self.lock();
        if known.revocations != revocations {
            return None;
        }
        if known.keys.len() >= MAX_KNOWN && !known.keys.contains_key(&key.id) {
            // Half of them at once, so that the search for the oldest is paid for by many.
            let mut ages: Vec<u64> = known.keys.values().map(|entry| entry.used).collect();
            let middle = ages.len() / 2;
            let (_, oldest, _) = ages.select_nth_unstable(middle);
            let oldest = *oldest;
            let Known {
                keys, unwritten, ..
            } = &mut *known;
            keys.retain(|id, entry| {
                // What has opened streams must be found when it is revoked.
                let stays = entry.used >= oldest || Arc::strong_count(&entry.revoked) > 1;
                if !stays && let Some(at) = entry.unwritten {
                    unwritten.insert(*id, at);
                }
                stays
            });
        }
        let used = known.uses;
        let entry = known.keys.entry(key.id).or_insert_with(|| Entry {
            key,
            revoked: Arc::default(),
            used,
            unwritten: None,
        });
        Some(Arc::clone(&entry.revoked))
    }

    /// Forgets a key and ends what it opened.
    pub(super) fn revoke(&self, id: KeyId) {
        let mut known = self.lock();
        known.revocations += 1;
        known.unwritten.remove(&id);
        if let Some(entry) = known.keys.remove(&id) {
            entry.revoked.cancel();
        }
    }

    /// Notes that it was used, unless it is not known any more.
    pub(super) fn used(&self, id: KeyId, now: Timestamp) {
        if let Some(entry) = self.lock().keys.get_mut(&id) {
            entry.unwritten = Some(now);
        }
    }

    /// When it was last used, where that is not written down yet.
    pub(super) fn unwritten(&self, id: KeyId) -> Option<Timestamp> {
        let known = self.lock();
        let entry = known.keys.get(&id).and_then(|entry| entry.unwritten);
        entry.or_else(|| known.unwritten.get(&id).copied())
    }

    /// All that is not written down yet; from now on it is.
    pub(super) fn take_uses(&self) -> BTreeMap<KeyId, Timestamp> {
        let mut known = self.lock();
        let mut uses = std::mem::take(&mut known.unwritten);
        for (id, entry) in &mut known.keys {
            uses.extend(entry.unwritten.take().map(|at| (*id, at)));
        }
        uses
    }

    /// Takes back uses that could not be written down.
    pub(super) fn put_back(&self, uses: BTreeMap<KeyId, Timestamp>) {
        let mut known = self.lock();
        for (id, at) in uses {
            let noted = known.unwritten.entry(id).or_insert(at);
            *noted = at.max(*noted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::grant::Grant;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn id(number: usize) -> KeyId {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
        KeyId::from_bytes(bytes)
    }

    fn key(number: usize) -> Arc<ApiKey> {
        Arc::new(ApiKey {
            id: id(number),
            name: "k".parse().unwrap(),
            team: "default".parse().unwrap(),
            grant: Grant::default(),
            session: None,
            digest: [0; 32],
            created_at: at(0),
            created_by: "uid:0".into(),
            expires_at: None,
            revoked: None,
            last_used_at: None,
        })
    }

    /// Presents it for the first time.
    fn present(ring: &KeyRing, number: usize) -> Arc<CancellationToken> {
        let revocations = ring.find(id(number)).unwrap_err();
        ring.remember(key(number), revocations).unwrap()
    }

    #[test]
    fn what_was_read_before_a_revocation_is_not_remembered_after_it() {
        let ring = KeyRing::default();
        let revocations = ring.find(id(1)).unwrap_err();
        ring.revoke(id(1));
        assert!(ring.remember(key(1), revocations).is_none());
        assert!(ring.find(id(1)).is_err());
    }

    #[test]
    fn a_revocation_ends_what_was_opened_however_often_it_was_presented() {
        let ring = KeyRing::default();
        let first = present(&ring, 1);
        let (_, second) = ring.find(id(1)).unwrap();
        let other = present(&ring, 2);
        ring.used(id(1), at(5));
        ring.revoke(id(1));
        assert!(first.is_cancelled() && second.is_cancelled());
        assert!(!other.is_cancelled());
        assert!(ring.find(id(1)).is_err());
        // Nor is there anything left to write of it.
        assert_eq!(ring.take_uses(), BTreeMap::new());
    }

    #[test]
    fn those_that_go_are_the_oldest_and_those_that_stay_have_something_open() {
        let ring = KeyRing::default();
        let open = present(&ring, 0);
        for number in 1..MAX_KNOWN {
            drop(present(&ring, number));
        }
        ring.used(id(1), at(7));
        // The second is old too, and was used just now.
        assert!(ring.find(id(2)).is_ok());
        drop(present(&ring, MAX_KNOWN));
        assert!(ring.lock().keys.len() <= MAX_KNOWN / 2 + 2);
        for (number, is_known) in [(0, true), (1, false), (2, true), (MAX_KNOWN, true)] {
            assert_eq!(ring.find(id(number)).is_ok(), is_known, "{number}");
        }
        // What went is still said to have been used, and what stayed open is still ended.
        assert_eq!(ring.unwritten(id(1)), Some(at(7)));
        assert_eq!(ring.take_uses(), [(id(1), at(7))].into());
        ring.revoke(id(0));
        assert!(open.is_cancelled());
    }

    #[test]
    fn uses_that_could_not_be_written_are_written_later() {
        let ring = KeyRing::default();
        drop(present(&ring, 1));
        ring.used(id(1), at(5));
        let uses = ring.take_uses();
        assert_eq!(uses, [(id(1), at(5))].into());
        assert_eq!(ring.unwritten(id(1)), None);
        ring.used(id(1), at(9));
        ring.put_back(uses);
        assert_eq!(ring.unwritten(id(1)), Some(at(9)));
        assert_eq!(ring.take_uses(), [(id(1), at(9))].into());
    }
}
