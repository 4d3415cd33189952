//! Who the sandbox is: its host name, and what the guest gives up when it has it.
//!
//! A sandbox that was restored from a checkpoint has the host name of the one that was warmed up. Changing it takes a
//! capability of the sandbox's own kernel, which the guest holds where a template has a warm-up, and gives up with this.

use casemate_link::refusal::{Refusal, code};
use casemate_link::warm_up::Identity;
use nix::unistd::{gethostname, sethostname};

use crate::child::refusal;
use crate::rest::Rest;
use crate::{kernel, sys};

/// Gives the sandbox its name, and then gives up the capability for that. A repetition of what is so is success.
pub(crate) fn assume(hostname: &str, rest: &Rest) -> Result<Identity, Refusal> {
    let refused = |doing: &str, error: &dyn std::fmt::Display| {
        refusal(code::BAD_REQUEST, &format!("{doing}: {error}"))
    };
    // Of a kernel that is not the sandbox's own the name is not the guest's to change.
    if kernel::is_gvisor() && name() != hostname {
        sethostname(hostname).map_err(|error| refused("set the host name", &error))?;
    }
    sys::give_up(sys::CAP_SYS_ADMIN).map_err(|error| refused("give up CAP_SYS_ADMIN", &error))?;
    Ok(Identity {
        hostname: name(),
        is_restored: rest.is_over(),
        // What cannot be read may be held.
        is_privileged: sys::holds(sys::CAP_SYS_ADMIN).unwrap_or(true),
    })
}

fn name() -> String {
    let name = gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
