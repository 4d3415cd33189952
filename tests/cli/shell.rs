//! `casemate shell`, at a real terminal.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use nix::sys::signal::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use super::door::{Door, PATIENCE, Talk};
use super::{ID, interrupt};

/// A terminal: what is typed and seen, and the side that programs have.
pub struct Terminal {
    ours: OwnedFd,
    theirs: File,
}

impl Terminal {
    pub fn open(rows: u16, cols: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let theirs = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name)
            .unwrap();
        let terminal = Self { ours, theirs };
        terminal.resize(rows, cols);
        terminal
    }

    pub fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.ours, size).unwrap();
    }

    pub fn stdio(&self) -> Stdio {
        self.theirs.as_fd().try_clone_to_owned().unwrap().into()
    }

    pub fn theirs(&self) -> &File {
        &self.theirs
    }

    /// Whether keys are edited and made signals, as in a shell's own prompt.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.theirs).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.theirs).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    pub fn press(&self, keys: &[u8]) {
        let mut ours = File::from(self.ours.try_clone().unwrap());
        ours.write_all(keys).unwrap();
    }

    /// What is seen, piece by piece, from now on.
    pub fn watch(&self) -> Seen {
        let mut ours = File::from(self.ours.try_clone().unwrap());
        let (sender, pieces) = mpsc::channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = ours.read(&mut piece) {
                if sender.send(piece[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Seen {
            pieces,
            all: Vec::new(),
        }
    }
}

pub struct Seen {
    pieces: Receiver<Vec<u8>>,
    all: Vec<u8>,
}

impl Seen {
    /// Waits until this is seen.
    pub fn wait(&mut self, wanted: &str) {
        while !self.text().contains(wanted) {
            match self.pieces.recv_timeout(PATIENCE) {
                Ok(piece) => self.all.extend(piece),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no {wanted:?} in {:?}", self.text())
                }
            }
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.all).into_owned()
    }
}

/// The shell, with the terminal as its controlling one, as at a prompt.
fn spawn(door: &Door, terminal: &Terminal, arguments: &[&str]) -> Child {
    let casemate = door.command(arguments);
    let mut command = Command::new("setsid");
    command.arg("--ctty").arg(casemate.get_program());
    command.args(casemate.get_args());
    command.env_clear().env("TERM", "vt220");
    for (name, value) in casemate.get_envs() {
        command.env(name, value.unwrap());
    }
    command.env("PATH", "/usr/bin:/bin");
    command.stdin(terminal.stdio());
    command.stdout(terminal.stdio());
    command.stderr(terminal.stdio());
    command.spawn().unwrap()
}

fn end(mut child: Child) -> ExitStatus {
    child.wait().unwrap()
}

/// A door behind which a shell was opened, and `talk` goes on.
fn shell(talk: impl Fn(Talk) + Send + Sync + 'static) -> Door {
    Door::open(move |heard, stream| {
        assert_eq!(heard.line, format!("GET /v1/sessions/{ID}/exec"));
        let mut line = Talk::begin(heard, stream);
        let start = json!({"pty": {"rows": 33, "cols": 101}, "env": {"TERM": "vt220"}});
        assert_eq!(line.hear_json(), start);
        line.say(&json!({"type": "started", "pid": 7}));
        line.put(1, b"ready$ ");
        talk(line);
    })
}

#[test]
fn every_key_goes_to_the_shell_and_the_terminal_is_given_back() {
    let (typed, keys) = mpsc::channel();
    let door = shell(move |mut talk| {
        typed.send(talk.hear_bytes(6)).unwrap();
        talk.exit(&json!({"exit_code": 6}));
    });
    let terminal = Terminal::open(33, 101);
    let mut seen = terminal.watch();
    assert!(terminal.is_cooked());
    let child = spawn(&door, &terminal, &["shell", ID]);
    seen.wait("ready$ ");
    assert!(terminal.is_raw());
    terminal.press(b"a\x03\x04\x1a\x1c\r");
    assert_eq!(keys.recv_timeout(PATIENCE).unwrap(), b"a\x03\x04\x1a\x1c\r");
    assert_eq!(end(child).code(), Some(6));
    assert!(terminal.is_cooked());
}

#[test]
fn a_terminal_that_changes_its_size_is_told() {
    let (told, sizes) = mpsc::channel();
    let door = shell(move |mut talk| {
        told.send(talk.hear_json()).unwrap();
        talk.exit(&json!({"exit_code": 0}));
    });
    let terminal = Terminal::open(33, 101);
    let mut seen = terminal.watch();
    let child = spawn(&door, &terminal, &["shell", ID]);
    seen.wait("ready$ ");
    terminal.resize(50, 132);
    let size = json!({"type": "resize", "rows": 50, "cols": 132});
    assert_eq!(sizes.recv_timeout(PATIENCE).unwrap(), size);
    assert_eq!(end(child).code(), Some(0));
}

#[test]
fn the_escape_at_the_beginning_of_a_line_hangs_up() {
    let (typed, keys) = mpsc::channel();
    let door = shell(move |mut talk| {
        typed.send(talk.hear_bytes(6)).unwrap();
        assert!(talk.hear().is_none());
        typed.send(Vec::new()).unwrap();
    });
    let terminal = Terminal::open(33, 101);
    let mut seen = terminal.watch();
    let child = spawn(&door, &terminal, &["shell", ID]);
    seen.wait("ready$ ");
    terminal.press(b"x~.\r~~\r");
    assert_eq!(keys.recv_timeout(PATIENCE).unwrap(), b"x~.\r~\r");
    terminal.press(b"~.");
    assert_eq!(keys.recv_timeout(PATIENCE).unwrap(), b"");
    seen.wait("hung up");
    assert_eq!(end(child).code(), Some(130));
    assert!(terminal.is_cooked());
}

#[test]
fn the_terminal_is_given_back_on_every_other_way_out() {
    for (signal, code) in [
        (Some(Signal::SIGTERM), 143),
        (Some(Signal::SIGINT), 130),
        (Some(Signal::SIGHUP), 143),
        (None, 69),
    ] {
        let (go, gate) = mpsc::channel::<()>();
        let gate = std::sync::Mutex::new(gate);
        let door = shell(move |_| {
            // Then the line is cut.
            let _ = gate.lock().unwrap().recv_timeout(PATIENCE);
        });
        let terminal = Terminal::open(33, 101);
        let mut seen = terminal.watch();
        let child = spawn(&door, &terminal, &["shell", ID]);
        seen.wait("ready$ ");
        assert!(terminal.is_raw());
        match signal {
            Some(signal) => interrupt(&child, signal),
            None => go.send(()).unwrap(),
        }
        assert_eq!(end(child).code(), Some(code), "{signal:?}");
        assert!(terminal.is_cooked(), "{signal:?}");
    }
}

#[test]
fn a_shell_that_cannot_be_opened_leaves_the_terminal_as_it_was() {
    let door = Door::open(|_, stream| super::door::say_problem(stream, 404, "session_not_found"));
    let terminal = Terminal::open(33, 101);
    let mut seen = terminal.watch();
    let child = spawn(&door, &terminal, &["shell", ID]);
    seen.wait("session_not_found");
    assert_eq!(end(child).code(), Some(1));
    assert!(terminal.is_cooked());
}
