//! The guest's ends of a process's streams: pipes, or one terminal.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use casemate_link::process::PtySize;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{sys, terminal};

/// A descriptor that does not block, and whose readiness is heard of.
pub(crate) type Watched = Rc<AsyncFd<OwnedFd>>;

/// What the guest holds of a process.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Absent for a process without input.
    pub(crate) stdin: Option<Watched>,
    pub(crate) stdout: Watched,
    /// Absent for a process on a terminal.
    pub(crate) stderr: Option<Watched>,
    /// The terminal that the others are, if they are one.
    pub(crate) terminal: Option<Watched>,
    /// The program's end of it, held so that a program that closes it may open it again.
    pub(crate) line: Option<OwnedFd>,
}

/// Both ends before they are watched: the guest's input and outputs, and the child's three.
#[derive(Debug)]
pub(crate) struct Opened {
    ours: Ours,
    theirs: [OwnedFd; 3],
}

#[derive(Debug)]
enum Ours {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        master: OwnedFd,
        line: OwnedFd,
        has_input: bool,
    },
}

impl Opened {
    /// Watches the guest's ends; returns them and the child's.
    pub(crate) fn watch(self) -> io::Result<(Ends, [OwnedFd; 3])> {
        let ends = match self.ours {
            Ours::Pipes {
                stdin,
                stdout,
                stderr,
            } => Ends {
                stdin: stdin.map(|fd| watch(fd, Interest::WRITABLE)).transpose()?,
                stdout: watch(stdout, Interest::READABLE)?,
                stderr: Some(watch(stderr, Interest::READABLE)?),
                terminal: None,
                line: None,
            },
            Ours::Terminal {
                master,
                line,
                has_input,
            } => {
                let master = watch(master, Interest::READABLE | Interest::WRITABLE)?;
                Ends {
                    stdin: has_input.then(|| Rc::clone(&master)),
                    stdout: Rc::clone(&master),
                    stderr: None,
                    terminal: Some(master),
                    line: Some(line),
                }
            }
        };
        Ok((ends, self.theirs))
    }
}

/// Opens three pipes, or as many as it has streams.
pub(crate) fn pipes(has_input: bool) -> io::Result<Opened> {
    let (child_in, stdin) = if has_input {
        let (read, write) = io::pipe()?;
        (read.into(), Some(write.into()))
    } else {
        (nothing()?, None)
    };
    let (stdout, child_out) = io::pipe()?;
    let (stderr, child_err) = io::pipe()?;
    let ours = Ours::Pipes {
        stdin,
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    Ok(Opened {
        ours,
        theirs: [child_in, child_out.into(), child_err.into()],
    })
}

/// Opens a terminal (pty(7)) of this size, which belongs to whoever the guest is at the moment.
pub(crate) fn terminal(size: PtySize, has_input: bool) -> io::Result<Opened> {
    let pair = openpty(&terminal::window(size), None)?;
    // One thread: nothing is started in between that would inherit them.
    for fd in [&pair.master, &pair.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    if let Ok(mut settings) = tcgetattr(&pair.slave) {
        // So that erasing takes a whole character. A kernel that cannot do that has a terminal all the same.
        settings.input_flags |= InputFlags::IUTF8;
        let _ = tcsetattr(&pair.slave, SetArg::TCSANOW, &settings);
    }
    let child_in = if has_input {
        pair.slave.try_clone()?
    } else {
        nothing()?
    };
    let theirs = [child_in, pair.slave.try_clone()?, pair.slave.try_clone()?];
    let ours = Ours::Terminal {
        master: pair.master,
        line: pair.slave,
        has_input,
    };
    Ok(Opened { ours, theirs })
}

/// An input that is at its end.
fn nothing() -> io::Result<OwnedFd> {
    File::open("/dev/null").map(OwnedFd::from)
}

fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(Rc::new(sys::watch(fd, interest)?))
}
