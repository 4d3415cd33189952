//! A program on this machine that we did not write, or that drives one: told what to do by lines of JSON, each answered by a line.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bench::bench;

/// Longer than any of them waits for anything itself.
const PATIENCE: Duration = Duration::from_secs(120);

/// One of them, which runs.
pub struct Peer {
    name: String,
    child: Child,
    tell: Option<ChildStdin>,
    said: mpsc::Receiver<String>,
}

impl Peer {
    /// A program of `tests/peers`, by its file: of Node or of Debian's Python, with the packages that are listed there.
    pub fn start(file: &str) -> Self {
        Self::launch(&peers().join(file), &bench().peers)
    }

    /// A program of Node or of Python in a directory where its packages are.
    pub fn launch(program: &Path, installed: &Path) -> Self {
        let name = program.file_name().unwrap().to_str().unwrap().to_owned();
        let mut command = if program.extension().is_some_and(|end| end == "mjs") {
            // Modules are looked for beside the program.
            let beside = installed.join(&name);
            std::fs::copy(program, &beside).unwrap();
            let mut command = Command::new("node");
            command.arg(beside);
            command
        } else {
            let mut command = Command::new("/usr/bin/python3");
            command.arg(program);
            command.env("PYTHONPATH", installed.join("python"));
            command.env("PYTHONDONTWRITEBYTECODE", "1");
            command
        };
        let mut child = command
            .env("TMPDIR", &bench().dir)
            .current_dir(installed)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let tell = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, said) = mpsc::channel();
        // Ends with the program's output.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            name,
            child,
            tell,
            said,
        }
    }

    /// Tells it to do something; what it answers. It panics where that is an error.
    pub fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.tell.as_mut().unwrap(), "{command}").unwrap();
        // Libraries say this and that as well.
        let line = loop {
            let line = self.said.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{}: {command}: {error}", self.name));
            if line.starts_with('{') {
                break line;
            }
        };
        let answer: Value = serde_json::from_str(&line).unwrap();
        if let Some(error) = answer["error"].as_str() {
            panic!("{}: {command}: {error}", self.name);
        }
        answer
    }
}

impl Drop for Peer {
    /// It ends when nobody tells it anything any more, with all that it started; by force where it does not.
    fn drop(&mut self) {
        self.tell = None;
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            let _ = self.said.recv_timeout(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node that is new enough for every peer, whatever the machine's own is.
pub fn node() -> PathBuf {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/node_modules");
    let node = |machine: &str| modules.join(format!("node-linux-{machine}/bin/node"));
    [node("x64"), node("arm64")]
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("node"))
}

/// Where their programs are.
pub fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}
