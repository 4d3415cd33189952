//! The processes that the daemon asked for: those that run, and those that ended and are kept for late readers.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_link::limits::{MAX_KEPT_PROCESSES, MAX_LISTED_PROCESSES, MAX_PROCESSES};
use casemate_link::process::{OnDetach, ProcessSpec, Selector};
use casemate_link::refusal::{Refusal, code};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::child::{Launch, Launched, refusal};
use crate::input::Input;
use crate::life::{Life, Terms};
use crate::options::Options;
use crate::process::{About, Process, State};
use crate::reaper::Reaper;
use crate::store::{Memory, Store, Which};
use crate::users::{Accounts, Identity, Names};
use crate::{sys, usage};

/// How long no process is forgotten before memory is given back: longer than the pause between two commands of a busy
/// session.
const TIDY_AFTER: Duration = Duration::from_secs(1);

/// The table of processes. Its numbers are never used twice; a pid may be.
#[derive(Debug)]
pub(crate) struct Processes {
    pub(crate) reaper: Rc<Reaper>,
    pub(crate) options: Options,
    pub(crate) started: Instant,
    table: RefCell<BTreeMap<u64, Rc<Process>>>,
    /// Numbers of the kept ones that ended, the first to end first.
    ended: RefCell<VecDeque<u64>>,
    /// How many main processes live.
    running: Cell<usize>,
    memory: Rc<Memory>,
    next_number: Cell<u64>,
    stopping: Cell<bool>,
    forgotten: Notify,
    accounts: RefCell<Accounts>,
    /// Owner and group of the link's directory, which is mounted once.
    dialers: OnceCell<(u32, u32)>,
}

impl Processes {
    pub(crate) fn new(reaper: Rc<Reaper>, options: Options) -> Rc<Self> {
        Rc::new(Self {
            reaper,
            options,
            started: Instant::now(),
            table: RefCell::default(),
            ended: RefCell::default(),
            running: Cell::new(0),
            memory: Rc::default(),
            next_number: Cell::new(1),
            stopping: Cell::new(false),
            forgotten: Notify::new(),
            accounts: RefCell::default(),
            dialers: OnceCell::new(),
        })
    }

    /// Starts a process, enters it, and starts the task that attends it. There is nothing to wait for in between, so no
    /// process can be born and not be in the table.
    ///
    /// # Errors
    /// A [`Refusal`] for the daemon.
    pub(crate) fn start(self: &Rc<Self>, spec: ProcessSpec) -> Result<Rc<Process>, Refusal> {
        spec.validate()
            .map_err(|bad| refusal(code::BAD_SPEC, &bad.to_string()))?;
        if self.stopping.get() {
            return Err(refusal(code::STOPPING, "the sandbox is ending"));
        }
        if self.count() >= MAX_PROCESSES {
            return Err(refusal(
                code::TOO_MANY_PROCESSES,
                "the guest runs as many processes as it may",
            ));
        }
        if self.next_number.get() > self.options.max_started {
            return Err(refusal(
                code::LIMIT_REACHED,
                "the guest has started as many processes as it may",
            ));
        }
        let (identity, switch) = self.admit(spec.user.as_deref())?;
        let terms = Terms::of(&spec);
        let store = Store::new(spec.keep_bytes, spec.slow_reader, Rc::clone(&self.memory));
        let mut about = About {
            argv: Vec::new(),
            tag: spec.tag.clone(),
            cwd: None,
            user: identity.name.clone(),
            pty: spec.pty.is_some(),
            kept: spec.on_detach == OnDetach::Keep,
            started_at_ms: usage::wall_clock_ms(),
        };
        let launch = Launch::new(spec, identity, switch, self.options.open_files);
        about.argv.clone_from(&launch.argv);
        let (pid, Launched { ends, cwd }, ending) = self.reaper.adopt(|| launch.spawn())?;
        let born = tokio::time::Instant::now();
        about.cwd = Some(cwd);

        let number = self.next_number.get();
        self.next_number.set(number + 1);
        self.running.set(self.running.get() + 1);
        let (over, is_over) = watch::channel(false);
        let process = Rc::new(Process {
            number,
            pid,
            store: RefCell::new(store),
            input: Input::new(ends.stdin, about.pty, is_over),
            about: about.cut(),
            state: State {
                terminal: RefCell::new(ends.terminal),
                ..State::default()
            },
        });
        self.table.borrow_mut().insert(number, Rc::clone(&process));
        let life = Life {
            process: Rc::clone(&process),
            table: Rc::clone(self),
            terms,
            ending,
            born,
            stdout: ends.stdout,
            stderr: ends.stderr,
            line: ends.line,
            over,
        };
        spawn_local(life.live());
        Ok(process)
    }

    /// Counts a main process that has ended: from now on its pid may be another's.
    pub(crate) fn died(&self) {
        self.running.set(self.running.get().saturating_sub(1));
    }

    /// Forgets a process that has said all, or keeps it for late readers.
    pub(crate) fn ended(&self, process: &Process) {
        if process.about.kept {
            process.store.borrow_mut().settle();
            self.ended.borrow_mut().push_back(process.number);
            while self.ended.borrow().len() > MAX_KEPT_PROCESSES {
                let oldest = self.ended.borrow_mut().pop_front();
                self.forget(oldest);
            }
        } else {
            self.forget(Some(process.number));
        }
    }

    fn forget(&self, number: Option<u64>) {
        // Its last holder may be this one, and what goes with it asks nothing of the table.
        drop(number.and_then(|number| self.table.borrow_mut().remove(&number)));
        self.forgotten.notify_one();
    }

    /// Gives an output more memory if it could use some and there is some; kept processes that ended give way.
    pub(crate) fn make_room(&self, process: &Process, which: Which) {
        let growth = process.store.borrow().growth(which);
        if let Some(growth) = growth {
            let mut granted = self.memory.take(growth.bytes, growth.is_first);
            if !granted && self.free(growth.bytes) {
                granted = self.memory.take(growth.bytes, false);
            }
            if granted {
                process.store.borrow_mut().grow(which, growth);
            }
        }
    }

    /// Forgets kept processes that ended and that nobody reads, oldest first, until so many bytes are free; none when that
    /// would not do.
    fn free(&self, bytes: usize) -> bool {
        let unread: Vec<(u64, usize)> = {
            let (table, ended) = (self.table.borrow(), self.ended.borrow());
            let kept = ended.iter().filter_map(|number| table.get(number));
            let unread = kept.filter(|process| process.is_unread());
            unread
                .map(|process| (process.number, process.store.borrow().capacity()))
                .collect()
        };
        let could_be: usize = unread.iter().map(|(_, bytes)| bytes).sum();
        if self.memory.free().saturating_add(could_be) < bytes {
            return false;
        }
        for (number, held) in unread {
            if self.memory.free() >= bytes {
                break;
            }
            if held > 0 {
                self.ended.borrow_mut().retain(|ended| *ended != number);
                self.forget(Some(number));
            }
        }
        true
    }

    /// Keeps the guest small for as long as it lives: gives memory back when processes were forgotten and none was for a
    /// while.
    pub(crate) async fn tidy(&self) -> Infallible {
        loop {
            self.forgotten.notified().await;
            while timeout(TIDY_AFTER, self.forgotten.notified()).await.is_ok() {}
            sys::give_memory_back();
        }
    }

    /// How many run.
    pub(crate) fn count(&self) -> usize {
        self.running.get()
    }

    /// The process that is meant, whether it runs or is kept.
    pub(crate) fn find(&self, process: &Selector) -> Option<Rc<Process>> {
        let table = self.table.borrow();
        let found = match process {
            Selector::Process(number) => table.get(number),
            Selector::Pid(pid) => {
                let pid = i32::try_from(*pid).ok();
                table.values().rfind(|process| Some(process.pid) == pid)
            }
            Selector::Tag(tag) => {
                let tag = Some(tag.as_str());
                table
                    .values()
                    .rfind(|process| process.about.tag.as_deref() == tag)
            }
        };
        found.map(Rc::clone)
    }

    /// The numbers of all, oldest first.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let table = self.table.borrow();
        table.keys().copied().take(MAX_LISTED_PROCESSES).collect()
    }

    /// Signals a process's group; `None` when there is no such process.
    pub(crate) fn signal(&self, process: &Selector, signum: i32) -> Option<io::Result<()>> {
        let found = self.find(process).filter(|process| process.lives());
        found.map(|process| process.signal(signum))
    }

    /// Says that a process's starter listens no more; whether there is such a process.
    pub(crate) fn detach(&self, number: u64) -> bool {
        let found = self.find(&Selector::Process(number));
        found.map(|process| process.abandon()).is_some()
    }

    /// Signals everything that runs in the sandbox. Outside one (not as PID 1), only the groups in the table.
    pub(crate) fn signal_all(&self, signum: i32) {
        if sys::signal_everybody(signum).is_err() {
            let table = self.table.borrow();
            for process in table.values().filter(|process| process.lives()) {
                // A group that cannot be signalled now is killed with the sandbox.
                let _ = process.signal(signum);
            }
        }
    }

    /// Starts nothing from now on.
    pub(crate) fn close(&self) {
        self.stopping.set(true);
    }

    /// Finds the user, and says whether the child must change to it. Nobody who could open the link's directory is
    /// admitted: not root, and not whoever the daemon's own user and group appear as inside.
    pub(crate) fn admit(&self, user: Option<&str>) -> Result<(Identity, bool), Refusal> {
        let found = {
            let mut accounts = self.accounts.borrow_mut();
            accounts.refresh();
            accounts.resolve(user)
        };
        let mut identity =
            found.ok_or_else(|| refusal(code::UNKNOWN_USER, "the sandbox has no such user"))?;
        let me = nix::unistd::geteuid();
        if !me.is_root() {
            return if identity.uid == me.as_raw() {
                Ok((identity, false))
            } else {
                Err(refusal(
                    code::USER_NOT_ALLOWED,
                    "the guest may not change to another user",
                ))
            };
        }
        if !self.options.allow_root {
            let (owner, group) = self.dialers();
            let dials = |uid: u32| uid == 0 || uid == owner;
            let may_dial = |gid: u32| gid == 0 || gid == group;
            if dials(identity.uid) || may_dial(identity.gid) {
                return Err(refusal(
                    code::USER_NOT_ALLOWED,
                    "this user is not for processes",
                ));
            }
            identity.groups.retain(|gid| !may_dial(*gid));
        }
        Ok((identity, true))
    }

    /// The names of the sandbox's users and groups, as they were when a user was last admitted.
    pub(crate) fn names(&self) -> Arc<Names> {
        self.accounts.borrow_mut().names()
    }

    /// Says that work is done whose memory may be given back, if nothing runs.
    pub(crate) fn rest(&self) {
        self.forgotten.notify_one();
    }

    /// Who owns the link's directory, as seen from here. While it cannot be looked at, nobody can open it either.
    fn dialers(&self) -> (u32, u32) {
        let seen = self.dialers.get().copied();
        let look = || {
            let metadata = std::fs::metadata(&self.options.link_dir).ok()?;
            Some(
                *self
                    .dialers
                    .get_or_init(|| (metadata.uid(), metadata.gid())),
            )
        };
        seen.or_else(look).unwrap_or_default()
    }
}
