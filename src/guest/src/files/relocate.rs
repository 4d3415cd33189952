//! Giving a file another name, also on another file system.

use std::path::Path;
use std::rc::Rc;

use casemate_link::file::{FileKind, MoveRequest, check_path};
use casemate_link::refusal::Refusal;
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};

use super::actor::{Abandoned, Actor};
use super::error::{bad, wrong_kind};
use super::place::{Spot, make_parents, says_directory};
use super::temporary::{alone, misfit};
use super::{copy, entry, remove};
use crate::processes::Processes;
use crate::transfer::Transfer;

/// Answers a [`MoveRequest`].
pub(crate) async fn relocate(
    processes: Rc<Processes>,
    request: MoveRequest,
    transfer: Transfer,
) -> Result<(), Refusal> {
    let actor = Actor::admit(&processes, &request.place)?;
    check_path("to", &request.to).map_err(bad)?;
    let (from, to) = (actor.path(&request.place.path), actor.path(&request.to));
    let job = actor.clone();
    let output = transfer.output;
    let entry = actor
        .run_for(&output, move |abandoned| {
            if request.create_parents {
                make_parents(&to)?;
            }
            change_name(&from, &to, &request, abandoned)?;
            entry::at(&to, false, job.names())
        })
        .await?;
    output.only(&entry).await;
    processes.rest();
    Ok(())
}

fn change_name(
    from: &Path,
    to: &Path,
    request: &MoveRequest,
    abandoned: &Abandoned,
) -> Result<(), Refusal> {
    let (old, new) = (Spot::open(from)?, Spot::open(to)?);
    let is_directory = old
        .look()?
        .is_some_and(|stat| entry::kind(&stat) == FileKind::Directory);
    if says_directory(&request.to) && !is_directory {
        return Err(wrong_kind("the new path means a directory"));
    }
    let flags = if request.overwrite {
        RenameFlags::empty()
    } else {
        RenameFlags::RENAME_NOREPLACE
    };
    let renamed = {
        let _alone = alone()?;
        let (from, to) = (old.name.as_os_str(), new.name.as_os_str());
        renameat2(&old.dir, from, &new.dir, to, flags)
    };
    match renamed {
        Ok(()) => Ok(()),
        Err(Errno::EXDEV) => {
            // Named only when it is whole, and the original goes last: whatever happens, one of them is there.
            let copy = copy::beside(&old, &new, abandoned)?;
            copy.settle(&new, request.overwrite, || abandoned.check())?;
            remove::tree(&old.dir, &old.name, &Abandoned::default())
        }
        Err(errno) => Err(misfit("moving it", errno)),
    }
}
