//! What is to be told to whoever watches: in order, bounded, a burst of writes as one, a file's two names as one event.

use std::collections::VecDeque;
use std::time::Duration;

use casemate_link::file::{FileChange, FileEvent};
use tokio::time::Instant;

/// Events that wait for a slow reader. Beyond it all are forgotten, and that is told.
const MAX_EVENTS: usize = 1024;

/// How long writes to one file are gathered.
const BURST: Duration = Duration::from_millis(50);

/// How long the second half of a rename may take: the kernel says both at once.
const HALF: Duration = Duration::from_millis(50);

/// The events of one watch.
#[derive(Debug, Default)]
pub(crate) struct Events {
    slots: VecDeque<Slot>,
    /// Directories that left what is watched.
    gone: Vec<String>,
}

#[derive(Debug)]
struct Slot {
    event: FileEvent,
    /// When it is told, if nothing changes it before.
    at: Instant,
    /// Of a rename of which only the old name is known.
    cookie: Option<u32>,
}

/// What is next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// This can be told.
    Event(&'a FileEvent),
    /// Something can be told then.
    At(Instant),
    /// Nothing is to be told.
    Nothing,
}

impl Events {
    /// Adds an event; a write only if none of that file waits already.
    pub(crate) fn add(
        &mut self,
        change: FileChange,
        path: String,
        is_directory: bool,
        now: Instant,
    ) {
        let is_write = change == FileChange::Write;
        if is_write {
            let last = self.slots.iter().rev().find(|slot| slot.event.path == path);
            if last.is_some_and(|slot| slot.event.change == FileChange::Write) {
                return;
            }
        }
        let event = FileEvent {
            change,
            path,
            to: None,
            is_directory,
        };
        let at = if is_write { now + BURST } else { now };
        self.push(Slot {
            event,
            at,
            cookie: None,
        });
    }

    /// Adds the first half of a rename, which is a removal if there is no second.
    pub(crate) fn add_moved(
        &mut self,
        path: String,
        is_directory: bool,
        cookie: u32,
        now: Instant,
    ) {
        let change = FileChange::Remove;
        let event = FileEvent {
            change,
            path,
            to: None,
            is_directory,
        };
        self.push(Slot {
            event,
            at: now + HALF,
            cookie: Some(cookie),
        });
    }

    /// Adds the second half of a rename, and says the old path; `None` when there was no first.
    pub(crate) fn complete(&mut self, to: &str, cookie: u32, now: Instant) -> Option<String> {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.cookie == Some(cookie))?;
        (slot.cookie, slot.at) = (None, now);
        (slot.event.change, slot.event.to) = (FileChange::Rename, Some(to.to_owned()));
        Some(slot.event.path.clone())
    }

    /// Says that something could not be told.
    pub(crate) fn overflow(&mut self, now: Instant) {
        let lost = self.slots.drain(..).filter(|slot| slot.cookie.is_some());
        self.gone.extend(
            lost.filter(|slot| slot.event.is_directory)
                .map(|slot| slot.event.path),
        );
        let (change, path) = (FileChange::Overflow, String::new());
        let event = FileEvent {
            change,
            path,
            to: None,
            is_directory: false,
        };
        self.slots.push_back(Slot {
            event,
            at: now,
            cookie: None,
        });
    }

    /// What can be told now.
    pub(crate) fn next(&self, now: Instant) -> Next<'_> {
        match self.slots.front() {
            Some(slot) if slot.at <= now => Next::Event(&slot.event),
            Some(slot) => Next::At(slot.at),
            None => Next::Nothing,
        }
    }

    /// Takes what [`Events::next`] said, after it was told.
    pub(crate) fn told(&mut self) {
        if let Some(slot) = self.slots.pop_front()
            && slot.cookie.is_some()
            && slot.event.is_directory
        {
            self.gone.push(slot.event.path);
        }
    }

    /// Waits for nothing any more.
    pub(crate) fn hurry(&mut self, now: Instant) {
        for slot in &mut self.slots {
            slot.at = now;
        }
    }

    /// Directories that are known since the last call to be somewhere else.
    pub(crate) fn gone(&mut self) -> Vec<String> {
        std::mem::take(&mut self.gone)
    }

    fn push(&mut self, slot: Slot) {
        if self.slots.len() >= MAX_EVENTS {
            self.overflow(slot.at);
        }
        self.slots.push_back(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(events: &mut Events, now: Instant) -> Vec<(FileChange, String, Option<String>)> {
        let mut told = Vec::new();
        while let Next::Event(event) = events.next(now) {
            told.push((event.change, event.path.clone(), event.to.clone()));
            events.told();
        }
        told
    }

    #[test]
    fn a_burst_of_writes_is_one() {
        let (mut events, now) = (Events::default(), Instant::now());
        for _ in 0..100 {
            events.add(FileChange::Write, "a".into(), false, now);
            events.add(FileChange::Write, "b".into(), false, now);
        }
        assert_eq!(events.next(now), Next::At(now + BURST));
        let told = all(&mut events, now + BURST);
        assert_eq!(
            told.iter()
                .map(|event| event.1.as_str())
                .collect::<Vec<_>>(),
            ["a", "b"]
        );
        // A write after something else happened to the file is another.
        for change in [
            FileChange::Write,
            FileChange::Remove,
            FileChange::Create,
            FileChange::Write,
        ] {
            events.add(change, "a".into(), false, now);
        }
        assert_eq!(all(&mut events, now + BURST).len(), 4);
    }

    #[test]
    fn halves_of_a_rename_become_one_in_the_place_of_the_first() {
        let (mut events, now) = (Events::default(), Instant::now());
        events.add_moved("a".into(), false, 7, now);
        events.add(FileChange::Create, "a".into(), false, now);
        assert_eq!(events.complete("b", 8, now), None);
        assert_eq!(events.complete("b", 7, now), Some("a".into()));
        let expected = [
            (FileChange::Rename, "a".to_owned(), Some("b".to_owned())),
            (FileChange::Create, "a".to_owned(), None),
        ];
        assert_eq!(all(&mut events, now), expected);
    }

    #[test]
    fn half_a_rename_is_a_removal() {
        let (mut events, now) = (Events::default(), Instant::now());
        events.add_moved("d".into(), true, 7, now);
        assert_eq!(all(&mut events, now), []);
        assert_eq!(
            all(&mut events, now + HALF),
            [(FileChange::Remove, "d".into(), None)]
        );
        assert_eq!(events.gone(), ["d"]);
    }

    #[test]
    fn a_slow_reader_hears_that_it_missed_something() {
        let (mut events, now) = (Events::default(), Instant::now());
        for number in 0..=MAX_EVENTS {
            events.add(FileChange::Create, number.to_string(), false, now);
        }
        let told = all(&mut events, now);
        assert_eq!(told.len(), 2);
        assert_eq!(
            (told[0].0, told[1].1.as_str()),
            (FileChange::Overflow, "1024")
        );
    }
}
