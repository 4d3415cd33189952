//! A ring of bytes with absolute offsets: the latest part of one output.
//!
//! It knows nothing of readers or budgets. Offsets count from the output's first byte and never come back; memory is what
//! [`Ring::resize`] was told, and nothing before that.

/// The bytes `from..to` of an output.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// The byte at offset `n` is at `n` modulo its length.
    bytes: Vec<u8>,
    from: u64,
    to: u64,
}

impl Ring {
    /// Bytes of memory that it has.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Offset of the oldest byte that is there.
    pub(crate) fn from(&self) -> u64 {
        self.from
    }

    /// Offset after the latest byte: how many there ever were.
    pub(crate) fn to(&self) -> u64 {
        self.to
    }

    /// Bytes that are there.
    pub(crate) fn len(&self) -> usize {
        // Never more than its memory.
        usize::try_from(self.to - self.from).unwrap_or(usize::MAX)
    }

    /// Takes another amount of memory; when that is less than what is there, the oldest goes.
    pub(crate) fn resize(&mut self, capacity: usize) {
        let kept = self.len().min(capacity);
        let from = self.to - u64::try_from(kept).unwrap_or(0);
        let mut next = Self {
            bytes: vec![0; capacity],
            from,
            to: from,
        };
        let (first, second) = self.slices(from, kept);
        for part in [first, second] {
            next.push(part);
        }
        *self = next;
    }

    /// Adds bytes that have place.
    fn push(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let space = self.space(data.len());
            let (now, later) = data.split_at(space.len().min(data.len()));
            if now.is_empty() {
                return;
            }
            space.copy_from_slice(now);
            self.filled(now.len());
            data = later;
        }
    }

    /// Where the next bytes go, at most `max` of them: what they overwrite is the oldest that is there. May be shorter
    /// at the end of the memory, never empty otherwise.
    pub(crate) fn space(&mut self, max: usize) -> &mut [u8] {
        let at = self.place(self.to);
        let end = at.saturating_add(max).min(self.bytes.len());
        self.bytes.get_mut(at..end).unwrap_or_default()
    }

    /// Says that so many bytes were put into [`Self::space`].
    pub(crate) fn filled(&mut self, count: usize) {
        self.to += u64::try_from(count).unwrap_or(0);
        let capacity = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        self.from = self.from.max(self.to.saturating_sub(capacity));
    }

    /// The bytes from `offset` on, at most `max`; none when they are not there.
    pub(crate) fn copy(&self, offset: u64, max: usize) -> Vec<u8> {
        if offset < self.from || offset >= self.to {
            return Vec::new();
        }
        let there = usize::try_from(self.to - offset).unwrap_or(usize::MAX);
        let (first, second) = self.slices(offset, there.min(max));
        let mut copy = Vec::with_capacity(first.len() + second.len());
        copy.extend_from_slice(first);
        copy.extend_from_slice(second);
        copy
    }

    /// Bytes that are there, in the one or two pieces in which they lie.
    fn slices(&self, offset: u64, length: usize) -> (&[u8], &[u8]) {
        let at = self.place(offset);
        let end = at.saturating_add(length).min(self.bytes.len());
        let first = self.bytes.get(at..end).unwrap_or_default();
        let second = self.bytes.get(..length - first.len());
        (first, second.unwrap_or_default())
    }

    fn place(&self, offset: u64) -> usize {
        let capacity = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        // The remainder is below a length.
        usize::try_from(offset.checked_rem(capacity).unwrap_or(0)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ring_without_memory_holds_nothing_and_does_not_mind() {
        let mut ring = Ring::default();
        assert!(ring.space(10).is_empty() && ring.copy(0, 10).is_empty());
        assert_eq!((ring.capacity(), ring.len(), ring.to()), (0, 0, 0));
        ring.resize(0);
        assert_eq!(ring.capacity(), 0);
    }

    #[test]
    fn bytes_that_were_not_written_are_not_given_out() {
        let mut ring = Ring::default();
        ring.resize(8);
        ring.push(b"abc");
        assert_eq!(ring.copy(1, 100), b"bc");
        assert!(ring.copy(3, 1).is_empty() && ring.copy(u64::MAX, 1).is_empty());
        ring.push(b"0123456789");
        assert_eq!((ring.from(), ring.to()), (5, 13));
        assert!(ring.copy(4, 1).is_empty());
        assert_eq!(ring.copy(5, 100), b"23456789");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write { asked: usize, done: usize },
        Resize(usize),
        Read { back: u64, max: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_usize..40, 0_usize..40).prop_map(|(asked, done)| Step::Write { asked, done }),
            1 => (0_usize..50).prop_map(Step::Resize),
            4 => (0_u64..60, 0_usize..60).prop_map(|(back, max)| Step::Read { back, max }),
        ]
    }

    proptest! {
        /// The model is every byte there ever was.
        #[test]
        fn it_holds_the_latest_bytes_whatever_is_done_to_it(steps in proptest::collection::vec(step(), 0..200)) {
            let mut ring = Ring::default();
            let mut all: Vec<u8> = Vec::new();
            let mut oldest = 0;
            for step in steps {
                match step {
                    Step::Write { asked, done } => {
                        let next = u8::try_from(all.len() % 251).unwrap();
                        let space = ring.space(asked);
                        prop_assert!(space.len() <= asked);
                        let count = done.min(space.len());
                        for (byte, value) in space.iter_mut().zip((0..count).map(|n| next.wrapping_add(u8::try_from(n).unwrap()))) {
                            *byte = value;
                            all.push(value);
                        }
                        ring.filled(count);
                        oldest = oldest.max(all.len().saturating_sub(ring.capacity()));
                    }
                    Step::Resize(capacity) => {
                        ring.resize(capacity);
                        prop_assert_eq!(ring.capacity(), capacity);
                        oldest = oldest.max(all.len().saturating_sub(capacity));
                    }
                    Step::Read { back, max } => {
                        let offset = ring.to().saturating_sub(back);
                        let at = usize::try_from(offset).unwrap();
                        let expected = if at < oldest { &[][..] } else { &all[at..all.len().min(at + max)] };
                        prop_assert_eq!(ring.copy(offset, max), expected);
                    }
                }
                prop_assert_eq!(ring.to(), u64::try_from(all.len()).unwrap());
                prop_assert_eq!(ring.from(), u64::try_from(oldest).unwrap());
                prop_assert!(ring.len() <= ring.capacity());
            }
        }
    }
}
