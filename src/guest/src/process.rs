//! One process: what it is, what it said, who reads it.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use casemate_link::limits::{
    MAX_LISTED_WORD_BYTES, MAX_LISTED_WORDS, MAX_PATH_BYTES, MAX_USER_BYTES,
};
use casemate_link::process::{AttachRequest, ProcessExit, ProcessInfo, PtySize, Started};
use tokio::sync::Notify;

use crate::ends::Watched;
use crate::input::Input;
use crate::store::{Pair, Store, Which};
use crate::{sys, terminal};

/// A process in the table, or one that is still read after it was forgotten.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) number: u64,
    /// Its pid, and its group's.
    pub(crate) pid: i32,
    pub(crate) about: About,
    pub(crate) store: RefCell<Store>,
    pub(crate) input: Input,
    pub(crate) state: State,
}

/// What people ask of it, within the bounds of a list.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) argv: Vec<String>,
    pub(crate) tag: Option<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: String,
    pub(crate) pty: bool,
    pub(crate) kept: bool,
    pub(crate) started_at_ms: u64,
}

/// What changes.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Its terminal, until the end.
    pub(crate) terminal: RefCell<Option<Watched>>,
    /// Whether the main process has been reaped: then its pid may be another's.
    pub(crate) is_dead: Cell<bool>,
    /// Set when all that it said is in the store.
    pub(crate) exit: Cell<Option<ProcessExit>>,
    /// The reader whose going ends a process that is not kept.
    pub(crate) starter: Cell<Option<u64>>,
    /// Says that nobody wants it to go on.
    pub(crate) unwanted: Notify,
}

impl About {
    /// Cut to what a list may hold, so that a process with long words costs no more than another.
    pub(crate) fn cut(mut self) -> Self {
        self.argv.truncate(MAX_LISTED_WORDS);
        for word in &mut self.argv {
            cut(word, MAX_LISTED_WORD_BYTES);
        }
        cut(&mut self.user, MAX_USER_BYTES);
        if let Some(cwd) = &mut self.cwd {
            cut(cwd, MAX_PATH_BYTES);
        }
        self
    }
}

fn cut(text: &mut String, max_bytes: usize) {
    text.truncate(text.floor_char_boundary(max_bytes));
    text.shrink_to_fit();
}

impl Process {
    pub(crate) fn started(&self) -> Started {
        Started {
            process: self.number,
            pid: self.pid.unsigned_abs(),
        }
    }

    pub(crate) fn info(&self) -> ProcessInfo {
        let (about, store) = (&self.about, self.store.borrow());
        ProcessInfo {
            process: self.number,
            pid: self.pid.unsigned_abs(),
            argv: about.argv.clone(),
            tag: about.tag.clone(),
            cwd: about.cwd.clone(),
            user: about.user.clone(),
            pty: about.pty,
            kept: about.kept,
            started_at_ms: about.started_at_ms,
            stdout_from: store.kept_from(Which::Stdout),
            stdout_to: store.to(Which::Stdout),
            stderr_from: store.kept_from(Which::Stderr),
            stderr_to: store.to(Which::Stderr),
            exit: self.state.exit.get(),
        }
    }

    /// Whether it can be signalled.
    pub(crate) fn lives(&self) -> bool {
        !self.state.is_dead.get()
    }

    /// Signals its group.
    pub(crate) fn signal(&self, signum: i32) -> io::Result<()> {
        sys::signal_group(self.pid, signum)
    }

    /// Gives its terminal another size; `None` when it has none (any more).
    pub(crate) fn resize(&self, size: PtySize) -> Option<io::Result<()>> {
        let terminal = self.state.terminal.borrow();
        terminal
            .as_ref()
            .map(|terminal| terminal::resize(&**terminal, self.pid, size))
    }

    /// Enters the reader that started it, from its first byte.
    pub(crate) fn attach_starter(&self) -> u64 {
        let reader = self.store.borrow_mut().attach(Some(Pair::default()));
        self.state.starter.set(Some(reader));
        reader
    }

    /// Enters another reader.
    pub(crate) fn attach(&self, request: &AttachRequest) -> u64 {
        let offsets = request.output.then_some(Pair {
            stdout: request.stdout_offset,
            stderr: request.stderr_offset,
        });
        self.store.borrow_mut().attach(offsets)
    }

    /// Strikes a reader out. With the starter goes the process, unless it is kept.
    pub(crate) fn detach(&self, reader: u64) {
        self.store.borrow_mut().detach(reader);
        if self.state.starter.get() == Some(reader) {
            self.abandon();
        }
    }

    /// Its starter listens no more.
    pub(crate) fn abandon(&self) {
        if let Some(reader) = self.state.starter.take() {
            self.store.borrow_mut().detach(reader);
            if !self.about.kept {
                self.state.unwanted.notify_one();
            }
        }
    }

    /// Whether only the table holds it, so that forgetting it frees its memory.
    pub(crate) fn is_unread(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_list_shows_is_cut_between_characters() {
        let about = About {
            argv: std::iter::once("ä".repeat(300))
                .chain((0..20).map(|n| n.to_string()))
                .collect(),
            tag: None,
            cwd: Some(format!("/{}", "€".repeat(2000))),
            user: "x".repeat(100),
            pty: false,
            kept: false,
            started_at_ms: 0,
        };
        let about = about.cut();
        assert_eq!((about.argv.len(), about.argv[0].len()), (16, 256));
        assert_eq!(about.argv[15], "14");
        assert_eq!(about.cwd.map(|cwd| cwd.len()), Some(4096));
        assert_eq!(about.user.len(), 64);
    }
}
