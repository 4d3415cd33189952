//! Does a sandbox run that podman says runs?
//!
//! podman learns of an end from conmon. Where conmon was killed, its record says "running" for ever, and whoever waits for the
//! end waits for ever. So the kernel is asked as well: the process that podman has for a sandbox is gVisor's kernel, which
//! carries the container's id in its command line.

use std::time::Duration;

use tokio::time::sleep;

use crate::host::peer::command_line;
use crate::model::sandbox::SandboxId;

/// Between two looks at a process that is waited for.
const LOOK: Duration = Duration::from_secs(1);

/// How long podman has to say how a sandbox ended whose process is gone: longer than it takes conmon to tell it.
const GRACE: Duration = Duration::from_secs(5);

/// Whether the process that podman has for a sandbox is there and is that sandbox. Without a process (0) podman is believed.
pub(super) fn runs(pid: i64, id: &SandboxId) -> bool {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0) else {
        return true;
    };
    let arguments = command_line(pid).unwrap_or_default();
    arguments.iter().any(|word| word.contains(id.as_str()))
}

/// Resolves when a sandbox's process is gone and podman had its time to say so.
pub(super) async fn gone_untold(pid: i64, id: &SandboxId) {
    while runs(pid, id) {
        sleep(LOOK).await;
    }
    sleep(GRACE).await;
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_process_that_is_gone_or_another_s_is_no_sandbox() {
        let id = SandboxId::try_from("a".repeat(64)).unwrap();
        let ours = i64::from(std::process::id());
        assert!(!runs(ours, &id), "it does not carry the id");
        assert!(!runs(i64::from(i32::MAX), &id), "nobody has that number");
        assert!(runs(0, &id), "podman knows no process");
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo here; read wait", id.as_str()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i64::from(child.id());
        // From here on it is itself.
        let said = child.stdout.as_mut().unwrap();
        said.read_exact(&mut [0; 5]).unwrap();
        assert!(runs(pid, &id));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!runs(pid, &id));
    }
}
