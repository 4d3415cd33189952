//! The operator token: whoever presents it administers from elsewhere. There is none unless the settings say where it is.
//!
//! One is current. Another takes its place without a restart, and the one before is taken for a while longer, so that there is
//! no moment at which a program's is wrong. Only digests are in memory: a token has 256 random bits, which no digest gives away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::base::clock::Timestamp;
use crate::model::principal::TokenMark;

/// What a token begins with; 64 lowercase hexadecimal digits follow.
pub const PREFIX: &str = "cmo_";

/// Most that are taken at one time: the current one and those before it.
const MAX_TAKEN: usize = 4;

/// Fewest different bytes of 32. Of random ones there are fewer about once in 10^24 times.
const DIFFERENT_BYTES: usize = 12;

/// A token as its holder presents it, or as its file has it: its digest.
pub struct OperatorToken([u8; 32]);

/// The text is not an operator token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not an operator token: {PREFIX} and 64 random lowercase hexadecimal digits; make one with `(printf cmo_; openssl rand -hex 32)`"
)]
pub struct NotAToken;

/// Who presented which, and how long that holds.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Which token, for the record.
    pub mark: TokenMark,
    /// Cancelled when it is not taken any more.
    pub over: Arc<CancellationToken>,
    /// Until when it is taken, where another is in its place.
    pub until: Option<Timestamp>,
}

/// The tokens that are taken, the current one last.
#[derive(Debug, Default)]
pub struct OperatorTokens(Mutex<Vec<Known>>);

struct Known {
    digest: [u8; 32],
    taken: Taken,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.taken.fmt(f)
    }
}

impl OperatorToken {
    /// Reads a token; a line end after it does not count.
    ///
    /// # Errors
    /// [`NotAToken`], which does not repeat it.
    pub fn parse(text: &str) -> Result<Self, NotAToken> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let digits = text.strip_prefix(PREFIX).ok_or(NotAToken)?;
        let bytes: zeroize::Zeroizing<[u8; 32]> =
            super::unhex(digits).map_err(|_| NotAToken)?.into();
        let mut seen = [false; 256];
        for byte in *bytes {
            if let Some(seen) = seen.get_mut(usize::from(byte)) {
                *seen = true;
            }
        }
        if seen.iter().filter(|seen| **seen).count() < DIFFERENT_BYTES {
            return Err(NotAToken);
        }
        Ok(Self(super::digest(bytes.as_ref())))
    }

    fn mark(&self) -> TokenMark {
        let mut mark = [0; 8];
        for (to, from) in mark.iter_mut().zip(self.0) {
            *to = from;
        }
        TokenMark(mark)
    }
}

impl OperatorTokens {
    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a token in the place of the one before, which is taken for `overlap` longer; `None`: from now on nobody administers
    /// from elsewhere. The one that is there already changes nothing.
    pub fn replace(&self, token: Option<&OperatorToken>, now: Timestamp, overlap: Duration) {
        if !self.differs(token) {
            return;
        }
        let mut known = self.lock();
        let Some(token) = token else {
            known.drain(..).for_each(|known| known.taken.over.cancel());
            return;
        };
        // One that comes back is current again, with what it opened.
        let back = known.iter().position(|known| known.digest == token.0);
        let mut new = back.map_or_else(
            || Known {
                digest: token.0,
                taken: Taken {
                    mark: token.mark(),
                    over: Arc::default(),
                    until: None,
                },
            },
            |at| known.remove(at),
        );
        new.taken.until = None;
        if let Some(last) = known.last_mut() {
            last.taken.until = Some(now.after(overlap));
        }
        known.push(new);
        while known.len() > MAX_TAKEN {
            known.remove(0).taken.over.cancel();
        }
        drop(known);
        self.sweep(now);
    }

    /// Whether this one would change anything.
    #[must_use]
    pub fn differs(&self, token: Option<&OperatorToken>) -> bool {
        self.lock().last().map(|last| last.digest) != token.map(|token| token.0)
    }

    /// Which token this is, if it is taken now; takes the same time for every token of the same length.
    #[must_use]
    pub fn find(&self, presented: &str, now: Timestamp) -> Option<Taken> {
        let presented = OperatorToken::parse(presented).ok()?;
        let known = self.lock();
        let mut found = None;
        for known in known.iter() {
            let is_same: bool = known.digest.ct_eq(&presented.0).into();
            if is_same && known.taken.until.is_none_or(|until| now < until) {
                found = Some(known.taken.clone());
            }
        }
        found
    }

    /// Forgets those whose time is over, and ends what they opened.
    pub fn sweep(&self, now: Timestamp) {
        self.lock().retain(|known| {
            let stays = known.taken.until.is_none_or(|until| now < until);
            if !stays {
                known.taken.over.cancel();
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    /// Any token, but always the same one.
    fn text(seed: u8) -> String {
        let bytes = crate::identity::digest(&[seed]);
        format!("{PREFIX}{}", crate::identity::hex(&bytes))
    }

    fn token(seed: u8) -> OperatorToken {
        OperatorToken::parse(&text(seed)).unwrap()
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_repeated() {
        let good = text(1);
        let digits = &good[4..];
        assert!(OperatorToken::parse(&format!("{good}\n")).is_ok());
        assert!(OperatorToken::parse(&format!("{good}\r\n")).is_ok());
        for bad in [
            String::new(),
            "\n".to_owned(),
            digits.to_owned(),
            format!("cmk_{digits}"),
            format!("CMO_{digits}"),
            format!(" {good}"),
            format!("{good}\n\n"),
            format!("{good} "),
            format!("{good}0"),
            good[..good.len() - 1].to_owned(),
            good.to_uppercase(),
            format!("{PREFIX}{}", digits.to_uppercase()),
            format!("{PREFIX}{}", "0".repeat(64)),
            format!("{PREFIX}{}", "0123456789abcdef".repeat(4)),
            format!("{PREFIX}{}", "é".repeat(32)),
        ] {
            let refused = OperatorToken::parse(&bad).err().unwrap();
            assert!(!refused.to_string().contains(digits), "{bad}");
        }
    }

    #[test]
    fn there_is_none_until_there_is_one_and_none_afterwards() {
        let tokens = OperatorTokens::default();
        assert!(tokens.find(&text(1), at(0)).is_none());
        assert!(tokens.differs(Some(&token(1))) && !tokens.differs(None));
        tokens.replace(Some(&token(1)), at(0), HOUR);
        assert!(!tokens.differs(Some(&token(1))) && tokens.differs(None));
        tokens.replace(Some(&token(1)), at(1), HOUR);
        let found = tokens.find(&text(1), at(1)).unwrap();
        assert_eq!(found.until, None);
        assert!(tokens.find(&text(2), at(1)).is_none());
        tokens.replace(None, at(2), HOUR);
        assert!(found.over.is_cancelled());
        assert!(tokens.find(&text(1), at(2)).is_none());
    }

    #[test]
    fn the_one_before_is_taken_a_while_longer_and_not_at_all_after_that() {
        let tokens = OperatorTokens::default();
        tokens.replace(Some(&token(1)), at(0), HOUR);
        let old = tokens.find(&text(1), at(0)).unwrap();
        tokens.replace(Some(&token(2)), at(100), HOUR);
        let (before, now) = (
            tokens.find(&text(1), at(3699)).unwrap(),
            tokens.find(&text(2), at(3699)).unwrap(),
        );
        assert_eq!((before.until, now.until), (Some(at(3700)), None));
        assert_ne!(before.mark, now.mark);
        // The instant itself is over, whether somebody swept or not; what it opened ends with the sweep.
        assert!(tokens.find(&text(1), at(3700)).is_none());
        assert!(!old.over.is_cancelled());
        tokens.sweep(at(3700));
        assert!(old.over.is_cancelled() && !now.over.is_cancelled());
        assert!(tokens.find(&text(2), at(9_000_000)).is_some());
    }

    #[test]
    fn without_an_overlap_the_one_before_is_over_at_once() {
        let tokens = OperatorTokens::default();
        tokens.replace(Some(&token(1)), at(0), HOUR);
        let old = tokens.find(&text(1), at(0)).unwrap();
        tokens.replace(Some(&token(2)), at(5), Duration::ZERO);
        assert!(old.over.is_cancelled());
        assert!(tokens.find(&text(1), at(5)).is_none());
    }

    #[test]
    fn one_that_comes_back_is_current_and_there_are_never_many() {
        let tokens = OperatorTokens::default();
        for seed in [1, 2, 1] {
            tokens.replace(Some(&token(seed)), at(0), HOUR);
        }
        assert_eq!(tokens.find(&text(1), at(0)).unwrap().until, None);
        assert_eq!(tokens.find(&text(2), at(0)).unwrap().until, Some(at(3600)));
        for seed in 3..6 {
            tokens.replace(Some(&token(seed)), at(0), HOUR);
        }
        let taken = (1..6).filter(|&seed| tokens.find(&text(seed), at(0)).is_some());
        assert_eq!(taken.collect::<Vec<_>>(), [1, 3, 4, 5]);
    }
}
