//! Tokens that were verified, by the SHA-256 of their text, so that a signature is checked once and not with every request.
//!
//! An entry is good for the very keys that verified it, and within the token's own time. Nothing of the token is kept.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::claims::Accepted;
use crate::base::clock::Timestamp;

/// Most tokens that are remembered; the oldest goes. About a kilobyte each.
const MAX_TOKENS: usize = 4096;

/// Verified tokens.
#[derive(Default)]
pub(super) struct Cache(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    known: HashMap<[u8; 32], Entry>,
    order: VecDeque<[u8; 32]>,
}

#[derive(Clone)]
struct Entry {
    issuer: usize,
    generation: u64,
    accepted: Accepted,
}

impl Cache {
    /// Whose token this is and until when, while the very keys that verified it are current.
    pub(super) fn get(
        &self,
        digest: &[u8; 32],
        now: Timestamp,
        is_current: impl FnOnce(usize, u64) -> bool,
    ) -> Option<Accepted> {
        let entry = {
            let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            entries.known.get(digest)?.clone()
        };
        let in_time = entry.accepted.from <= now && now < entry.accepted.until;
        (in_time && is_current(entry.issuer, entry.generation)).then_some(entry.accepted)
    }

    /// Remembers a token.
    pub(super) fn put(&self, digest: [u8; 32], issuer: usize, generation: u64, accepted: Accepted) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            issuer,
            generation,
            accepted,
        };
        if entries.known.insert(digest, entry).is_some() {
            return;
        }
        entries.order.push_back(digest);
        if entries.order.len() > MAX_TOKENS
            && let Some(oldest) = entries.order.pop_front()
        {
            entries.known.remove(&oldest);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let entries = self.0.lock().unwrap();
        assert_eq!(entries.known.len(), entries.order.len());
        entries.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::KeyId;
    use crate::model::principal::Client;

    #[test]
    fn it_holds_so_many_and_each_within_its_time() {
        let cache = Cache::default();
        let at = Timestamp::from_millis;
        let accepted = Accepted {
            client: Client::member(KeyId::from_bytes([1; 16]), "acme".parse().unwrap()),
            from: at(10),
            until: at(20),
        };
        let digest = |n: usize| crate::identity::digest(&n.to_be_bytes());
        for n in 0..=MAX_TOKENS {
            cache.put(digest(n), 3, 7, accepted.clone());
            cache.put(digest(n), 3, 7, accepted.clone());
        }
        assert_eq!(cache.len(), MAX_TOKENS);
        let get = |n, now| {
            cache.get(&digest(n), at(now), |issuer, generation| {
                (issuer, generation) == (3, 7)
            })
        };
        assert_eq!(get(0, 15), None, "the oldest went");
        assert!(get(1, 10).is_some() && get(MAX_TOKENS, 19).is_some());
        assert!(get(1, 9).is_none() && get(1, 20).is_none());
        assert!(cache.get(&digest(1), at(15), |_, _| false).is_none());
    }
}
