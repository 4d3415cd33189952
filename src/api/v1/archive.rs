//! Directories as tar streams, as they are or compressed with zstd (RFC 8878).

use async_compression::tokio::bufread::{ZstdDecoder, ZstdEncoder};
use casemate_link::file::{ArchiveRequest, ArchiveSummary, UnpackRequest};
use futures_util::{StreamExt, TryStreamExt};
use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use tokio_util::io::{ReaderStream, StreamReader};

use super::files::{pieces, place};
use crate::api::body::Query;
use crate::api::error::Problem;
use crate::api::intake::BodyError;
use crate::api::route::{Call, Reply};

/// Bytes that are made or taken at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// What was unpacked.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Unpacked {
    /// Entries of all kinds.
    entries: u64,
    /// Bytes of regular files.
    bytes: u64,
    /// Devices and other entries that were passed over.
    skipped: u64,
}

/// How an archive is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Zstd,
}

impl Compression {
    fn read(query: &mut Query) -> Result<Self, Problem> {
        match query.text("compression").as_deref() {
            None | Some("none") => Ok(Self::None),
            Some("zstd") => Ok(Self::Zstd),
            Some(_) => Err(Problem::bad_request("compression: none or zstd")),
        }
    }
}

pub(crate) async fn read(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let mut query = Query::read(call, &["path", "user", "compression"])?;
    let compression = Compression::read(&mut query)?;
    let request = ArchiveRequest {
        place: place(&mut query)?,
    };
    let download = call
        .app
        .read_archive(call.principal()?, id, &request)
        .await?;
    let tar = pieces(download);
    Ok(match compression {
        Compression::None => Reply::stream(StatusCode::OK, "application/x-tar", None, tar),
        Compression::Zstd => {
            let tar = StreamReader::new(tar.map_err(std::io::Error::other).boxed());
            let zstd = ReaderStream::with_capacity(ZstdEncoder::new(tar), PIECE_BYTES);
            Reply::stream(StatusCode::OK, "application/zstd", None, zstd)
        }
    })
}

pub(crate) async fn write(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let mut query = Query::read(call, &["path", "user", "compression"])?;
    let compression = Compression::read(&mut query)?;
    let request = UnpackRequest {
        place: place(&mut query)?,
    };
    let body = call.reader()?.map_err(std::io::Error::from);
    let mut upload = call
        .app
        .write_archive(call.principal()?, id, &request)
        .await?;
    let mut tar = match compression {
        Compression::None => body.boxed(),
        Compression::Zstd => {
            // Bounded by the sandbox's disk, whatever a few bytes make of themselves.
            let zstd = ZstdDecoder::new(StreamReader::new(body));
            ReaderStream::with_capacity(zstd, PIECE_BYTES).boxed()
        }
    };
    while let Some(data) = tar.next().await {
        upload.write(data.map_err(unreadable)?).await?;
    }
    let ArchiveSummary {
        entries,
        bytes,
        skipped,
    } = upload.commit().await?;
    let view = Unpacked {
        entries,
        bytes,
        skipped,
    };
    Ok(Reply::json(StatusCode::OK, &view))
}

/// Why an archive's bytes cannot be had: the client's own fault, in one of two ways.
fn unreadable(error: std::io::Error) -> Problem {
    let what = error.to_string();
    match error.downcast::<BodyError>() {
        Ok(error) => error.into(),
        Err(_) => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_archive",
            format!("this is not a zstd stream: {what}"),
        ),
    }
}
