//! Is whoever dialled a sandbox's link really that sandbox's first process, inside gVisor?
//!
//! Two independent witnesses. The host's kernel names the process on the other end of the socket
//! (`SO_PEERCRED`): gVisor's gofer, which dials on behalf of its sandbox and carries the
//! container's id in its command line; without gVisor it would be the guest itself. And the guest,
//! before any other program has run, reports the kernel log that it sees, which gVisor begins with
//! a line that no Linux prints.

use super::{Dialler, RuntimeError};
use crate::host::peer::command_line;
use crate::model::sandbox::SandboxId;

/// How gVisor's gofer names itself.
const GOFER: &str = "runsc-gofer";

/// What gVisor's kernel log begins with.
const BANNER: &str = "Starting gVisor";

/// The gofer's process, which is the sandbox's own.
pub(super) fn check(id: &SandboxId, dialler: &Dialler) -> Result<i32, RuntimeError> {
    let arguments = dialler
        .pid
        .and_then(|pid| command_line(pid).ok())
        .unwrap_or_default();
    judge(id, &arguments, &dialler.kernel_banner)?;
    Ok(dialler.pid.unwrap_or_default())
}

fn judge(id: &SandboxId, arguments: &[String], banner: &str) -> Result<(), RuntimeError> {
    let differs = |field, found: &str, wanted: String| RuntimeError::NotAsAsked {
        field,
        found: found.chars().take(80).collect(),
        wanted,
    };
    let program = arguments.first().map_or("nobody", String::as_str);
    if program != GOFER {
        return Err(differs("dialling process", program, GOFER.to_owned()));
    }
    let bundle = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--bundle="))
        .unwrap_or("none");
    if !bundle.split('/').any(|part| part == id.as_str()) {
        return Err(differs("dialling sandbox", bundle, id.to_string()));
    }
    if !banner.contains(BANNER) {
        return Err(differs(
            "kernel of the sandbox",
            banner,
            "gVisor".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> SandboxId {
        SandboxId::try_from(digit.repeat(64)).unwrap()
    }

    fn gofer_of(id: &SandboxId) -> Vec<String> {
        vec![
            GOFER.to_owned(),
            "--root=/run/runsc".to_owned(),
            format!("--bundle=/store/overlay-containers/{id}/userdata"),
        ]
    }

    const GVISOR: &str = "<6>[    0.000000] Starting gVisor...";

    #[test]
    fn the_sandbox_s_own_gofer_and_kernel_are_believed() {
        assert!(judge(&id("a"), &gofer_of(&id("a")), GVISOR).is_ok());
    }

    #[test]
    fn nobody_else_is() {
        let field = |arguments: &[String], banner| match judge(&id("a"), arguments, banner) {
            Err(RuntimeError::NotAsAsked { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let guest = ["/run/casemate/guest".to_owned()];
        assert_eq!(field(&guest, GVISOR), "dialling process");
        assert_eq!(field(&[], GVISOR), "dialling process");
        assert_eq!(field(&gofer_of(&id("b")), GVISOR), "dialling sandbox");
        assert_eq!(
            field(&gofer_of(&id("a")), "Linux version 6.12"),
            "kernel of the sandbox"
        );
    }
}
