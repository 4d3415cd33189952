//! How often: buckets of tokens, one for each that is told apart, and a bounded number of those.
//!
//! A bucket is one moment: when it will be full again (the generic cell rate algorithm, ITU-T I.371). What is taken moves that moment on, time alone brings it
//! nearer. So a bucket that is full is nothing that must be kept, and only such are forgotten: nobody gets a new one by making others be forgotten.
//!
//! Time is an argument: nanoseconds since some moment. When it goes back it stands still here, and gives nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

const SECOND_NS: u64 = 1_000_000_000;

/// Least time between two looks for what may be forgotten.
const SWEEP_NS: u64 = SECOND_NS;

/// So much in so much time, and so much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time in which one token comes back; never zero.
    interval_ns: u64,
    /// Tokens of a full bucket; never zero.
    burst: u64,
}

impl Rate {
    /// So many in so much time, at most `burst` at once and at least one. `None` when there is no bound: for zero.
    #[must_use]
    pub fn new(count: u32, per: Duration, burst: u32) -> Option<Self> {
        if count == 0 {
            return None;
        }
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        // Rounded up: never more than was said.
        let interval_ns = per.div_ceil(u64::from(count)).max(1);
        Some(Self {
            interval_ns,
            burst: u64::from(burst.max(1)),
        })
    }

    const fn whole_ns(self) -> u64 {
        self.interval_ns.saturating_mul(self.burst)
    }
}

/// What is left of one's tokens. A new one is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at_ns: u64,
}

impl Bucket {
    /// Takes a token.
    ///
    /// # Errors
    /// How long until there is one; nothing was taken.
    pub fn take(&mut self, rate: Rate, now_ns: u64) -> Result<(), Duration> {
        self.look(rate, now_ns)?;
        self.full_at_ns = self.after(rate, now_ns);
        Ok(())
    }

    /// Whether there is a token, which is left where it is.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn look(&self, rate: Rate, now_ns: u64) -> Result<(), Duration> {
        let needed = self.after(rate, now_ns).saturating_sub(now_ns);
        match needed.checked_sub(rate.whole_ns()) {
            None | Some(0) => Ok(()),
            Some(wait) => Err(Duration::from_nanos(wait)),
        }
    }

    /// Whether nothing is known of it that a new one would not say.
    #[must_use]
    pub const fn is_full(&self, now_ns: u64) -> bool {
        self.full_at_ns <= now_ns
    }

    const fn after(self, rate: Rate, now_ns: u64) -> u64 {
        let from = if self.full_at_ns > now_ns {
            self.full_at_ns
        } else {
            now_ns
        };
        from.saturating_add(rate.interval_ns)
    }
}

/// A bounded number of buckets of one rate. Those for whom there is no room share one.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    max: usize,
    held: HashMap<K, Bucket>,
    others: Bucket,
    latest_ns: u64,
    swept_ns: Option<u64>,
}

impl<K: Eq + Hash> Buckets<K> {
    /// At most `max` at one time.
    #[must_use]
    pub fn new(rate: Rate, max: usize) -> Self {
        Self {
            rate,
            max,
            held: HashMap::new(),
            others: Bucket::default(),
            latest_ns: 0,
            swept_ns: None,
        }
    }

    /// Takes a token of this one's.
    ///
    /// # Errors
    /// How long until there is one; nothing was taken.
    pub fn take(&mut self, key: K, now_ns: u64) -> Result<(), Duration> {
        let (rate, now_ns) = (self.rate, self.time(now_ns));
        if let Some(bucket) = self.held.get_mut(&key) {
            return bucket.take(rate, now_ns);
        }
        if self.held.len() >= self.max {
            self.sweep(now_ns);
        }
        if self.held.len() >= self.max {
            return self.others.take(rate, now_ns);
        }
        self.held.entry(key).or_default().take(rate, now_ns)
    }

    /// Whether this one has a token, which is left where it is.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn look(&mut self, key: &K, now_ns: u64) -> Result<(), Duration> {
        let now_ns = self.time(now_ns);
        match self.held.get(key) {
            Some(bucket) => bucket.look(self.rate, now_ns),
            None if self.held.len() < self.max => Ok(()),
            None => self.others.look(self.rate, now_ns),
        }
    }

    /// Those that are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Time as it is known here, which only goes on.
    fn time(&mut self, now_ns: u64) -> u64 {
        self.latest_ns = self.latest_ns.max(now_ns);
        self.latest_ns
    }

    /// Forgets those that are full, now and then: it looks at all of them.
    fn sweep(&mut self, now_ns: u64) {
        let is_due = self
            .swept_ns
            .is_none_or(|swept| now_ns.saturating_sub(swept) >= SWEEP_NS);
        if is_due {
            self.swept_ns = Some(now_ns);
            self.held.retain(|_, bucket| !bucket.is_full(now_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(count: u32, burst: u32) -> Rate {
        Rate::new(count, Duration::from_secs(1), burst).unwrap()
    }

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let mut bucket = Bucket::default();
        let rate = rate(2, 3);
        for _ in 0..3 {
            assert_eq!(bucket.take(rate, 0), Ok(()));
        }
        assert_eq!(bucket.take(rate, 0), Err(Duration::from_millis(500)));
        // Asking costs nothing.
        assert_eq!(bucket.take(rate, 0), Err(Duration::from_millis(500)));
        assert_eq!(
            bucket.look(rate, SECOND_NS / 4),
            Err(Duration::from_millis(250))
        );
        assert_eq!(bucket.take(rate, SECOND_NS / 2), Ok(()));
        assert!(bucket.take(rate, SECOND_NS / 2).is_err());
        assert!(!bucket.is_full(SECOND_NS));
        assert!(bucket.is_full(2 * SECOND_NS));
        assert_eq!(Rate::new(0, Duration::from_secs(1), 5), None, "no bound");
    }

    #[test]
    fn whoever_has_nothing_left_gets_nothing_by_having_others_forgotten() {
        let mut buckets = Buckets::new(rate(1, 2), 4);
        for _ in 0..2 {
            assert!(buckets.take(0, 0).is_ok());
        }
        assert!(buckets.take(0, 0).is_err());
        // Any number of others come, as far apart as they like within the time in which the first is not full again.
        let mut taken = 0;
        for n in 1..10_000_u64 {
            taken += usize::from(buckets.take(n, n * 100_000).is_ok());
            assert!(buckets.look(&0, n * 100_000).is_err());
            assert!(buckets.len() <= 4);
        }
        // Three had buckets of their own, all others one together.
        assert!((3..=6).contains(&taken), "{taken}");
        // When those are full there is room.
        assert!(buckets.take(20_000, 10 * SECOND_NS).is_ok());
        assert!(buckets.take(20_000, 10 * SECOND_NS).is_ok());
        assert!(buckets.take(20_000, 10 * SECOND_NS).is_err());
        assert_eq!(buckets.len(), 1);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_what_time_brings(
            (count, burst) in (1_u32..50, 1_u32..20),
            steps in proptest::collection::vec(0_u64..200_000_000, 1..200),
        ) {
            let rate = rate(count, burst);
            let mut bucket = Bucket::default();
            let (mut now, mut taken) = (0, 0_u64);
            let mut waited_for = None;
            for step in steps {
                now += step;
                // A wait that was told is long enough, and no longer than it must be.
                if let Some(when) = waited_for {
                    prop_assert_eq!(bucket.look(rate, now).is_ok(), now >= when);
                }
                match bucket.take(rate, now) {
                    Ok(()) => {
                        taken += 1;
                        waited_for = None;
                    }
                    Err(wait) => waited_for = Some(now + u64::try_from(wait.as_nanos()).unwrap()),
                }
                let brought = now / rate.interval_ns;
                prop_assert!(taken <= u64::from(burst) + brought, "{} at {}", taken, now);
            }
        }

        #[test]
        fn a_clock_that_goes_back_gives_nothing(
            times in proptest::collection::vec((0_u64..3_000_000_000, 0_u8..3), 1..200),
        ) {
            let mut buckets = Buckets::new(rate(5, 3), 2);
            let (mut latest, mut taken) = (0, 0);
            for (time, key) in times {
                latest = latest.max(time);
                taken += u64::from(buckets.take(key, time).is_ok());
                // Three of their own and the one that is shared.
                prop_assert!(taken <= 4 * (3 + latest / (SECOND_NS / 5)));
            }
        }

        #[test]
        fn one_key_has_no_more_than_its_share_whatever_the_others_and_the_clock_do(
            steps in proptest::collection::vec((0_u64..4_000_000_000, 0_u8..9), 1..300),
        ) {
            let mut buckets = Buckets::new(rate(2, 3), 3);
            // It is there from the beginning.
            let mut taken = u64::from(buckets.take(0, 0).is_ok());
            let mut latest = 0;
            for (time, key) in steps {
                latest = latest.max(time);
                let is_taken = buckets.take(key, time).is_ok();
                taken += u64::from(is_taken && key == 0);
                // Once it was full it may have been forgotten, and then have a share of what is the others'.
                prop_assert!(taken <= 2 * (3 + latest / (SECOND_NS / 2)));
            }
        }
    }
}
