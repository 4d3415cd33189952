//! `casemate credential …`: what a team needs to reach other things, over the HTTP API.
//!
//! A value comes from a file, from standard input or from a terminal that shows nothing of it; never from an argument or the environment, which
//! others can read. None is ever shown: casemated gives none out.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use ::http::header::{IF_MATCH, IF_NONE_MATCH};
use ::http::{HeaderValue, Method};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::base::exit::Exit;
use casemate::base::secret::Secret;
use casemate::model::credential::{CredentialValue, MAX_VALUE_BYTES};
use casemate::model::name::Name;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Context;
use super::process::terminal::Raw;
use super::session::wire::Page;
use super::stop::Stop;
use crate::failure::Failure;
use crate::http::Call;
use crate::output::{self, unblocked};
use crate::screen::or_absent;

/// What to do with credentials.
#[derive(Subcommand)]
pub enum Command {
    /// Set a credential's value from a file, standard input or a prompt
    Set(Set),
    /// List the team's credentials, by name, without their values
    List,
    /// Remove a credential
    Rm {
        /// Which
        name: Name,
        /// Only if this is its version
        #[arg(long, value_name = "N")]
        if_version: Option<u32>,
    },
}

/// Options of `casemate credential set`.
#[derive(Args)]
pub struct Set {
    /// Which
    name: Name,
    /// The file with the value; without it, or with -, standard input, or a prompt where that is a terminal
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Keep a newline at the end, which is no part of the value otherwise
    #[arg(long)]
    exact: bool,
    /// What it is for; everybody in the team can read it
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Only if this is the version that there is
    #[arg(long, value_name = "N", conflicts_with = "new")]
    if_version: Option<u32>,
    /// Only if there is none of this name
    #[arg(long)]
    new: bool,
}

/// A credential, as people are shown.
#[derive(Deserialize)]
struct CredentialView {
    name: String,
    version: u32,
    description: String,
    changed_at: String,
    changed_by: String,
    used_at: Option<String>,
    used_for: Option<String>,
}

/// What is sent.
#[derive(Serialize)]
struct Put<'a> {
    value_base64: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
}

impl Command {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Set(set) => set.execute(context).await,
            Self::List => {
                let answer = client.call(Call::get("/v1/credentials", &[])).await?;
                if context.json {
                    return output::json(&client.read::<Value>(&answer)?);
                }
                let page: Page<CredentialView> = client.read(&answer)?;
                let rows: Vec<_> = page.items.into_iter().map(row).collect();
                let headings = [
                    "NAME",
                    "VERSION",
                    "CHANGED",
                    "BY",
                    "LAST USED",
                    "FOR",
                    "ABOUT",
                ];
                output::table(&headings, &rows)
            }
            Self::Rm { name, if_version } => {
                let mut call = Call::new(Method::DELETE, format!("/v1/credentials/{name}"));
                if let Some(version) = if_version {
                    call = call.with(IF_MATCH, tag(version)?);
                }
                client.call(call).await?;
                if context.json {
                    return output::json(&json!({"name": name}));
                }
                Ok(())
            }
        }
    }
}

impl Set {
    async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let value = self.value().await?;
        let value_base64 = Secret::new(STANDARD.encode(value.expose()));
        let body = serde_json::to_vec(&Put {
            value_base64: value_base64.expose(),
            description: self.description.as_deref(),
        })
        .map_err(|error| Failure::new(Exit::Software, format!("cannot write JSON: {error}")))?;
        let path = format!("/v1/credentials/{}", self.name);
        let mut call = Call::new(Method::PUT, path).json(body);
        if let Some(version) = self.if_version {
            call = call.with(IF_MATCH, tag(version)?);
        }
        if self.new {
            call = call.with(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let answer = client.call(call).await?;
        if context.json {
            return output::json(&client.read::<Value>(&answer)?);
        }
        let credential: CredentialView = client.read(&answer)?;
        output::line(&credential.version.to_string())
    }

    async fn value(&self) -> Result<CredentialValue, Failure> {
        let file = self.file.as_ref().filter(|path| path.as_os_str() != "-");
        let bytes = match file {
            Some(path) => {
                let file = tokio::fs::File::open(path).await;
                let file = file.map_err(|error| unread(path, &error))?;
                whole(file, path).await?
            }
            None if std::io::stdin().is_terminal() => {
                return checked(&prompt(&self.name).await?);
            }
            None => {
                let path = Path::new("standard input");
                let stdin = unblocked(std::io::stdin()).map_err(|error| unread(path, &error))?;
                whole(stdin, path).await?
            }
        };
        if self.exact {
            return checked(&bytes);
        }
        checked(&without_newline(&bytes))
    }
}

fn unread(path: &Path, error: &std::io::Error) -> Failure {
    Failure::io(format_args!("read {}", path.display()), error)
}

fn checked(bytes: &Secret<Vec<u8>>) -> Result<CredentialValue, Failure> {
    CredentialValue::new(bytes.expose().clone()).map_err(|error| Failure::usage(error.to_string()))
}

/// Reads up to a byte more than may be.
async fn whole(from: impl AsyncRead + Unpin, path: &Path) -> Result<Secret<Vec<u8>>, Failure> {
    // With room for all of it: nothing is left where it grew from.
    let mut bytes = Vec::with_capacity(MAX_VALUE_BYTES + 64);
    let most = MAX_VALUE_BYTES as u64 + 3;
    let read = from.take(most).read_to_end(&mut bytes).await;
    let bytes = Secret::new(bytes);
    read.map_err(|error| unread(path, &error))?;
    Ok(bytes)
}

/// What editors and `echo` put at the end is no part of a value.
fn without_newline(bytes: &Secret<Vec<u8>>) -> Secret<Vec<u8>> {
    let text = bytes.expose();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    Secret::new(text.to_vec())
}

/// Asks at the terminal, which shows nothing of what is typed, and is as before whatever ends it.
async fn prompt(name: &Name) -> Result<Secret<Vec<u8>>, Failure> {
    let mut stop = Stop::listen()?;
    let raw = Raw::begin("name a file")?;
    output::progress(&format!("Value of {name} (it is not shown): "));
    let path = Path::new("the terminal");
    let mut keys = unblocked(std::io::stdin()).map_err(|error| unread(path, &error))?;
    let mut typed = Typed::default();
    let answer = loop {
        let mut piece = [0; 256];
        let read = tokio::select! {
            biased;
            exit = stop.asked() => break Err(exit),
            read = keys.read(&mut piece) => read.map_err(|error| unread(path, &error))?,
        };
        let some = piece.get(..read).unwrap_or_default();
        let ended = typed.take(some);
        piece.fill(0);
        match ended {
            _ if read == 0 => break Err(Exit::Interrupted),
            Some(End::Entered) => break Ok(typed.0),
            Some(End::Cancelled) => break Err(Exit::Interrupted),
            None => {}
        }
    };
    drop(raw);
    output::progress("");
    answer.map_err(|exit| Failure::new(exit, "nothing was set"))
}

/// What was typed so far.
struct Typed(Secret<Vec<u8>>);

impl Default for Typed {
    fn default() -> Self {
        Self(Secret::new(Vec::new()))
    }
}

/// How typing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Entered,
    Cancelled,
}

impl Typed {
    /// Takes keys as a terminal in raw mode sends them.
    fn take(&mut self, keys: &[u8]) -> Option<End> {
        let mut bytes = Vec::with_capacity(MAX_VALUE_BYTES + 1);
        bytes.extend_from_slice(self.0.expose());
        let mut end = None;
        for key in keys {
            match key {
                b'\r' | b'\n' => end = Some(End::Entered),
                // Ctrl-C, and Ctrl-D.
                3 | 4 => end = Some(End::Cancelled),
                // Backspace takes a whole character.
                8 | 127 => while bytes.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
                // Ctrl-U.
                21 => {
                    bytes.fill(0);
                    bytes.clear();
                }
                key if bytes.len() <= MAX_VALUE_BYTES => bytes.push(*key),
                _ => {}
            }
            if end.is_some() {
                break;
            }
        }
        self.0 = Secret::new(bytes);
        end
    }
}

/// A version as an entity tag (RFC 9110 section 8.8.3).
fn tag(version: u32) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(&format!("\"{version}\""))
        .map_err(|error| Failure::new(Exit::Software, format!("cannot write a header: {error}")))
}

fn row(credential: CredentialView) -> Vec<String> {
    let description = Some(credential.description).filter(|text| !text.is_empty());
    vec![
        credential.name,
        credential.version.to_string(),
        credential.changed_at,
        credential.changed_by,
        or_absent(credential.used_at),
        or_absent(credential.used_for),
        or_absent(description),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_is_no_part_of_a_value() {
        let cut = |text: &str| {
            let cut = without_newline(&Secret::new(text.as_bytes().to_vec()));
            String::from_utf8(cut.expose().clone()).unwrap()
        };
        assert_eq!(cut("a\n"), "a");
        assert_eq!(cut("a\r\n"), "a");
        assert_eq!(cut("a\n\n"), "a\n");
        assert_eq!(cut("a"), "a");
        assert_eq!(cut("\n"), "");
    }

    #[test]
    fn keys_are_typed_mended_entered_or_given_up() {
        let typed = |keys: &[&[u8]]| {
            let mut typed = Typed::default();
            let ends: Vec<_> = keys.iter().map(|keys| typed.take(keys)).collect();
            (typed.0.expose().clone(), ends.last().copied().flatten())
        };
        assert_eq!(
            typed(&[b"se", b"same\r"]),
            (b"sesame".into(), Some(End::Entered))
        );
        assert_eq!(typed(&["a\u{e9}\x7f".as_bytes()]), (b"a".into(), None));
        assert_eq!(typed(&[b"\x7f\x7fa\x15b"]), (b"b".into(), None));
        assert_eq!(typed(&[b"a\x03b\r"]), (b"a".into(), Some(End::Cancelled)));
        assert_eq!(typed(&[b"\x04"]).1, Some(End::Cancelled));
    }
}
