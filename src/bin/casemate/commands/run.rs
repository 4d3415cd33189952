//! `casemate run`: what was asked for, read and bounded before anything happens.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::base::exit::Exit;
use casemate::base::id::SessionId;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;
use tokio::io::AsyncReadExt;

use super::Context;
use super::pair::{Variable, environment, own, variable};
use super::program::{Life, Program};
use super::session::Wanted;
use super::session::wire::NewSession;
use crate::failure::Failure;
use crate::output::unblocked;

/// Longest body that the API takes: 1 MiB.
const MAX_BODY_BYTES: usize = 1 << 20;

/// How much longer than the program the client waits: the daemon ends a program that ignores its
/// time limit, and may first have to find its guest again.
const SLACK: Duration = Duration::from_secs(60);

/// How long the client waits when the daemon's own time limit counts: the longest that a daemon
/// grants by default.
const LONGEST: Duration = Duration::from_secs(3600);

/// How much longer than its program a session of ours may live: it has to come up first, and must
/// not stay when this client is killed.
const SESSION_SLACK_S: u64 = 180;

/// Answers hold two outputs, and JSON may need six bytes for one of theirs.
const ANSWER_FACTOR: u64 = 12;

/// Room in an answer for everything but output.
const ANSWER_ROOM: u64 = 64 << 10;

/// Output that is expected when the daemon's own bound counts: sixteen times its default.
const EXPECTED_OUTPUT_BYTES: u64 = 16 << 20;

/// Options of `casemate run`.
#[derive(Args)]
#[command(after_long_help = "\
The program's output comes when it has ended, byte by byte as it was written. What
stands on standard input is sent whole, up to 1 MiB less what the request needs.

Without --session a new session is made and ended again, on Ctrl-C and SIGTERM as
well; a second Ctrl-C leaves it to its own deadline. With --timeout S and without
--keep that deadline is S + 180 seconds, so that nothing stays when casemate is killed.

casemate ends with the program's exit code, with 128 + N when signal N ended it, and
with 124 when its time was over; other codes are under `casemate --help`.")]
pub struct Run {
    #[command(flatten)]
    wanted: Wanted,
    /// Run in this session instead of a new one, and leave it running
    #[arg(long, value_name = "ID", conflicts_with_all = ["template", "name", "labels", "volumes", "keep"])]
    session: Option<SessionId>,
    /// Do not end the new session afterwards
    #[arg(long)]
    keep: bool,
    /// Give the program a variable; K alone hands on the value of this environment, which keeps it
    /// out of the process list
    #[arg(short, long = "env", value_name = "K=V", value_parser = variable)]
    env: Vec<Variable>,
    /// Where the program starts
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Who the program runs as inside the sandbox
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// End the program after so many seconds
    #[arg(long, value_name = "S", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    timeout: Option<u64>,
    /// Keep so many bytes of each of its outputs
    #[arg(long, value_name = "BYTES")]
    max_output: Option<u64>,
    /// Do not send standard input; it is sent when it is not a terminal
    #[arg(short, long)]
    no_stdin: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    argv: Vec<String>,
}

/// The body of a run.
#[derive(Serialize)]
struct Request {
    argv: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(flatten)]
    stdin: Option<Stdin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_bytes: Option<u64>,
}

/// Standard input as the API takes it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Stdin {
    stdin: String,
    stdin_encoding: &'static str,
}

impl Run {
    pub async fn execute(self, context: &Context) -> Result<u8, Failure> {
        let client = context.client()?;
        let stdin = if self.no_stdin || std::io::stdin().is_terminal() {
            Vec::new()
        } else {
            read_stdin().await?
        };
        let body = body(&Request {
            argv: self.argv,
            env: environment(self.env, own)?,
            cwd: self.cwd,
            user: self.user,
            stdin: (!stdin.is_empty()).then(|| Stdin::of(stdin)),
            timeout_s: self.timeout,
            max_output_bytes: self.max_output,
        })?;
        let life = match self.session {
            Some(id) => Life::Theirs(id),
            None => Life::Ours {
                new: Box::new(NewSession {
                    timeout_s: self
                        .timeout
                        .filter(|_| !self.keep)
                        .map(|secs| secs.saturating_add(SESSION_SLACK_S)),
                    ..NewSession::from(self.wanted)
                }),
                keep: self.keep,
            },
        };
        let program = Program {
            body,
            deadline: self
                .timeout
                .map_or(LONGEST, Duration::from_secs)
                .saturating_add(SLACK),
            max_answer_bytes: answer_bound(self.max_output),
        };
        program.run(context, &client, life).await
    }
}

fn answer_bound(max_output: Option<u64>) -> usize {
    let bytes = max_output
        .unwrap_or(EXPECTED_OUTPUT_BYTES)
        .saturating_mul(ANSWER_FACTOR)
        .saturating_add(ANSWER_ROOM);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

async fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_BODY_BYTES).unwrap_or(u64::MAX);
    let failed = |error| Failure::io("read standard input", &error);
    let stdin = unblocked(std::io::stdin()).map_err(failed)?;
    let read = stdin.take(most + 1).read_to_end(&mut bytes).await;
    read.map_err(failed)?;
    if bytes.len() > MAX_BODY_BYTES {
        return Err(too_much("standard input has more than"));
    }
    Ok(bytes)
}

fn body(request: &Request) -> Result<Vec<u8>, Failure> {
    let body = serde_json::to_vec(request)
        .map_err(|error| Failure::new(Exit::Software, format!("cannot write JSON: {error}")))?;
    if body.len() > MAX_BODY_BYTES {
        return Err(too_much(
            "the command, its variables and its standard input need more than",
        ));
    }
    Ok(body)
}

fn too_much(what: &str) -> Failure {
    Failure::usage(format!(
        "{what} the {MAX_BODY_BYTES} bytes that one run can be sent; let the program fetch its input in the session, or send it in parts"
    ))
}

impl Stdin {
    /// In the shorter of both encodings.
    fn of(bytes: Vec<u8>) -> Self {
        let encoded = STANDARD.encode(&bytes);
        match String::from_utf8(bytes) {
            Ok(text) if escaped_length(&text) <= encoded.len() => Self {
                stdin: text,
                stdin_encoding: "utf-8",
            },
            _ => Self {
                stdin: encoded,
                stdin_encoding: "base64",
            },
        }
    }
}

/// How long the text is inside a JSON string (RFC 8259 section 7, as `serde_json` writes it).
fn escaped_length(text: &str) -> usize {
    let length = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    text.bytes().map(length).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_sent_as_text_and_bytes_as_bytes() {
        assert_eq!(Stdin::of(b"a\n".to_vec()).stdin_encoding, "utf-8");
        assert_eq!(Stdin::of(vec![0xff]).stdin, "/w==");
        assert_eq!(Stdin::of(vec![0; 1000]).stdin_encoding, "base64");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_bound() {
        let request = |bytes: usize| Request {
            argv: vec!["cat".into()],
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            stdin: Some(Stdin::of(vec![b'a'; bytes])),
            timeout_s: None,
            max_output_bytes: None,
        };
        assert!(body(&request(MAX_BODY_BYTES - 100)).is_ok());
        let failure = body(&request(MAX_BODY_BYTES)).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("1048576"));
    }

    #[test]
    fn nothing_is_sent_that_was_not_asked_for() {
        let request = Request {
            argv: vec!["true".into()],
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            stdin: None,
            timeout_s: None,
            max_output_bytes: None,
        };
        assert_eq!(body(&request).unwrap(), br#"{"argv":["true"]}"#);
    }

    #[test]
    fn the_bound_of_an_answer_does_not_wrap() {
        assert_eq!(answer_bound(Some(u64::MAX)), usize::MAX);
        assert!(answer_bound(Some(1 << 20)) > 12 << 20);
    }

    proptest! {
        #[test]
        fn the_length_of_escaped_text_is_that_of_json(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(escaped_length(&text) + 2, json.len());
        }
    }
}
