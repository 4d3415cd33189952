//! The processes that the daemon asked for, while they run.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_link::limits::MAX_PROCESSES;
use casemate_link::process::{OnDetach, ProcessSpec, Selector};
use casemate_link::refusal::{Refusal, code};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::child::{Launch, Pipes, refusal};
use crate::options::Options;
use crate::reaper::{Ending, Reaper};
use crate::sys;
use crate::users::{Accounts, Identity, Names};

/// How long nothing runs before memory is given back: longer than the pause between two commands of a busy session.
const TIDY_AFTER: Duration = Duration::from_secs(1);

/// The table of running processes. Its numbers are never used twice; a pid may be.
#[derive(Debug)]
pub(crate) struct Processes {
    pub(crate) reaper: Rc<Reaper>,
    pub(crate) options: Options,
    pub(crate) started: Instant,
    running: RefCell<BTreeMap<u64, Entry>>,
    next_number: Cell<u64>,
    stopping: Cell<bool>,
    idle: Notify,
    accounts: RefCell<Accounts>,
    /// Owner and group of the link's directory, which is mounted once.
    dialers: OnceCell<(u32, u32)>,
}

#[derive(Debug)]
struct Entry {
    group: i32,
    detach: Rc<Notify>,
}

/// A process just born.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) number: u64,
    /// Its pid, and its group's.
    pub(crate) pid: i32,
    pub(crate) pipes: Pipes,
    pub(crate) ending: Ending,
    pub(crate) born: Instant,
    /// Says that nobody listens any more.
    pub(crate) detach: Rc<Notify>,
}

impl Processes {
    pub(crate) fn new(reaper: Rc<Reaper>, options: Options) -> Rc<Self> {
        Rc::new(Self {
            reaper,
            options,
            started: Instant::now(),
            running: RefCell::default(),
            next_number: Cell::new(1),
            stopping: Cell::new(false),
            idle: Notify::new(),
            accounts: RefCell::default(),
            dialers: OnceCell::new(),
        })
    }

    /// Starts a process and enters it.
    ///
    /// # Errors
    /// A [`Refusal`] for the daemon.
    pub(crate) fn start(&self, spec: &ProcessSpec) -> Result<Running, Refusal> {
        spec.validate()
            .map_err(|bad| refusal(code::BAD_SPEC, &bad.to_string()))?;
        if self.stopping.get() {
            return Err(refusal(code::STOPPING, "the sandbox is ending"));
        }
        if spec.on_detach == OnDetach::Keep {
            return Err(refusal(
                code::UNSUPPORTED,
                "this guest keeps no process that nobody listens to",
            ));
        }
        if self.count() >= MAX_PROCESSES {
            return Err(refusal(
                code::TOO_MANY_PROCESSES,
                "the guest runs as many processes as it may",
            ));
        }
        let (identity, switch) = self.admit(spec.user.as_deref())?;
        let launch = Launch {
            argv: spec.argv.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            identity,
            switch,
        };
        let (pid, pipes, ending) = self.reaper.adopt(|| launch.spawn())?;
        let born = Instant::now();
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let detach = Rc::new(Notify::new());
        let entry = Entry {
            group: pid,
            detach: Rc::clone(&detach),
        };
        self.running.borrow_mut().insert(number, entry);
        Ok(Running {
            number,
            pid,
            pipes,
            ending,
            born,
            detach,
        })
    }

    /// Forgets a process that has ended: from now on its pid may be another's.
    pub(crate) fn forget(&self, number: u64) {
        self.running.borrow_mut().remove(&number);
        if self.count() == 0 {
            self.idle.notify_one();
        }
    }

    /// Keeps the guest small for as long as it lives: gives memory back when nothing has run for a while.
    pub(crate) async fn tidy(&self) -> Infallible {
        loop {
            self.idle.notified().await;
            sleep(TIDY_AFTER).await;
            if self.count() == 0 {
                sys::give_memory_back();
            }
        }
    }

    /// How many run.
    pub(crate) fn count(&self) -> usize {
        self.running.borrow().len()
    }

    /// Signals a process's group; `None` when there is no such process.
    pub(crate) fn signal(&self, process: &Selector, signum: i32) -> Option<io::Result<()>> {
        let running = self.running.borrow();
        let found = match process {
            Selector::Process(number) => running.get(number),
            Selector::Pid(pid) => {
                let group = i32::try_from(*pid).ok();
                running.values().rfind(|entry| Some(entry.group) == group)
            }
            Selector::Tag(_) => None,
        };
        found.map(|entry| sys::signal_group(entry.group, signum))
    }

    /// Says that nobody listens to a process any more; whether there is such a process.
    pub(crate) fn detach(&self, number: u64) -> bool {
        let running = self.running.borrow();
        running
            .get(&number)
            .map(|entry| entry.detach.notify_one())
            .is_some()
    }

    /// Signals everything that runs in the sandbox. Outside one (not as PID 1), only the groups in the table.
    pub(crate) fn signal_all(&self, signum: i32) {
        if sys::signal_everybody(signum).is_err() {
            for entry in self.running.borrow().values() {
                // A group that cannot be signalled now is killed with the sandbox.
                let _ = sys::signal_group(entry.group, signum);
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
        self.idle.notify_one();
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
