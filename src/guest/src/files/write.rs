//! Writing a file: under a temporary name beside it, which takes its proper name when all is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use casemate_link::file::{FileEntry, FileKind, Nothing, Taken, WriteCondition, WriteRequest};
use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat};
use nix::unistd::{AccessFlags, Gid, Uid, faccessat, fchown};

use super::actor::Actor;
use super::attributes;
use super::carry::{Sink, pour};
use super::channel::Offered;
use super::entry;
use super::error::{Doing, check_attributes, explain, wrong_kind};
use super::place::{READ_FILE, Spot, make_parents, says_directory};
use super::temporary::Temporary;
use crate::child::refusal;
use crate::processes::Processes;
use crate::sys::Attributed;
use crate::transfer::Transfer;
use crate::users::Names;

/// To create a file that nobody else has, under a name that nobody has.
pub(crate) const CREATE: OFlag = OFlag::O_WRONLY
    .union(OFlag::O_CREAT)
    .union(OFlag::O_EXCL)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Mode of a file while it has no proper name.
pub(crate) const PRIVATE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Permission bits of a new file: 0644, as the guest's umask would have it.
const NEW_MODE: u32 = 0o644;

/// Buffers that the kernel takes in one call are many more (`IOV_MAX`); a batch never has so many.
const SLICES: usize = 64;

/// Answers a [`WriteRequest`].
pub(crate) async fn write(
    processes: Rc<Processes>,
    request: WriteRequest,
    transfer: Transfer,
    offered: Offered,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    check_attributes(request.mode, request.metadata.as_ref())?;
    let path = actor.path(&request.place.path);
    let Transfer { mut input, output } = transfer;
    let writing = actor.run(move || Writing::begin(path, request)).await?;
    let channel = offered.open().await;
    let head = Taken {
        answer: Nothing {},
        on_channel: channel.is_some(),
    };
    // When nobody hears it, no input comes either, and that is what ends it.
    output.head(&head).await;
    let writing = match channel {
        Some(channel) => channel.pour(&actor, writing, &mut input, &output).await?,
        None => pour(&actor, writing, &mut input).await?,
    };
    let job = actor.clone();
    let entry = actor.run(move || writing.commit(job.names())).await?;
    output.only(&entry).await;
    processes.rest();
    Ok(())
}

/// A file that is being written.
struct Writing {
    file: File,
    path: PathBuf,
    /// Absent: the bytes are added to the file in its place.
    replacing: Option<Replacing>,
    mode: Option<u32>,
    metadata: Option<BTreeMap<String, String>>,
    only_if: Option<WriteCondition>,
    sync: bool,
}

struct Replacing {
    temporary: Temporary,
    spot: Spot,
    /// Owner and group of the file that was there.
    owner: Option<(u32, u32)>,
    /// The directory, when it must be on the disk too.
    directory: Option<OwnedFd>,
}

impl Writing {
    fn begin(path: PathBuf, request: WriteRequest) -> Result<Self, Refusal> {
        if says_directory(&request.place.path) {
            return Err(wrong_kind("the path means a directory"));
        }
        if request.create_parents {
            make_parents(&path)?;
        }
        if request.append {
            Self::add_to(path, request)
        } else {
            Self::replace(path, request)
        }
    }

    fn replace(path: PathBuf, request: WriteRequest) -> Result<Self, Refusal> {
        let spot = Spot::open_followed(&path)?;
        let old = spot.look()?;
        check(request.only_if.as_ref(), old.as_ref())?;
        let (mut mode, mut metadata) = (request.mode, request.metadata);
        if let Some(old) = &old {
            // A directory's rights are enough to replace a file, but a write is asked for.
            let name = spot.name.as_os_str();
            faccessat(&spot.dir, name, AccessFlags::W_OK, AtFlags::AT_EACCESS)
                .doing("writing the file")?;
            // As the kernel does at a write, set-user-id and set-group-id are not kept.
            mode = mode.or(Some(old.st_mode & 0o777));
            if metadata.is_none() {
                let flags = READ_FILE | OFlag::O_NOFOLLOW;
                let kept = openat(&spot.dir, name, flags, Mode::empty());
                metadata = kept
                    .ok()
                    .map(|file| attributes::read(Attributed::Open(file.as_fd())));
            }
        }
        let directory = request.sync.then(|| spot.open_directory()).transpose()?;
        let (temporary, file) = Temporary::beside(&spot, "creating a file", |dir, name| {
            openat(dir, name, CREATE, PRIVATE)
        })?;
        Ok(Self {
            file: file.into(),
            path,
            mode: mode.or(Some(NEW_MODE)),
            metadata,
            only_if: request.only_if,
            sync: request.sync,
            replacing: Some(Replacing {
                temporary,
                spot,
                owner: old.map(|old| (old.st_uid, old.st_gid)),
                directory,
            }),
        })
    }

    fn add_to(path: PathBuf, request: WriteRequest) -> Result<Self, Refusal> {
        let old = match fstatat(AT_FDCWD, &path, AtFlags::empty()) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(explain("looking at the file", errno)),
        };
        check(request.only_if.as_ref(), old.as_ref())?;
        let create = match request.only_if {
            None => OFlag::O_CREAT,
            Some(WriteCondition::Absent) => OFlag::O_CREAT | OFlag::O_EXCL,
            Some(_) => OFlag::empty(),
        };
        let flags = OFlag::O_WRONLY
            | OFlag::O_APPEND
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC
            | create;
        let mode = Mode::from_bits_truncate(NEW_MODE);
        let file = openat(AT_FDCWD, &path, flags, mode).doing("opening the file")?;
        check_kind(&fstat(&file).doing("looking at the file")?)?;
        Ok(Self {
            file: file.into(),
            path,
            replacing: None,
            mode: request.mode,
            metadata: request.metadata,
            only_if: None,
            sync: request.sync,
        })
    }

    /// Puts the file in its place.
    fn commit(self, names: &Names) -> Result<FileEntry, Refusal> {
        let Self { file, path, .. } = self;
        if let Some(metadata) = &self.metadata {
            attributes::replace(Attributed::Open(file.as_fd()), metadata)?;
        }
        if let Some(Replacing {
            owner: Some((uid, gid)),
            ..
        }) = &self.replacing
        {
            let now = fstat(&file).doing("looking at the file")?;
            if (now.st_uid, now.st_gid) != (*uid, *gid) {
                // Who may not give it away is its owner now, as with any other program that replaces a file.
                let _ = fchown(&file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
            }
        }
        if let Some(mode) = self.mode {
            fchmod(&file, Mode::from_bits_truncate(mode)).doing("setting the mode")?;
        }
        if self.sync {
            file.sync_all().doing("writing the file to the disk")?;
        }
        if let Some(Replacing {
            temporary,
            spot,
            directory,
            ..
        }) = self.replacing
        {
            let replace = self.only_if != Some(WriteCondition::Absent);
            let settled = temporary.settle(&spot, replace, || {
                check(self.only_if.as_ref(), spot.look()?.as_ref())
            });
            settled.map_err(|refused| {
                if !replace && refused.code == code::FILE_EXISTS {
                    unmet()
                } else {
                    refused
                }
            })?;
            if let Some(directory) = directory {
                File::from(directory)
                    .sync_all()
                    .doing("writing the directory to the disk")?;
            }
        }
        let stat = fstat(&file).doing("looking at the file")?;
        let metadata = entry::metadata(&stat, Attributed::Open(file.as_fd()));
        Ok(entry::describe(
            Path::new(&path),
            &stat,
            None,
            metadata,
            names,
        ))
    }
}

impl Sink for Writing {
    const OPENS: bool = false;

    fn take(&mut self, data: &[Bytes]) -> Result<(), Refusal> {
        for some in data.chunks(SLICES) {
            let mut slices = [IoSlice::new(&[]); SLICES];
            for (slice, piece) in slices.iter_mut().zip(some) {
                *slice = IoSlice::new(piece);
            }
            let mut slices = slices.get_mut(..some.len()).unwrap_or_default();
            IoSlice::advance_slices(&mut slices, 0);
            while !slices.is_empty() {
                match self.file.write_vectored(slices) {
                    Ok(0) => return Err(explain("writing the file", Errno::EIO)),
                    Ok(count) => IoSlice::advance_slices(&mut slices, count),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).doing("writing the file"),
                }
            }
        }
        Ok(())
    }
}

/// Whether a file may be replaced: what it is, and whether the condition holds.
fn check(only_if: Option<&WriteCondition>, old: Option<&FileStat>) -> Result<(), Refusal> {
    let holds = match (only_if, old) {
        (None, _)
        | (Some(WriteCondition::Absent), None)
        | (Some(WriteCondition::Present), Some(_)) => true,
        (Some(WriteCondition::Etag(tags)), Some(old)) => tags.contains(&entry::etag(old)),
        _ => false,
    };
    if !holds {
        return Err(unmet());
    }
    old.map_or(Ok(()), check_kind)
}

fn check_kind(stat: &FileStat) -> Result<(), Refusal> {
    match entry::kind(stat) {
        FileKind::File => Ok(()),
        _ => Err(wrong_kind("only regular files can be written")),
    }
}

fn unmet() -> Refusal {
    refusal(
        code::CONDITION_FAILED,
        "the condition of the write does not hold",
    )
}
