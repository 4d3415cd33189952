//! Watching directories (inotify(7)), each by a watch of its own.
//!
//! A directory that is new is watched first and then looked into: what was put into it before is told, and what is put
//! into it meanwhile is told once. The guest's own temporary names are told to nobody; what takes its name from one is
//! new, or was written.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use casemate_link::file::{FileChange, WatchRequest};
use casemate_link::limits::MAX_WATCHED_DIRECTORIES;
use casemate_link::refusal::Refusal;
use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, openat};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::sys::stat::{Mode, lstat};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::actor::Actor;
use super::entry::shown;
use super::error::{Doing, explain};
use super::events::{Events, Next};
use super::place::READ_DIRECTORY;
use super::temporary;
use super::tree::Names;
use crate::processes::Processes;
use crate::sys::{self, Eyes};
use crate::transfer::Transfer;

/// Names that are told of one new directory.
const MAX_FOUND: usize = 1024;

/// Renames of the guest's own whose second half is not here yet.
const MAX_SETTLING: usize = 64;

const MASK: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// Answers a [`WatchRequest`].
pub(crate) async fn watch(
    processes: Rc<Processes>,
    request: WatchRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    let path = actor.path(&request.place.path);
    let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
    let eyes = Eyes::new(Inotify::init(flags).doing("watching")?);
    let inotify = eyes.inotify();
    let recursive = request.recursive;
    let (root, only, scan) = actor
        .run(move || {
            let path = std::fs::canonicalize(&path).doing("looking at the file")?;
            let (root, only) = if path.is_dir() {
                (path, None)
            } else {
                let name = path.file_name().map(OsStr::to_owned);
                (path.parent().unwrap_or(&path).to_owned(), name)
            };
            let recursive = recursive && only.is_none();
            let mut scan = Scan::default();
            scan.watch(&inotify, &root, Path::new(""))?;
            if recursive {
                scan.descend(
                    &inotify,
                    &root,
                    PathBuf::new(),
                    MAX_WATCHED_DIRECTORIES,
                    false,
                );
            }
            Ok((root, only, scan))
        })
        .await?;
    let eyes = sys::wait_on(eyes).doing("watching")?;
    if !transfer.output.head(&()).await {
        return Ok(());
    }
    let mut watching = Watching {
        actor,
        root,
        recursive: recursive && only.is_none(),
        only,
        eyes,
        paths: HashMap::new(),
        events: Events::default(),
        told: HashSet::new(),
        settling: HashMap::new(),
        is_over: false,
    };
    watching.take(scan);
    watching.run(&transfer).await;
    Ok(())
}

struct Watching {
    actor: Actor,
    root: PathBuf,
    recursive: bool,
    /// The one file in the root that is meant.
    only: Option<OsString>,
    eyes: AsyncFd<Eyes>,
    /// The directory of each watch, below the root.
    paths: HashMap<WatchDescriptor, PathBuf>,
    events: Events,
    /// What was told because it was found, whose creation may still be in the kernel's queue.
    told: HashSet<PathBuf>,
    /// Renames of the guest's own, and whether they replace something.
    settling: HashMap<u32, bool>,
    is_over: bool,
}

impl Watching {
    async fn run(&mut self, transfer: &Transfer) {
        let output = &transfer.output;
        loop {
            for path in self.events.gone() {
                self.forget(Path::new(&path));
            }
            let now = Instant::now();
            let (event, at) = match self.events.next(now) {
                Next::Event(event) => (Some(event.clone()), now),
                Next::At(at) => (None, at),
                Next::Nothing if self.is_over => {
                    output.end().await;
                    return;
                }
                Next::Nothing => (None, now),
            };
            let is_waiting = event.is_none() && at > now;
            let is_over = self.is_over;
            let telling = async {
                match &event {
                    Some(event) => output.item(event).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                sent = telling => {
                    if !sent {
                        return;
                    }
                    self.events.told();
                }
                () = sleep_until(at), if is_waiting => {}
                read = read(&self.eyes), if !is_over => match read {
                    Ok(events) => self.heed(events).await,
                    // Without the kernel's queue nothing more can be told.
                    Err(_) => self.end(FileChange::Overflow),
                },
                () = output.closed() => return,
            }
        }
    }

    /// Makes what the kernel said into what is told.
    async fn heed(&mut self, events: VecDeque<InotifyEvent>) {
        if events.is_empty() {
            // All that happened before the last look into a directory has been heard.
            self.told.clear();
        }
        for event in events {
            if self.is_over {
                return;
            }
            if let Some(directory) = self.translate(&event) {
                self.look_into(directory).await;
            }
        }
    }

    /// Adds one event; a directory that it made is returned.
    fn translate(&mut self, event: &InotifyEvent) -> Option<PathBuf> {
        let has = |flags| event.mask.intersects(flags);
        let now = Instant::now();
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            self.events.overflow(now);
            // Directories may have come that nobody told of: all are looked for again.
            return self.recursive.then(PathBuf::new);
        }
        let directory = self.paths.get(&event.wd)?.clone();
        let Some(name) = &event.name else {
            self.heed_itself(event, &directory, now);
            return None;
        };
        let path = match &self.only {
            Some(only) if only == name => PathBuf::new(),
            Some(_)
                if !self.settling.contains_key(&event.cookie)
                    && temporary::replaces(name).is_none() =>
            {
                return None;
            }
            _ => directory.join(name),
        };
        let is_directory = has(AddWatchFlags::IN_ISDIR);
        if let Some(replaces) = temporary::replaces(name) {
            if has(AddWatchFlags::IN_MOVED_FROM) {
                if self.settling.len() >= MAX_SETTLING {
                    self.settling.clear();
                }
                self.settling.insert(event.cookie, replaces);
            }
            return None;
        }
        let text = shown(path.as_os_str()).0;
        if has(AddWatchFlags::IN_MOVED_TO) {
            return self.heed_arrival(event.cookie, path, text, is_directory, now);
        }
        if self.only.is_some() && has(AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM) {
            let is_removed = has(AddWatchFlags::IN_DELETE);
            self.end(if is_removed {
                FileChange::Remove
            } else {
                FileChange::Rename
            });
        } else if has(AddWatchFlags::IN_CREATE) {
            if !self.told.remove(&path) {
                self.events.add(FileChange::Create, text, is_directory, now);
                return (is_directory && self.recursive).then_some(path);
            }
        } else if has(AddWatchFlags::IN_DELETE) {
            self.events.add(FileChange::Remove, text, is_directory, now);
        } else if has(AddWatchFlags::IN_MOVED_FROM) {
            self.events.add_moved(text, is_directory, event.cookie, now);
        } else if has(AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE) {
            self.events.add(FileChange::Write, text, is_directory, now);
        } else if has(AddWatchFlags::IN_ATTRIB) {
            self.events.add(FileChange::Chmod, text, is_directory, now);
        }
        None
    }

    /// Something has a new name.
    fn heed_arrival(
        &mut self,
        cookie: u32,
        path: PathBuf,
        text: String,
        is_directory: bool,
        now: Instant,
    ) -> Option<PathBuf> {
        let settled = self.settling.remove(&cookie);
        if self.only.is_some() {
            if path.as_os_str().is_empty() {
                self.events.add(FileChange::Write, text, is_directory, now);
            }
            return None;
        }
        if settled.is_none()
            && let Some(from) = self.events.complete(&text, cookie, now)
        {
            if is_directory {
                self.rename(Path::new(&from), &path);
            }
            return None;
        }
        if settled != Some(true) {
            self.events
                .add(FileChange::Create, text.clone(), is_directory, now);
        }
        if settled.is_some() && !is_directory {
            self.events.add(FileChange::Write, text, is_directory, now);
        }
        (is_directory && self.recursive).then_some(path)
    }

    /// Something happened to a watched directory itself. But for the root, the one above tells it.
    fn heed_itself(&mut self, event: &InotifyEvent, directory: &Path, now: Instant) {
        let has = |flags| event.mask.intersects(flags);
        let is_root = directory.as_os_str().is_empty();
        if has(AddWatchFlags::IN_IGNORED) {
            self.paths.remove(&event.wd);
        }
        if !is_root {
            return;
        }
        if has(AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_UNMOUNT
            | AddWatchFlags::IN_IGNORED)
        {
            self.end(FileChange::Remove);
        } else if has(AddWatchFlags::IN_MOVE_SELF) {
            // Its path leads somewhere else now, or nowhere.
            self.end(FileChange::Rename);
        } else if has(AddWatchFlags::IN_ATTRIB) && self.only.is_none() {
            self.events.add(FileChange::Chmod, String::new(), true, now);
        }
    }

    /// Tells the last event, and all before it at once.
    fn end(&mut self, change: FileChange) {
        let now = Instant::now();
        self.events
            .add(change, String::new(), self.only.is_none(), now);
        self.events.hurry(now);
        self.is_over = true;
    }

    /// Watches a new directory and those in it, and tells what is there already.
    async fn look_into(&mut self, directory: PathBuf) {
        let (inotify, root) = (self.eyes.get_ref().inotify(), self.root.clone());
        let spare = MAX_WATCHED_DIRECTORIES.saturating_sub(self.paths.len());
        let tell = !directory.as_os_str().is_empty();
        let scanned = self.actor.run(move || {
            let mut scan = Scan::default();
            if spare == 0 {
                scan.is_cut = true;
            } else if !tell || scan.watch(&inotify, &root, &directory).is_ok() {
                // One that cannot be watched is gone again, or the user's to read no more.
                scan.descend(&inotify, &root, directory, spare, tell);
            }
            Ok(scan)
        });
        if let Ok(scan) = scanned.await {
            self.take(scan);
        }
    }

    fn take(&mut self, scan: Scan) {
        let now = Instant::now();
        self.paths.extend(scan.watches);
        for (path, is_directory) in scan.found {
            let text = shown(path.as_os_str()).0;
            self.events.add(FileChange::Create, text, is_directory, now);
            self.told.insert(path);
        }
        if scan.is_cut {
            self.events.overflow(now);
        }
    }

    /// A directory has another path, and so have those in it.
    fn rename(&mut self, from: &Path, to: &Path) {
        for path in self.paths.values_mut() {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() {
                    to.to_owned()
                } else {
                    to.join(rest)
                };
            }
        }
    }

    /// A directory left, and those in it.
    fn forget(&mut self, directory: &Path) {
        let inotify = self.eyes.get_ref().inotify();
        self.paths.retain(|watch, path| {
            let stays = !path.starts_with(directory);
            if !stays {
                // It may be gone, and its watch with it.
                let _ = inotify.rm_watch(*watch);
            }
            stays
        });
    }
}

/// Some of what happened, in order; none when the kernel has no more to say.
async fn read(eyes: &AsyncFd<Eyes>) -> std::io::Result<VecDeque<InotifyEvent>> {
    let mut ready = eyes.readable().await?;
    match ready.get_inner().inotify().read_events() {
        Ok(events) => Ok(events.into()),
        Err(Errno::EAGAIN) => {
            ready.clear_ready();
            Ok(VecDeque::new())
        }
        Err(Errno::EINTR) => Ok(VecDeque::new()),
        Err(errno) => Err(errno.into()),
    }
}

/// What a job found and watches.
#[derive(Default)]
struct Scan {
    watches: Vec<(WatchDescriptor, PathBuf)>,
    /// What is there, and whether it is a directory.
    found: Vec<(PathBuf, bool)>,
    /// Whether there was more than may be watched or told.
    is_cut: bool,
}

impl Scan {
    /// Watches one directory, for which the user must be allowed to read it.
    fn watch(&mut self, inotify: &Inotify, root: &Path, directory: &Path) -> Result<(), Refusal> {
        let watch =
            match inotify.add_watch(&root.join(directory), MASK | AddWatchFlags::IN_DONT_FOLLOW) {
                Ok(watch) => watch,
                Err(errno) => {
                    self.is_cut |= errno == Errno::ENOSPC;
                    return Err(explain("watching the directory", errno));
                }
            };
        self.watches.push((watch, directory.to_owned()));
        Ok(())
    }

    /// Watches all directories below one that is watched.
    fn descend(
        &mut self,
        inotify: &Inotify,
        root: &Path,
        directory: PathBuf,
        spare: usize,
        tell: bool,
    ) {
        let mut rest = vec![directory];
        while let Some(directory) = rest.pop() {
            let whole = root.join(&directory);
            let Ok(dir) = openat(AT_FDCWD, &whole, READ_DIRECTORY, Mode::empty()) else {
                continue;
            };
            let Ok(mut names) = Names::of(&dir) else {
                continue;
            };
            while let Ok(Some((name, kind))) = names.next() {
                if temporary::replaces(&name).is_some() {
                    continue;
                }
                let path = directory.join(&name);
                let is_directory = match kind {
                    Some(kind) => kind == Type::Directory,
                    None => lstat(&whole.join(&name))
                        .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR),
                };
                if tell && self.found.len() >= MAX_FOUND {
                    self.is_cut = true;
                } else if tell {
                    self.found.push((path.clone(), is_directory));
                }
                if !is_directory {
                    continue;
                }
                if self.watches.len() >= spare {
                    self.is_cut = true;
                } else if self.watch(inotify, root, &path).is_ok() {
                    rest.push(path);
                }
            }
        }
    }
}
