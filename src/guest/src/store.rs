//! What one process says, kept for its readers, and how far each of them is.
//!
//! A pump puts bytes into the rings, any number of readers take copies out, each at its own offsets; whoever was first is
//! a reader like all others. Nothing here grows with a reader's backlog: a ring has its bound, and what then gives way is
//! the process (it waits) or the reader (it loses, and is told how much).

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use casemate_link::limits::{
    FRAME_HEADER_BYTES, MAX_FRAME_PAYLOAD_BYTES, MAX_KEPT_BYTES, MAX_PROCESSES, MAX_STREAMS,
};
use casemate_link::process::{Lost, SlowReader};

use crate::ring::Ring;

/// What a ring begins with.
const SMALLEST: usize = 4096;

/// What a ring may have however little is to be kept: a frame on its way needs room, too.
const TRANSIT: usize = MAX_FRAME_PAYLOAD_BYTES;

/// Bytes that a reader gets at once: two such frames with their headers are exactly one window of a stream. A little more,
/// and every second would wait for the other side's permission with its last few bytes.
const FRAME_BYTES: usize = MAX_FRAME_PAYLOAD_BYTES - FRAME_HEADER_BYTES;

/// Memory that is set aside so that every process that lives or is read can have its smallest rings.
const RESERVE: usize = 2 * SMALLEST * (MAX_PROCESSES + MAX_STREAMS as usize);

/// One of the two outputs. All that a terminal says is standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Stdout,
    Stderr,
}

/// Something of each output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pair<T> {
    pub(crate) stdout: T,
    pub(crate) stderr: T,
}

impl<T> Pair<T> {
    fn of(&self, which: Which) -> &T {
        match which {
            Which::Stdout => &self.stdout,
            Which::Stderr => &self.stderr,
        }
    }

    fn of_mut(&mut self, which: Which) -> &mut T {
        match which {
            Which::Stdout => &mut self.stdout,
            Which::Stderr => &mut self.stderr,
        }
    }
}

/// The memory of all rings of the guest, at most [`MAX_KEPT_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct Memory {
    used: Cell<usize>,
}

impl Memory {
    /// Bytes that a ring could still grow by.
    pub(crate) fn free(&self) -> usize {
        (MAX_KEPT_BYTES - RESERVE).saturating_sub(self.used.get())
    }

    /// Takes bytes for a ring. One that has none gets its first in any case.
    pub(crate) fn take(&self, bytes: usize, is_first: bool) -> bool {
        let granted = is_first || bytes <= self.free();
        if granted {
            self.used.set(self.used.get() + bytes);
        }
        granted
    }

    fn give_back(&self, bytes: usize) {
        self.used.set(self.used.get().saturating_sub(bytes));
    }
}

/// A ring that could use more memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Growth {
    pub(crate) bytes: usize,
    /// Whether it has none yet.
    pub(crate) is_first: bool,
}

/// What there is for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Bytes that it will not see.
    Lost(Lost),
    /// Its next bytes.
    Data(Which, Bytes),
    /// It has seen all, and nothing follows.
    Over,
    /// It is no reader any more.
    Gone,
}

/// The outputs of one process and their readers.
#[derive(Debug)]
pub(crate) struct Store {
    outputs: Pair<Output>,
    readers: Vec<Slot>,
    next_reader: u64,
    keep: u64,
    slow_reader: SlowReader,
    is_over: bool,
    memory: Rc<Memory>,
}

#[derive(Debug, Default)]
struct Output {
    ring: Ring,
    /// The pump, when it waits for room.
    pump: Option<Waker>,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    /// Offsets of what it gets next; absent when it waits for the end only.
    cursors: Option<Pair<u64>>,
    /// What it has still to be told of.
    lost: Lost,
    /// Whose turn it was last, so that one endless output does not hide the other.
    last: Which,
    waker: Option<Waker>,
}

impl Store {
    /// An empty one, which keeps the latest `keep` bytes of each output.
    pub(crate) fn new(keep: u64, slow_reader: SlowReader, memory: Rc<Memory>) -> Self {
        Self {
            outputs: Pair::default(),
            readers: Vec::new(),
            next_reader: 0,
            keep,
            slow_reader,
            is_over: false,
            memory,
        }
    }

    /// Offset of the oldest byte that is kept for late readers.
    pub(crate) fn kept_from(&self, which: Which) -> u64 {
        let ring = &self.outputs.of(which).ring;
        ring.from().max(ring.to().saturating_sub(self.keep))
    }

    /// How many bytes there were so far.
    pub(crate) fn to(&self, which: Which) -> u64 {
        self.outputs.of(which).ring.to()
    }

    /// Bytes of memory that it has.
    pub(crate) fn capacity(&self) -> usize {
        self.outputs.stdout.ring.capacity() + self.outputs.stderr.ring.capacity()
    }

    /// Enters a reader. From now on nothing that it has not had is overwritten, if it is one to wait for. What is not kept
    /// any more, it loses.
    pub(crate) fn attach(&mut self, offsets: Option<Pair<u64>>) -> u64 {
        let id = self.next_reader;
        self.next_reader += 1;
        let mut lost = Lost::default();
        let cursors = offsets.map(|offsets| Pair {
            stdout: offsets.stdout.max(self.kept_from(Which::Stdout)),
            stderr: offsets.stderr.max(self.kept_from(Which::Stderr)),
        });
        if let (Some(from), Some(to)) = (offsets, cursors) {
            lost.stdout_bytes = to.stdout - from.stdout;
            lost.stderr_bytes = to.stderr - from.stderr;
        }
        self.readers.push(Slot {
            id,
            cursors,
            lost,
            last: Which::Stderr,
            waker: None,
        });
        id
    }

    /// Strikes a reader out, and lets go on what waited for it.
    pub(crate) fn detach(&mut self, id: u64) {
        if let Some(at) = self.readers.iter().position(|slot| slot.id == id) {
            let slot = self.readers.swap_remove(at);
            if let Some(waker) = slot.waker {
                waker.wake();
            }
            self.wake_pump(Which::Stdout);
            self.wake_pump(Which::Stderr);
        }
    }

    /// What a reader gets next; it is woken when that may have changed.
    pub(crate) fn poll_next(&mut self, id: u64, cx: &mut Context<'_>) -> Poll<Next> {
        let Some(slot) = self.readers.iter_mut().find(|slot| slot.id == id) else {
            return Poll::Ready(Next::Gone);
        };
        if let Some(cursors) = &mut slot.cursors {
            let Pair { stdout, stderr } = &self.outputs;
            slot.lost.stdout_bytes += skip(&mut cursors.stdout, &stdout.ring);
            slot.lost.stderr_bytes += skip(&mut cursors.stderr, &stderr.ring);
            if slot.lost != Lost::default() {
                return Poll::Ready(Next::Lost(std::mem::take(&mut slot.lost)));
            }
            let order = match slot.last {
                Which::Stdout => [Which::Stderr, Which::Stdout],
                Which::Stderr => [Which::Stdout, Which::Stderr],
            };
            for which in order {
                let cursor = cursors.of_mut(which);
                let ring = &self.outputs.of(which).ring;
                let data = ring.copy(*cursor, FRAME_BYTES);
                if !data.is_empty() {
                    *cursor += length(data.len());
                    slot.last = which;
                    self.wake_pump(which);
                    return Poll::Ready(Next::Data(which, data.into()));
                }
            }
        }
        if self.is_over {
            return Poll::Ready(Next::Over);
        }
        if !slot
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// How much more memory an output could use now: twice what it has, up to its bound, when it is full of what is to
    /// be kept.
    pub(crate) fn growth(&self, which: Which) -> Option<Growth> {
        let ring = &self.outputs.of(which).ring;
        let has = ring.capacity();
        let bound = usize::try_from(self.keep)
            .unwrap_or(usize::MAX)
            .max(TRANSIT);
        let wanted = (2 * has).max(SMALLEST).min(bound);
        (ring.len() >= has && has < wanted).then(|| Growth {
            bytes: wanted - has,
            is_first: has == 0,
        })
    }

    /// Grows an output by memory that was taken for it.
    pub(crate) fn grow(&mut self, which: Which, growth: Growth) {
        let ring = &mut self.outputs.of_mut(which).ring;
        ring.resize(ring.capacity() + growth.bytes);
    }

    /// Waits until an output has room: what every reader to wait for has had may be overwritten.
    pub(crate) fn poll_room(&mut self, which: Which, cx: &mut Context<'_>) -> Poll<()> {
        if self.room(which) > 0 {
            return Poll::Ready(());
        }
        self.outputs.of_mut(which).pump = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Where an output's next bytes go, at most `max` of them.
    pub(crate) fn space(&mut self, which: Which, max: usize) -> &mut [u8] {
        let room = self.room(which);
        self.outputs.of_mut(which).ring.space(room.min(max))
    }

    /// Says that so many bytes were put into [`Self::space`].
    pub(crate) fn filled(&mut self, which: Which, count: usize) {
        self.outputs.of_mut(which).ring.filled(count);
        self.wake_readers();
    }

    /// Says that nothing follows.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
        self.wake_readers();
    }

    /// Gives back what memory is not needed any more, once nothing follows.
    pub(crate) fn settle(&mut self) {
        for which in [Which::Stdout, Which::Stderr] {
            let unread = self.unread(which);
            let kept = self.to(which) - self.kept_from(which);
            let ring = &mut self.outputs.of_mut(which).ring;
            let (had, needed) = (
                ring.capacity(),
                unread.max(usize::try_from(kept).unwrap_or(0)),
            );
            if needed < had {
                ring.resize(needed);
                self.memory.give_back(had - needed);
            }
        }
    }

    fn room(&self, which: Which) -> usize {
        let unread = match self.slow_reader {
            SlowReader::Wait => self.unread(which),
            SlowReader::Skip => 0,
        };
        let capacity = self.outputs.of(which).ring.capacity();
        capacity.saturating_sub(unread)
    }

    /// Bytes that are there and the slowest reader has not had.
    fn unread(&self, which: Which) -> usize {
        let ring = &self.outputs.of(which).ring;
        let cursors = self.readers.iter().filter_map(|slot| slot.cursors);
        let slowest = cursors.map(|cursors| *cursors.of(which)).min();
        let unread = slowest.map_or(0, |cursor| ring.to().saturating_sub(cursor));
        usize::try_from(unread)
            .unwrap_or(usize::MAX)
            .min(ring.len())
    }

    fn wake_readers(&mut self) {
        for waker in self.readers.iter_mut().filter_map(|slot| slot.waker.take()) {
            waker.wake();
        }
    }

    fn wake_pump(&mut self, which: Which) {
        if let Some(pump) = self.outputs.of_mut(which).pump.take() {
            pump.wake();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.memory.give_back(self.capacity());
    }
}

/// Moves a cursor over what is not there any more, and returns how much that was.
fn skip(cursor: &mut u64, ring: &Ring) -> u64 {
    let lost = ring.from().saturating_sub(*cursor);
    *cursor += lost;
    lost
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Puts as much of `data` into an output as it takes now, growing it as the guest would.
    fn say(store: &mut Store, which: Which, data: &[u8]) -> usize {
        let mut said = 0;
        while said < data.len() {
            if let Some(growth) = store.growth(which)
                && store.memory.take(growth.bytes, growth.is_first)
            {
                store.grow(which, growth);
            }
            let space = store.space(which, data.len() - said);
            if space.is_empty() {
                break;
            }
            let count = space.len();
            space.copy_from_slice(&data[said..said + count]);
            store.filled(which, count);
            said += count;
        }
        said
    }

    fn next(store: &mut Store, id: u64) -> Poll<Next> {
        store.poll_next(id, &mut Context::from_waker(Waker::noop()))
    }

    fn store(keep: u64, slow_reader: SlowReader) -> Store {
        Store::new(keep, slow_reader, Rc::default())
    }

    const START: Option<Pair<u64>> = Some(Pair {
        stdout: 0,
        stderr: 0,
    });

    #[test]
    fn memory_is_taken_as_it_is_needed_and_given_back() {
        let memory = Rc::new(Memory::default());
        let free = memory.free();
        let mut store = Store::new(1 << 20, SlowReader::Wait, Rc::clone(&memory));
        assert_eq!(store.capacity(), 0);
        say(&mut store, Which::Stdout, &[1; 10]);
        assert_eq!((store.capacity(), free - memory.free()), (4096, 4096));
        say(&mut store, Which::Stderr, &[1; 5000]);
        assert_eq!((store.capacity(), free - memory.free()), (12_288, 12_288));
        store.end();
        store.settle();
        assert_eq!((store.capacity(), free - memory.free()), (5010, 5010));
        drop(store);
        assert_eq!(memory.free(), free);
    }

    #[test]
    fn without_memory_it_goes_on_with_what_it_has() {
        let memory = Rc::new(Memory::default());
        assert!(memory.take(memory.free(), false));
        let mut store = Store::new(1 << 20, SlowReader::Wait, memory);
        assert_eq!(say(&mut store, Which::Stdout, &[1; 10_000]), 10_000);
        assert_eq!(
            (store.capacity(), store.kept_from(Which::Stdout)),
            (4096, 10_000 - 4096)
        );
    }

    #[test]
    fn the_process_waits_for_the_slowest_reader_and_for_none() {
        let mut store = store(0, SlowReader::Wait);
        let much = vec![1; 2 * TRANSIT];
        let (slow, fast) = (store.attach(START), store.attach(START));
        assert_eq!(say(&mut store, Which::Stdout, &much), TRANSIT);
        assert!(
            matches!(next(&mut store, fast), Poll::Ready(Next::Data(Which::Stdout, data)) if data.len() == FRAME_BYTES)
        );
        assert_eq!(say(&mut store, Which::Stdout, &much), 0);
        // One that only waits for the end is not waited for.
        store.attach(None);
        store.detach(slow);
        assert_eq!(say(&mut store, Which::Stdout, &much), FRAME_BYTES);
        store.detach(fast);
        assert_eq!(say(&mut store, Which::Stdout, &much), much.len());
    }

    #[test]
    fn a_late_reader_gets_what_is_kept_and_is_told_what_is_not() {
        let mut store = store(10, SlowReader::Wait);
        say(&mut store, Which::Stdout, b"0123456789abcdef");
        let id = store.attach(Some(Pair {
            stdout: 2,
            stderr: 0,
        }));
        let lost = Lost {
            stdout_bytes: 4,
            stderr_bytes: 0,
        };
        assert_eq!(next(&mut store, id), Poll::Ready(Next::Lost(lost)));
        assert_eq!(
            next(&mut store, id),
            Poll::Ready(Next::Data(Which::Stdout, Bytes::from_static(b"6789abcdef")))
        );
        assert_eq!(next(&mut store, id), Poll::Pending);
        store.end();
        assert_eq!(next(&mut store, id), Poll::Ready(Next::Over));
        store.detach(id);
        assert_eq!(next(&mut store, id), Poll::Ready(Next::Gone));
    }

    #[test]
    fn an_offset_that_has_not_come_yet_is_waited_for() {
        let mut store = store(100, SlowReader::Wait);
        say(&mut store, Which::Stdout, b"0123");
        let id = store.attach(Some(Pair {
            stdout: 6,
            stderr: 0,
        }));
        assert_eq!(next(&mut store, id), Poll::Pending);
        say(&mut store, Which::Stdout, b"4567");
        assert_eq!(
            next(&mut store, id),
            Poll::Ready(Next::Data(Which::Stdout, Bytes::from_static(b"67")))
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Say(Which, usize),
        Attach(u64, u64),
        Read(prop::sample::Index, usize),
        Detach(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        let which = prop_oneof![Just(Which::Stdout), Just(Which::Stderr)];
        prop_oneof![
            5 => (which, 0_usize..60_000).prop_map(|(which, count)| Step::Say(which, count)),
            1 => (0_u64..200_000, 0_u64..200_000).prop_map(|(out, err)| Step::Attach(out, err)),
            5 => (any::<prop::sample::Index>(), 1_usize..4).prop_map(|(reader, times)| Step::Read(reader, times)),
            1 => any::<prop::sample::Index>().prop_map(Step::Detach),
        ]
    }

    fn byte(which: Which, at: u64) -> u8 {
        let salt = if which == Which::Stdout { 0 } else { 7 };
        u8::try_from((at * 31 + salt) % 251).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever happens, what a reader gets and loses is what was said, in order and without a gap; one that is waited
        /// for loses only what was gone when it came; and memory keeps to its bound.
        #[test]
        fn every_reader_sees_what_was_said(
            keep in prop_oneof![Just(0), 0_u64..200_000], wait in any::<bool>(), steps in proptest::collection::vec(step(), 0..120),
        ) {
            let slow_reader = if wait { SlowReader::Wait } else { SlowReader::Skip };
            let mut store = store(keep, slow_reader);
            let bound = usize::try_from(keep).unwrap().max(TRANSIT);
            let mut readers: Vec<(u64, Pair<u64>, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Say(which, count) => {
                        let from = store.to(which);
                        let data: Vec<u8> = (from..).take(count).map(|at| byte(which, at)).collect();
                        let said = say(&mut store, which, &data);
                        prop_assert!(wait || said == count);
                        prop_assert!(said == count || !readers.is_empty());
                    }
                    Step::Attach(stdout, stderr) => {
                        let offsets = Pair { stdout, stderr };
                        readers.push((store.attach(Some(offsets)), offsets, true));
                    }
                    Step::Detach(which) if !readers.is_empty() => {
                        let (id, ..) = readers.swap_remove(which.index(readers.len()));
                        store.detach(id);
                    }
                    Step::Read(which, times) if !readers.is_empty() => {
                        let at = which.index(readers.len());
                        let (id, offsets, is_new) = &mut readers[at];
                        for _ in 0..times {
                            match next(&mut store, *id) {
                                Poll::Ready(Next::Lost(lost)) => {
                                    prop_assert!(!wait || *is_new, "a reader that is waited for lost something");
                                    offsets.stdout += lost.stdout_bytes;
                                    offsets.stderr += lost.stderr_bytes;
                                }
                                Poll::Ready(Next::Data(which, data)) => {
                                    prop_assert!(data.len() <= MAX_FRAME_PAYLOAD_BYTES);
                                    let offset = offsets.of_mut(which);
                                    let expected: Vec<u8> = (*offset..).take(data.len()).map(|at| byte(which, at)).collect();
                                    prop_assert!(data == expected, "other bytes than were said");
                                    *offset += length(data.len());
                                    prop_assert!(*offset <= store.to(which));
                                }
                                Poll::Ready(other) => prop_assert!(false, "{:?}", other),
                                Poll::Pending => {
                                    prop_assert!(offsets.stdout >= store.to(Which::Stdout));
                                    prop_assert!(offsets.stderr >= store.to(Which::Stderr));
                                }
                            }
                            *is_new = false;
                        }
                    }
                    Step::Detach(_) | Step::Read(..) => {}
                }
                for which in [Which::Stdout, Which::Stderr] {
                    prop_assert!(store.outputs.of(which).ring.capacity() <= bound);
                    prop_assert!(store.to(which) - store.kept_from(which) <= keep);
                }
            }
        }
    }
}
