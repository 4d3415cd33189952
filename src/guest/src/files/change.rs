//! Small changes: making a directory or a link, setting what is known of a file.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use casemate_link::file::{FileEntry, LinkRequest, Made, MkdirRequest, SetRequest, check_path};
use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::actor::Actor;
use super::error::{Doing, bad, check_attributes, check_mode, explain};
use super::place::make_parents;
use super::{attributes, entry};
use crate::child::refusal;
use crate::processes::Processes;
use crate::sys::Attributed;
use crate::transfer::Transfer;

/// Permission bits of a directory for which none are given.
const NEW_DIRECTORY: u32 = 0o755;

/// Answers a [`MkdirRequest`].
pub(crate) async fn mkdir(
    processes: Rc<Processes>,
    request: MkdirRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    check_mode(request.mode)?;
    let path = actor.path(&request.place.path);
    let job = actor.clone();
    let made = actor
        .run(move || {
            if request.parents {
                make_parents(&path)?;
            }
            let mode = Mode::from_bits_truncate(request.mode.unwrap_or(NEW_DIRECTORY));
            let created = match mkdirat(AT_FDCWD, &path, mode) {
                Ok(()) => true,
                Err(Errno::EEXIST) if path.is_dir() => false,
                Err(errno) => return Err(explain("making the directory", errno)),
            };
            if created && request.mode.is_some() {
                // Past the umask, which is for those who do not say what they want.
                set_mode(&path, mode)?;
            }
            let entry = entry::at(&path, true, job.names())?;
            Ok(Made { entry, created })
        })
        .await?;
    transfer.output.only(&made).await;
    Ok(())
}

/// Answers a [`LinkRequest`].
pub(crate) async fn link(
    processes: Rc<Processes>,
    request: LinkRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    check_path("target", &request.target).map_err(bad)?;
    let path = actor.path(&request.place.path);
    let job = actor.clone();
    let entry = actor
        .run(move || {
            symlinkat(request.target.as_str(), AT_FDCWD, &path).doing("making the link")?;
            entry::at(&path, false, job.names())
        })
        .await?;
    transfer.output.only(&entry).await;
    Ok(())
}

/// Answers a [`SetRequest`].
pub(crate) async fn set(
    processes: Rc<Processes>,
    request: SetRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    check_attributes(request.mode, request.metadata.as_ref())?;
    let path = actor.path(&request.place.path);
    let job = actor.clone();
    let entry = actor.run(move || change(&job, &path, &request)).await?;
    transfer.output.only(&entry).await;
    Ok(())
}

fn change(actor: &Actor, path: &Path, request: &SetRequest) -> Result<FileEntry, Refusal> {
    let names = actor.names();
    let unknown = || refusal(code::UNKNOWN_USER, "the sandbox has no such owner or group");
    let owner = request.owner.as_deref();
    let owner = owner
        .map(|user| names.find_user(user).ok_or_else(unknown))
        .transpose()?;
    let group = request.group.as_deref();
    let group = group
        .map(|group| names.find_group(group).ok_or_else(unknown))
        .transpose()?;
    // Before the mode and the owner, after which the user may not be allowed to any more.
    if let Some(metadata) = &request.metadata {
        let whole = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| refusal(code::BAD_SPEC, "the path holds a NUL byte"))?;
        attributes::replace(Attributed::Followed(&whole), metadata)?;
    }
    // Before the owner too, for the same reason; and after it, because a new owner takes some bits away.
    let mode = request.mode.map(Mode::from_bits_truncate);
    mode.map_or(Ok(()), |mode| set_mode(path, mode))?;
    if owner.is_some() || group.is_some() {
        let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
        fchownat(AT_FDCWD, path, owner, group, AtFlags::empty()).doing("setting the owner")?;
        if let Some(mode) = mode.filter(|mode| mode.bits() & 0o6000 != 0) {
            set_mode(path, mode)?;
        }
    }
    entry::at(path, true, names)
}

fn set_mode(path: &Path, mode: Mode) -> Result<(), Refusal> {
    fchmodat(AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink).doing("setting the mode")
}
