//! `casemate volume …`: what the team keeps beyond its sessions, over the HTTP API.

use std::io::{Cursor, IsTerminal};
use std::path::{Path, PathBuf};

use ::http::Method;
use casemate::base::id::SessionId;
use casemate::model::name::Name;
use casemate::model::volume::VolumeMode;
use clap::Subcommand;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::ReaderStream;

use super::Context;
use super::session::wire::{self, NewSession, Page, SessionView, VolumeOfSession};
use super::stop::Stop;
use crate::failure::Failure;
use crate::http::{Answer, Call, Client, Outgoing};
use crate::output::{self, tell, unblocked};
use crate::screen::{or_absent, size};

/// Longer than the daemon's programs may take to make a file system.
const CREATE_DEADLINE: std::time::Duration = std::time::Duration::from_secs(150);

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// How a zstd stream begins (RFC 8878 section 3.1.1), and a gzip stream (RFC 1952 section 2.3.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What to do with volumes.
#[derive(Subcommand)]
pub enum Command {
    /// Make a volume and print its name
    Create {
        /// A name that no other volume of the team has
        name: Name,
        /// How large its file system is, itself included: bytes, or with K, M, G or T
        #[arg(value_parser = bytes)]
        size: u64,
    },
    /// List the team's volumes, by name
    List,
    /// Show one volume, with the sessions that have it
    Show {
        /// Which
        name: Name,
    },
    /// Remove volumes that no session has, with all that is in them
    Rm {
        /// Which
        #[arg(required = true)]
        names: Vec<Name>,
    },
    /// Unpack an archive into a volume, through a session that is ended again
    Fill {
        /// Which
        name: Name,
        /// A tar archive, as it is or compressed with zstd; - reads standard input
        archive: PathBuf,
        /// The recipe of that session; `base` when absent
        #[arg(long, value_name = "T")]
        template: Option<Name>,
        /// Who unpacks inside the sandbox, and owns what is unpacked
        #[arg(short, long, value_name = "USER")]
        user: Option<String>,
    },
}

/// A volume, as far as people are shown.
#[derive(Deserialize)]
struct VolumeView {
    id: String,
    name: String,
    size_bytes: u64,
    used_bytes: Option<u64>,
    created_at: String,
    created_by: String,
    attached: Vec<HolderView>,
}

/// A session that has it.
#[derive(Deserialize)]
struct HolderView {
    session: String,
    mode: String,
}

/// What was unpacked.
#[derive(Deserialize)]
struct Unpacked {
    entries: u64,
    bytes: u64,
    skipped: u64,
}

impl Command {
    /// The exit code.
    pub async fn execute(self, context: &Context) -> Result<u8, Failure> {
        let client = context.client()?;
        match self {
            Self::Create {
                name,
                size: size_bytes,
            } => {
                let body = json!({"name": name, "size_bytes": size_bytes}).to_string();
                let call = Call::new(Method::POST, "/v1/volumes").json(body);
                let answer = client.call(call.within(CREATE_DEADLINE)).await?;
                if context.json {
                    output::json(&client.read::<Value>(&answer)?)?;
                } else {
                    let volume: VolumeView = client.read(&answer)?;
                    output::line(&volume.name)?;
                }
            }
            Self::List => {
                let answer = client.call(Call::get("/v1/volumes", &[])).await?;
                if context.json {
                    output::json(&client.read::<Value>(&answer)?)?;
                } else {
                    let page: Page<VolumeView> = client.read(&answer)?;
                    let rows: Vec<_> = page.items.into_iter().map(row).collect();
                    output::table(&["NAME", "SIZE", "ON DISK", "ATTACHED", "CREATED"], &rows)?;
                }
            }
            Self::Show { name } => {
                let call = Call::get(&format!("/v1/volumes/{name}"), &[]);
                let answer = client.call(call).await?;
                if context.json {
                    output::json(&client.read::<Value>(&answer)?)?;
                } else {
                    output::fields(&details(client.read(&answer)?))?;
                }
            }
            Self::Rm { names } => {
                for name in &names {
                    let call = Call::new(Method::DELETE, format!("/v1/volumes/{name}"));
                    client.call(call).await?;
                }
                if context.json {
                    let items: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
                    output::json(&json!({"items": items}))?;
                }
            }
            Self::Fill {
                name,
                archive,
                template,
                user,
            } => {
                let filling = Filling {
                    client: &client,
                    name,
                    user,
                };
                return filling.execute(context, &archive, template).await;
            }
        }
        Ok(0)
    }
}

/// A volume that is being filled.
struct Filling<'a> {
    client: &'a Client,
    name: Name,
    user: Option<String>,
}

impl Filling<'_> {
    async fn execute(
        &self,
        context: &Context,
        archive: &Path,
        template: Option<Name>,
    ) -> Result<u8, Failure> {
        // Before a session is made: most mistakes are here.
        let source = Source::open(archive).await?;
        let mut stop = Stop::listen()?;
        let new = NewSession {
            template,
            volumes: vec![VolumeOfSession {
                name: self.name.clone(),
                mode: VolumeMode::Rw,
            }],
            ..NewSession::default()
        };
        let answer = wire::create(self.client, &new).await?;
        let id = self.client.read::<SessionView>(&answer)?.id;
        let unpacked = tokio::select! {
            biased;
            exit = stop.asked() => Err(exit),
            unpacked = self.unpack(id, source) => Ok(unpacked),
        };
        // Only when the session has ended everything is in the volume, and others can have it.
        let ended = tokio::select! {
            biased;
            exit = stop.asked() => {
                tell(&format!("{id} may not have ended; it stays up to its deadline"));
                return Ok(exit.code());
            }
            ended = wire::stop(self.client, id) => ended,
        };
        let answer = match unpacked {
            Ok(unpacked) => unpacked?,
            Err(exit) => return Ok(exit.code()),
        };
        ended?;
        if context.json {
            output::json(&self.client.read::<Value>(&answer)?)?;
            return Ok(0);
        }
        let Unpacked {
            entries,
            bytes,
            skipped,
        } = self.client.read(&answer)?;
        tell(&format!(
            "{entries} entries with {} are in {}; {skipped} were passed over",
            size(bytes),
            self.name
        ));
        Ok(0)
    }

    async fn unpack(&self, id: SessionId, source: Source) -> Result<Answer, Failure> {
        let mut query = vec![("path", format!("/volumes/{}", self.name))];
        query.extend(self.user.clone().map(|user| ("user", user)));
        if source.is_zstd {
            query.push(("compression", "zstd".to_owned()));
        }
        let call = Call::ask(Method::PUT, &format!("/v1/sessions/{id}/archive"), &query);
        let outgoing = Outgoing {
            pieces: ReaderStream::with_capacity(source.reader, PIECE_BYTES).boxed(),
            length_bytes: None,
        };
        self.client.send(call, outgoing).await
    }
}

/// An archive that is being read.
struct Source {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    is_zstd: bool,
}

impl Source {
    /// Opens it, and looks how it begins.
    async fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let mut file = if path == Path::new("-") {
            if std::io::stdin().is_terminal() {
                return Err(Failure::usage(
                    "standard input is a terminal; name an archive, or pipe one in",
                ));
            }
            unblocked(std::io::stdin())
        } else {
            tokio::fs::File::open(path).await
        }
        .map_err(|error| Failure::io(format_args!("read {shown}"), &error))?;
        let mut start = Vec::new();
        (&mut file)
            .take(ZSTD.len() as u64)
            .read_to_end(&mut start)
            .await
            .map_err(|error| Failure::io(format_args!("read {shown}"), &error))?;
        if start.starts_with(&GZIP) {
            return Err(Failure::usage(format!(
                "{shown} is compressed with gzip, which casemated does not unpack: gunzip -c {shown} | casemate volume fill NAME -"
            )));
        }
        Ok(Self {
            is_zstd: start == ZSTD,
            reader: Box::new(Cursor::new(start).chain(file)),
        })
    }
}

/// Reads a size: bytes, or with a letter that stands for a power of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let letter = text.chars().last().unwrap_or_default();
    let power = match letter.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let digits = if power == 0 {
        text
    } else {
        text.strip_suffix(letter).unwrap_or(text)
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "write bytes, or a number with K, M, G or T".to_owned())?;
    number
        .checked_mul(1 << power)
        .ok_or_else(|| "is too large".to_owned())
}

fn attached(holders: &[HolderView]) -> String {
    let all: Vec<_> = holders
        .iter()
        .map(|holder| format!("{} ({})", holder.session, holder.mode))
        .collect();
    or_absent((!all.is_empty()).then(|| all.join(" ")))
}

fn row(volume: VolumeView) -> Vec<String> {
    vec![
        volume.name,
        size(volume.size_bytes),
        or_absent(volume.used_bytes.map(size)),
        attached(&volume.attached),
        volume.created_at,
    ]
}

fn details(volume: VolumeView) -> Vec<(&'static str, String)> {
    vec![
        ("name", volume.name),
        ("id", volume.id),
        ("size", size(volume.size_bytes)),
        ("on disk", or_absent(volume.used_bytes.map(size))),
        ("attached", attached(&volume.attached)),
        ("created", volume.created_at),
        ("created by", volume.created_by),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_bytes_or_a_number_with_a_letter() {
        assert_eq!(bytes("16777216"), Ok(16 << 20));
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("2g"), Ok(2 << 30));
        for wrong in ["", "M", "1.5G", "-1", "1GB", "99999999999T"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
