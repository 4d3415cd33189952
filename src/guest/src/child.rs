//! Making one process: its words, environment and streams, and the names of what can go wrong.

use std::collections::BTreeMap;
use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use casemate_link::process::{LoginShell, ProcessSpec, PtySize};
use casemate_link::refusal::{Refusal, code};
use nix::errno::Errno;

use crate::ends::{self, Ends, Opened};
use crate::users::Identity;
use crate::vfork::{self, Failure, Plan, Step};
use crate::{boot, sys};

/// The `PATH` of a process that is given none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The `TERM` of a process on a terminal that is given none: what today's terminals understand.
const TERM: &str = "xterm-256color";

/// The shell of an account whose own cannot be run.
const SHELL: &str = "/bin/sh";

/// A process about to be made.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) argv: Vec<String>,
    /// Over the defaults.
    env: BTreeMap<String, String>,
    /// Absent: the user's home, or `/` when that cannot be entered.
    cwd: Option<String>,
    identity: Identity,
    /// Whether to become the identity, or to stay who the guest is.
    switch: bool,
    pty: Option<PtySize>,
    has_input: bool,
    open_files: u64,
}

/// What the guest has of a process that runs.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) ends: Ends,
    /// Where it started.
    pub(crate) cwd: String,
}

impl Launch {
    /// What a valid specification asks for.
    pub(crate) fn new(
        spec: ProcessSpec,
        mut identity: Identity,
        switch: bool,
        open_files: u64,
    ) -> Self {
        let argv = match spec.shell {
            None => spec.argv,
            Some(LoginShell { command }) => {
                if !is_program(&identity.shell) {
                    SHELL.clone_into(&mut identity.shell);
                }
                let mut words = vec![identity.shell.clone(), "-l".to_owned()];
                if let Some(command) = command {
                    words.extend(["-c".to_owned(), command]);
                }
                words
            }
        };
        Self {
            argv,
            env: spec.env,
            cwd: spec.cwd,
            identity,
            switch,
            pty: spec.pty,
            has_input: spec.stdin,
            open_files,
        }
    }

    /// Makes the process, in a session and process group of its own. Takes milliseconds, in which the guest stands still.
    ///
    /// # Errors
    /// A [`Refusal`] that says which step failed.
    pub(crate) fn spawn(self) -> Result<(i32, Launched), Refusal> {
        let owner = self.switch.then_some(self.identity.uid);
        let opened = as_user(owner, || match self.pty {
            Some(size) => ends::terminal(size, self.has_input),
            None => ends::pipes(self.has_input),
        });
        let opened = opened.and_then(Opened::watch);
        let (ends, stdio) = opened.map_err(|error| no_streams(&error))?;
        let mut plan = self
            .plan(stdio)
            .map_err(|_| refusal(code::BAD_SPEC, "a text holds a NUL byte"))?;
        let (pid, entered) = vfork::spawn(&plan).map_err(explain)?;
        let cwd = plan.workdirs.drain(entered..).next().unwrap_or_default();
        let cwd = cwd.to_string_lossy().into_owned();
        Ok((pid, Launched { ends, cwd }))
    }

    fn plan(self, stdio: [OwnedFd; 3]) -> Result<Plan, NulError> {
        let Identity {
            name,
            uid,
            gid,
            groups,
            home,
            shell,
        } = self.identity;
        let workdirs = match self.cwd {
            Some(cwd) => vec![cwd],
            None => vec![home.clone(), "/".to_owned()],
        };
        let defaults = [
            ("PATH", PATH.to_owned()),
            ("HOME", home),
            ("USER", name.clone()),
            ("LOGNAME", name),
            ("SHELL", shell),
            ("LANG", "C.UTF-8".to_owned()),
        ];
        let terminal = self.pty.map(|_| ("TERM", TERM.to_owned()));
        let mut env: BTreeMap<String, String> = defaults
            .into_iter()
            .chain(terminal)
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        env.extend(self.env);
        let path = env.get("PATH").map_or(PATH, String::as_str);
        let program = self.argv.first().map_or("", String::as_str);
        Ok(Plan {
            programs: c_strings(candidates(program, path))?,
            argv: c_strings(self.argv)?,
            env: c_strings(env.iter().map(|(name, value)| format!("{name}={value}")))?,
            workdirs: c_strings(workdirs)?,
            shed: if uid == 0 {
                Vec::new()
            } else {
                boot::kept().to_vec()
            },
            identity: self.switch.then_some((uid, gid, groups)),
            stdio,
            has_terminal: self.pty.is_some(),
            open_files: self.open_files,
        })
    }
}

/// Whether a path is a file that somebody may run. Whether this user may, running it tells.
fn is_program(path: &str) -> bool {
    const ANYBODY: u32 = 0o111;
    std::fs::metadata(path)
        .is_ok_and(|file| path.starts_with('/') && file.is_file() && file.mode() & ANYBODY != 0)
}

/// Says why a process has no streams: there are too many, or a sandbox lacks what they are made of.
fn no_streams(error: &io::Error) -> Refusal {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let code = match errno {
        Errno::ENOMEM => code::OUT_OF_MEMORY,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC | Errno::EAGAIN => code::TOO_MANY_PROCESSES,
        _ => code::SPAWN_FAILED,
    };
    refusal(code, &format!("opening its streams: {}", errno.desc()))
}

/// Where a program may be: where its slash says, else in each directory of `path`, of which an empty one is the working
/// directory (execvp(3)).
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let within = |dir: &str| match dir {
        "" => format!("./{program}"),
        dir => format!("{dir}/{program}"),
    };
    path.split(':').map(within).collect()
}

fn c_strings<T: Into<Vec<u8>>>(
    texts: impl IntoIterator<Item = T>,
) -> Result<Vec<CString>, NulError> {
    texts.into_iter().map(CString::new).collect()
}

/// Makes something with a user as its owner: a pipe or terminal of root's could not be opened again by a user's program that writes to
/// `/dev/stdout`, and the guest may not give it away. Nobody can touch the guest meanwhile: whether a process may be
/// signalled or traced goes by its real and saved user, too, and those stay root.
pub(crate) fn as_user<T>(user: Option<u32>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(user) = user else { return work() };
    let me = nix::unistd::geteuid().as_raw();
    // Of this thread only: others may be at work as other users.
    sys::set_thread_uid(user)?;
    let result = work();
    if sys::set_thread_uid(me).is_err() {
        // The saved user allows it, so this cannot be; a guest that is stuck as a user must not go on.
        std::process::abort();
    }
    result
}

/// Says for people, and by code for programs, why a process could not be made.
fn explain((step, errno): Failure) -> Refusal {
    let (code, what) = match (step, errno) {
        (Step::Workdir, _) => (code::BAD_WORKDIR, "entering the working directory"),
        (Step::Identity, _) => (code::USER_NOT_ALLOWED, "becoming the user"),
        (Step::Session, _) => (code::SPAWN_FAILED, "opening its session"),
        (Step::Limits, _) => (code::SPAWN_FAILED, "limiting it"),
        (_, Errno::ENOMEM) => (code::OUT_OF_MEMORY, "making the process"),
        (Step::Fork, _) | (_, Errno::EAGAIN) => (code::TOO_MANY_PROCESSES, "making the process"),
        (_, Errno::ENOENT | Errno::ENOTDIR) => (code::NOT_FOUND, "running the program"),
        (_, Errno::EACCES | Errno::EPERM) => (code::PERMISSION_DENIED, "running the program"),
        (_, Errno::E2BIG) => (code::BAD_SPEC, "running the program"),
        _ => (code::SPAWN_FAILED, "running the program"),
    };
    refusal(code, &format!("{what}: {}", errno.desc()))
}

/// A refusal in words.
pub(crate) fn refusal(code: &str, message: &str) -> Refusal {
    Refusal {
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_as_execvp_does() {
        assert_eq!(candidates("ls", "/a:/b"), ["/a/ls", "/b/ls"]);
        assert_eq!(candidates("ls", ":/b"), ["./ls", "/b/ls"]);
        assert_eq!(candidates("./ls", "/a"), ["./ls"]);
    }

    #[test]
    fn each_failure_has_its_code() {
        let code = |step, errno| explain((step, errno)).code;
        assert_eq!(code(Step::Workdir, Errno::ENOENT), code::BAD_WORKDIR);
        assert_eq!(code(Step::Identity, Errno::EPERM), code::USER_NOT_ALLOWED);
        assert_eq!(code(Step::Fork, Errno::EAGAIN), code::TOO_MANY_PROCESSES);
        assert_eq!(code(Step::Fork, Errno::ENOMEM), code::OUT_OF_MEMORY);
        assert_eq!(code(Step::Exec, Errno::ENOENT), code::NOT_FOUND);
        assert_eq!(code(Step::Exec, Errno::EACCES), code::PERMISSION_DENIED);
        assert_eq!(code(Step::Exec, Errno::ENOEXEC), code::SPAWN_FAILED);
    }
}
