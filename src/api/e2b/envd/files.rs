//! `/files`: bytes of files, each request with the path in its query, and many at once in a form.

use std::collections::BTreeMap;
use std::pin::Pin;

use async_compression::tokio::bufread::{GzipDecoder, GzipEncoder};
use bytes::Bytes;
use casemate_link::file::{Place, WriteRequest};
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use tokio_util::io::{ReaderStream, StreamReader};

use super::{id, place, user};
use crate::api::body::Query;
use crate::api::error::Problem;
use crate::api::intake::BodyError;
use crate::api::route::{Call, Reply};
use crate::api::v1::files::{self, metadata, pieces};

/// Most files of one form.
const MAX_FILES: usize = 1000;

/// What a query may hold; what is signed was looked at before.
const QUERY: &[&str] = &["path", "username", "signature", "signature_expiration"];

/// A file that was written.
#[derive(Serialize)]
struct Written {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

pub(in crate::api) async fn read(call: &Call) -> Result<Reply, Problem> {
    let mut query = Query::read(call, QUERY)?;
    let place = asked(&mut query, &call.headers)?;
    let place =
        place.ok_or_else(|| Problem::bad_request("path: this query parameter is missing"))?;
    let reply = files::read_at(call, id(call)?, &place).await?;
    if !wants_gzip(&call.headers) || reply.response.status() != StatusCode::OK || call.is_head {
        return Ok(reply);
    }
    // As it comes, and so without a length.
    let request = casemate_link::file::ReadRequest { place, range: None };
    let download = call
        .app
        .read_file(call.principal()?, id(call)?, &request)
        .await?;
    let bytes = pieces(download)
        .map_err(|error| std::io::Error::other(Problem::from(error).detail().to_owned()));
    let packed = GzipEncoder::with_quality(
        StreamReader::new(Box::pin(bytes)),
        async_compression::Level::Fastest,
    );
    let reply = Reply::stream(
        StatusCode::OK,
        "application/octet-stream",
        None,
        ReaderStream::new(packed),
    );
    Ok(reply
        .with(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))
        .with(header::VARY, HeaderValue::from_static("accept-encoding")))
}

pub(in crate::api) async fn write(call: &Call) -> Result<Reply, Problem> {
    let mut query = Query::read(call, QUERY)?;
    let place = asked(&mut query, &call.headers)?;
    let said = call
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let reader = call.reader()?;
    let length = reader.left_bytes();
    let is_packed = is_packed(&call.headers)?;
    let body: Body = if is_packed {
        let bytes = StreamReader::new(reader.map_err(std::io::Error::from));
        Box::pin(ReaderStream::new(GzipDecoder::new(bytes)))
    } else {
        Box::pin(reader.map_err(std::io::Error::from))
    };
    let boundary = said.and_then(|said| multer::parse_boundary(said).ok());
    let written = if let Some(boundary) = boundary {
        form(call, multer::Multipart::new(body, boundary), place).await?
    } else {
        let missing = "path: this query parameter is missing, and the body is no form";
        let place = place.ok_or_else(|| Problem::bad_request(missing))?;
        vec![one(call, place, body, length.filter(|_| !is_packed)).await?]
    };
    Ok(Reply::json(StatusCode::OK, &written))
}

type Body = Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

/// The files of a form, in its order. Each that was whole is there, even if a later one fails.
async fn form(
    call: &Call,
    mut form: multer::Multipart<'_>,
    at: Option<Place>,
) -> Result<Vec<Written>, Problem> {
    let mut written = Vec::new();
    while let Some(field) = form.next_field().await.map_err(bad_form)? {
        if field.name() != Some("file") {
            continue;
        }
        if written.len() == MAX_FILES {
            return Err(Problem::bad_request(format!(
                "a form has at most {MAX_FILES} files"
            )));
        }
        let place = match (&at, field.file_name()) {
            (Some(place), _) => place.clone(),
            (None, Some(name)) => place(name, user_of(call)?),
            (None, None) => {
                return Err(Problem::bad_request(
                    "a file of the form has no name, and the query no path",
                ));
            }
        };
        let body = field.map_err(|error| match error {
            multer::Error::StreamReadFailed(inner) => match inner.downcast::<std::io::Error>() {
                Ok(error) => *error,
                Err(other) => std::io::Error::other(other),
            },
            other => std::io::Error::new(std::io::ErrorKind::InvalidData, other),
        });
        written.push(one(call, place, body, None).await?);
    }
    if written.is_empty() {
        return Err(Problem::bad_request(
            "the form has no field of the name file",
        ));
    }
    Ok(written)
}

async fn one(
    call: &Call,
    place: Place,
    body: impl Stream<Item = Result<Bytes, std::io::Error>>,
    length: Option<u64>,
) -> Result<Written, Problem> {
    let request = WriteRequest {
        place,
        mode: None,
        append: false,
        create_parents: true,
        sync: false,
        only_if: None,
        // An upload replaces what an earlier one said of the file.
        metadata: Some(metadata(&call.headers)?.unwrap_or_else(BTreeMap::new)),
    };
    let mut upload = call
        .app
        .write_file(call.principal()?, id(call)?, &request, length)
        .await?;
    let mut body = std::pin::pin!(body);
    while let Some(piece) = body.next().await {
        upload.write(piece.map_err(bad_body)?).await?;
    }
    let entry = upload.commit().await?;
    let name = entry.path.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(Written {
        path: entry.path,
        name,
        r#type: "file",
        metadata: entry.metadata,
    })
}

/// The file that a query names, and who acts.
fn asked(query: &mut Query, headers: &HeaderMap) -> Result<Option<Place>, Problem> {
    let user = match query.text("username").filter(|name| !name.is_empty()) {
        Some(name) => Some(name),
        None => user(headers)?,
    };
    Ok(query.text("path").map(|path| place(&path, user)))
}

fn user_of(call: &Call) -> Result<Option<String>, Problem> {
    let mut query = Query::read(call, QUERY)?;
    match query.text("username").filter(|name| !name.is_empty()) {
        Some(name) => Ok(Some(name)),
        None => user(&call.headers),
    }
}

/// Whether the client wants the bytes packed, and nothing else: what many send by habit is not worth the time it takes to pack.
fn wants_gzip(headers: &HeaderMap) -> bool {
    let asked = headers
        .get(header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok());
    asked.is_some_and(|asked| asked.trim().eq_ignore_ascii_case("gzip"))
        && !headers.contains_key(header::RANGE)
}

fn is_packed(headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else {
        return Ok(false);
    };
    match value.to_str().unwrap_or("").to_ascii_lowercase().as_str() {
        "gzip" => Ok(true),
        "identity" => Ok(false),
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "Content-Encoding: gzip, or none",
        )),
    }
}

fn bad_form(error: multer::Error) -> Problem {
    if let multer::Error::StreamReadFailed(inner) = error {
        return match inner.downcast::<std::io::Error>() {
            Ok(error) => bad_body(*error),
            Err(_) => Problem::bad_request("the form was cut short"),
        };
    }
    Problem::bad_request(format!("the body is not a form as it says: {error}"))
}

fn bad_body(error: std::io::Error) -> Problem {
    match error.downcast::<BodyError>() {
        Ok(error) => error.into(),
        Err(error) => Problem::bad_request(format!("the body is not what it says it is: {error}")),
    }
}
