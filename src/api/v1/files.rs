//! Files on the wire: bytes with parts, entity tags and metadata; everything else as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use casemate_link::daemon::Watch;
use casemate_link::file::{
    FileChange, FileEntry, FileEvent, FileKind, LinkRequest, ListRequest, MkdirRequest,
    MoveRequest, Place, ReadRange, ReadRequest, RemoveRequest, SetRequest, StatRequest,
    WatchRequest, WriteCondition, WriteRequest,
};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::body::{self, Query};
use crate::api::error::Problem;
use crate::api::range::{self, ETag, Selection};
use crate::api::route::{BoxError, Call, Reply};
use crate::api::sse::{self, SseEvent};
use crate::app::{AppError, Download};
use crate::base::clock::Timestamp;
use crate::base::id::SessionId;
use crate::model::principal::Principal;
use crate::session::activity::Use;
use crate::session::guest::failed;

/// What the names of headers with metadata begin with.
const METADATA: &str = "x-metadata-";

/// Entries of a list when the client does not say.
const LISTED: u32 = 1000;

/// How often a file that changes under our eyes is looked at again before its part is given up.
const LOOKS: u32 = 3;

/// A file.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FileView {
    /// Its absolute path in the sandbox.
    path: String,
    /// Whether `path` names it exactly; a name that is not UTF-8 cannot be written in JSON.
    is_exact: bool,
    kind: FileKindView,
    size_bytes: u64,
    /// Permission bits, octal.
    mode: String,
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    modified_at: Timestamp,
    /// Changes with the content; what `If-Match` and its like take, in quotation marks.
    etag: String,
    /// Where a symbolic link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// What a client gave it, as `X-Metadata-…`.
    metadata: BTreeMap<String, String>,
}

/// What a file is.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FileKindView {
    File,
    Directory,
    Symlink,
    Other,
}

/// What is in a directory, parents before what is in them.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FilePage {
    entries: Vec<FileView>,
    /// Whether there are more: than were asked for, or than one answer can hold.
    truncated: bool,
}

/// A directory to make.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakeDirectory {
    path: String,
    /// Who acts inside; `user` when absent.
    user: Option<String>,
    /// Permission bits, octal; `0755` when absent.
    mode: Option<String>,
    /// Whether directories on the way are made too.
    #[serde(default = "yes")]
    parents: bool,
}

/// A directory that is there now.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct MadeView {
    /// Whether it was not there before.
    created: bool,
    entry: FileView,
}

/// A file to give another name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MoveFile {
    path: String,
    /// Its new path.
    to: String,
    /// Who acts inside; `user` when absent.
    user: Option<String>,
    /// Whether a file that is there may be replaced.
    #[serde(default)]
    overwrite: bool,
    /// Whether directories on the way are made.
    #[serde(default = "yes")]
    parents: bool,
}

/// A symbolic link to make.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakeLink {
    path: String,
    /// Where it leads.
    target: String,
    /// Who acts inside; `user` when absent.
    user: Option<String>,
}

/// What to change of a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetFile {
    path: String,
    /// Who acts inside; `user` when absent.
    user: Option<String>,
    /// Permission bits, octal.
    mode: Option<String>,
    /// Name or number of the owner.
    owner: Option<String>,
    /// Name or number of the group.
    group: Option<String>,
    /// Metadata, instead of what it has.
    metadata: Option<BTreeMap<String, String>>,
}

/// What happened to a file: the event's kind says what (`create`, `write`, `remove`, `rename`, `chmod`; `overflow` when more
/// happened than could be told).
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FileEventView {
    /// Its path relative to what is watched; empty for that itself.
    path: String,
    /// Of a `rename`: its new path, where that is watched too.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    is_directory: bool,
}

const fn yes() -> bool {
    true
}

pub(crate) async fn read(call: &Call) -> Result<Reply, Problem> {
    let place = place(&mut Query::read(call, &["path", "user"])?)?;
    read_at(call, call.segment("id")?, &place).await
}

/// Reads a file as the headers ask for it: all, a part, or nothing where it did not change.
pub(in crate::api) async fn read_at(
    call: &Call,
    id: SessionId,
    place: &Place,
) -> Result<Reply, Problem> {
    let principal = call.principal()?;
    let asks = [header::RANGE, header::IF_MATCH, header::IF_NONE_MATCH];
    if !call.is_head && !asks.iter().any(|name| call.headers.contains_key(name)) {
        let request = ReadRequest {
            place: place.clone(),
            range: None,
        };
        let download = call.app.read_file(principal, id, &request).await?;
        return Ok(whole(download));
    }
    for _ in 0..LOOKS {
        if let Some(reply) = read_part(call, principal, id, place).await? {
            return Ok(reply);
        }
    }
    Err(Problem::new(
        StatusCode::CONFLICT,
        "file_changes",
        "the file changes all the time; ask for all of it",
    ))
}

/// Answers a request with conditions, or for a part; `None` when the file changed between the look and the reading.
async fn read_part(
    call: &Call,
    principal: &Principal,
    id: SessionId,
    place: &Place,
) -> Result<Option<Reply>, Problem> {
    let request = StatRequest {
        place: place.clone(),
        follow: true,
    };
    let entry = call.app.stat_file(principal, id, &request).await?;
    if entry.kind != FileKind::File {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "wrong_file_kind",
            "not a regular file; files/list and archive take directories",
        ));
    }
    let tag = tag_of(&entry)?;
    if let Err(unmet) = range::check(&call.headers, Some(&tag), true) {
        return unmet.answer(Some(&tag)).map(Some);
    }
    let selection = range::select(&call.headers, entry.size_bytes, Some(&tag));
    let (status, content_range) = selection.answer(entry.size_bytes)?;
    let length = selection.length_bytes(entry.size_bytes);
    let reply = if call.is_head {
        let nothing = futures_util::stream::empty::<Result<_, BoxError>>();
        Reply::stream(status, OCTETS, Some(length), nothing)
    } else {
        let range = match selection {
            Selection::Part { first, .. } => Some(ReadRange::From(first, Some(length))),
            Selection::Whole | Selection::Unsatisfiable => None,
        };
        let request = ReadRequest {
            place: place.clone(),
            range,
        };
        let download = call.app.read_file(principal, id, &request).await?;
        if download.entry().etag != entry.etag {
            return Ok(None);
        }
        Reply::stream(status, OCTETS, Some(length), pieces(download))
    };
    let reply = described(reply, &entry);
    Ok(Some(match content_range {
        Some((name, value)) => reply.with(name, value),
        None => reply,
    }))
}

const OCTETS: &str = "application/octet-stream";

/// A whole file.
fn whole(download: Download) -> Reply {
    let entry = download.entry().clone();
    let reply = Reply::stream(
        StatusCode::OK,
        OCTETS,
        Some(entry.size_bytes),
        pieces(download),
    );
    described(reply, &entry)
}

/// The bytes of a file or archive, as they come.
pub(in crate::api) fn pieces(
    download: Download,
) -> impl Stream<Item = Result<bytes::Bytes, AppError>> + Send {
    futures_util::stream::unfold(download, async |mut download| {
        let piece = download.next().await?;
        Some((piece, download))
    })
}

/// Adds what is known of a file. What the sandbox says and no header can carry is left out.
fn described(mut reply: Reply, entry: &FileEntry) -> Reply {
    if let Ok(tag) = tag_of(entry) {
        reply = reply.with(header::ETAG, tag.value());
    }
    reply = reply.with(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    for (name, value) in &entry.metadata {
        let name = HeaderName::try_from(format!("{METADATA}{name}"));
        if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
            reply = reply.with(name, value);
        }
    }
    reply
}

fn tag_of(entry: &FileEntry) -> Result<ETag, Problem> {
    ETag::strong(entry.etag.as_str()).map_err(|error| Problem::internal(error.to_string()))
}

pub(crate) async fn write(call: &Call) -> Result<Reply, Problem> {
    let (principal, id) = (call.principal()?, call.segment("id")?);
    let known = ["path", "user", "mode", "append", "parents", "sync"];
    let mut query = Query::read(call, &known)?;
    let request = WriteRequest {
        place: place(&mut query)?,
        mode: query
            .text("mode")
            .map(|mode| read_mode(&mode))
            .transpose()?,
        append: query.flag("append", false)?,
        create_parents: query.flag("parents", true)?,
        sync: query.flag("sync", false)?,
        only_if: condition(&call.headers)?,
        metadata: metadata(&call.headers)?,
    };
    let mut body = call.reader()?;
    let mut upload = call
        .app
        .write_file(principal, id, &request, body.left_bytes())
        .await?;
    while let Some(data) = body.next().await {
        upload.write(data?).await?;
    }
    let entry = upload.commit().await?;
    let tag = tag_of(&entry)?;
    let reply = Reply::json(StatusCode::OK, &FileView::from(entry));
    Ok(reply.with(header::ETAG, tag.value()))
}

/// What `If-Match` and `If-None-Match` ask of a write (RFC 9110 section 13.1).
pub(super) fn condition(headers: &HeaderMap) -> Result<Option<WriteCondition>, Problem> {
    let bad = |what: &str| Problem::bad_request(what.to_owned());
    let text = |name: &HeaderName| match headers.get(name).map(HeaderValue::to_str) {
        Some(Ok(text)) => Ok(Some(text.trim().to_owned())),
        Some(Err(_)) => Err(bad("a condition that is not ASCII")),
        None => Ok(None),
    };
    match (text(&header::IF_MATCH)?, text(&header::IF_NONE_MATCH)?) {
        (None, None) => Ok(None),
        (Some(tags), None) if tags == "*" => Ok(Some(WriteCondition::Present)),
        (None, Some(tags)) if tags == "*" => Ok(Some(WriteCondition::Absent)),
        (Some(tags), None) => {
            let read = tags.split(',').map(|tag| tag.trim().parse::<ETag>());
            let tags: Result<Vec<_>, _> = read
                .map(|tag| tag.map(|tag| tag.opaque().to_owned()))
                .collect();
            let tags = tags.map_err(|_| bad("If-Match: entity tags in quotation marks, or *"))?;
            Ok(Some(WriteCondition::Etag(tags)))
        }
        (_, Some(_)) => Err(bad(
            "If-None-Match: a write takes only *, and not beside If-Match",
        )),
    }
}

/// The metadata in a request's headers; `None` where there is none, which leaves a file's as it is.
pub(in crate::api) fn metadata(
    headers: &HeaderMap,
) -> Result<Option<BTreeMap<String, String>>, Problem> {
    let mut metadata = BTreeMap::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(METADATA) else {
            continue;
        };
        let value = value.to_str().map_err(|_| {
            Problem::bad_request(format!("X-Metadata-{name}: only visible ASCII characters"))
        })?;
        if metadata.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Problem::bad_request(format!(
                "X-Metadata-{name}: give it once"
            )));
        }
    }
    Ok((!metadata.is_empty()).then_some(metadata))
}

pub(crate) async fn remove(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let mut query = Query::read(call, &["path", "user", "recursive"])?;
    let request = RemoveRequest {
        place: place(&mut query)?,
        recursive: query.flag("recursive", false)?,
    };
    call.app.remove_file(call.principal()?, id, request).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn stat(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let mut query = Query::read(call, &["path", "user", "follow"])?;
    let request = StatRequest {
        place: place(&mut query)?,
        follow: query.flag("follow", true)?,
    };
    let entry = call.app.stat_file(call.principal()?, id, &request).await?;
    Ok(Reply::json(StatusCode::OK, &FileView::from(entry)))
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let mut query = Query::read(call, &["path", "user", "depth", "limit"])?;
    let request = ListRequest {
        place: place(&mut query)?,
        depth: query.number("depth")?.unwrap_or(1),
        limit: query.number("limit")?.unwrap_or(LISTED),
    };
    let listing = call.app.list_files(call.principal()?, id, &request).await?;
    let page = FilePage {
        entries: listing.entries.into_iter().map(FileView::from).collect(),
        truncated: listing.is_cut,
    };
    Ok(Reply::json(StatusCode::OK, &page))
}

pub(crate) async fn mkdir(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let asked: MakeDirectory = body::json(call)?;
    let request = MkdirRequest {
        place: at(asked.path, asked.user),
        mode: asked.mode.as_deref().map(read_mode).transpose()?,
        parents: asked.parents,
    };
    let made = call
        .app
        .make_directory(call.principal()?, id, request)
        .await?;
    let view = MadeView {
        created: made.created,
        entry: made.entry.into(),
    };
    Ok(Reply::json(StatusCode::OK, &view))
}

pub(crate) async fn rename(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let asked: MoveFile = body::json(call)?;
    let request = MoveRequest {
        place: at(asked.path, asked.user),
        to: asked.to,
        overwrite: asked.overwrite,
        create_parents: asked.parents,
    };
    let entry = call.app.move_file(call.principal()?, id, request).await?;
    Ok(Reply::json(StatusCode::OK, &FileView::from(entry)))
}

pub(crate) async fn link(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let asked: MakeLink = body::json(call)?;
    let request = LinkRequest {
        place: at(asked.path, asked.user),
        target: asked.target,
    };
    let entry = call.app.link_file(call.principal()?, id, request).await?;
    Ok(Reply::json(StatusCode::OK, &FileView::from(entry)))
}

pub(crate) async fn set(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let asked: SetFile = body::json(call)?;
    let request = SetRequest {
        place: at(asked.path, asked.user),
        mode: asked.mode.as_deref().map(read_mode).transpose()?,
        owner: asked.owner,
        group: asked.group,
        metadata: asked.metadata,
    };
    let entry = call.app.set_file(call.principal()?, id, request).await?;
    Ok(Reply::json(StatusCode::OK, &FileView::from(entry)))
}

pub(crate) async fn watch(call: &Call) -> Result<Reply, Problem> {
    let id = call.segment("id")?;
    let mut query = Query::read(call, &["path", "user", "recursive"])?;
    let request = WatchRequest {
        place: place(&mut query)?,
        recursive: query.flag("recursive", false)?,
    };
    let watch = call
        .app
        .watch_files(call.principal()?, id, &request)
        .await?;
    Ok(sse::reply(call.stop.clone(), events(watch)))
}

fn events(watch: (Watch, Arc<Use>)) -> impl Stream<Item = Result<SseEvent, BoxError>> + Send {
    futures_util::stream::unfold(watch, async |(mut watch, using)| {
        let event = match watch.next().await? {
            Ok(event) => told(event),
            Err(error) => Err(AppError::Session(failed(error)).into()),
        };
        Some((event, (watch, using)))
    })
}

fn told(event: FileEvent) -> Result<SseEvent, BoxError> {
    let name = match event.change {
        FileChange::Create => "create",
        FileChange::Write => "write",
        FileChange::Remove => "remove",
        FileChange::Rename => "rename",
        FileChange::Chmod => "chmod",
        FileChange::Overflow => "overflow",
    };
    let view = FileEventView {
        path: event.path,
        to: event.to,
        is_directory: event.is_directory,
    };
    SseEvent::new(name, None, &view)
}

/// The place that a query names.
pub(super) fn place(query: &mut Query) -> Result<Place, Problem> {
    Ok(at(query.required("path")?, query.text("user")))
}

fn at(path: String, user: Option<String>) -> Place {
    Place { path, user }
}

/// Reads permission bits as people write them.
fn read_mode(text: &str) -> Result<u32, Problem> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| digits && *mode <= 0o7777)
        .ok_or_else(|| Problem::bad_request("mode: octal, 0 to 7777"))
}

impl From<FileEntry> for FileView {
    fn from(entry: FileEntry) -> Self {
        Self {
            path: entry.path,
            is_exact: entry.is_exact,
            kind: match entry.kind {
                FileKind::File => FileKindView::File,
                FileKind::Directory => FileKindView::Directory,
                FileKind::Symlink => FileKindView::Symlink,
                FileKind::Other => FileKindView::Other,
            },
            size_bytes: entry.size_bytes,
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            owner: entry.owner,
            gid: entry.gid,
            group: entry.group,
            modified_at: Timestamp::claimed(entry.modified_ms),
            etag: entry.etag,
            target: entry.target,
            metadata: entry.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(read_mode("0644").unwrap(), 0o644);
        assert_eq!(read_mode("7777").unwrap(), 0o7777);
        for bad in ["", "8", "+644", "-1", "0o644", "10000", "000644"] {
            assert!(read_mode(bad).is_err(), "{bad}");
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    }

    #[test]
    fn conditions_of_a_write_are_read() {
        let read = |pairs: &[(&'static str, &'static str)]| condition(&headers(pairs));
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(
            read(&[("if-none-match", "*")]).unwrap(),
            Some(WriteCondition::Absent)
        );
        assert_eq!(
            read(&[("if-match", "*")]).unwrap(),
            Some(WriteCondition::Present)
        );
        let tags = WriteCondition::Etag(vec!["a-1".into(), "b".into()]);
        assert_eq!(read(&[("if-match", "\"a-1\", \"b\"")]).unwrap(), Some(tags));
        for bad in [
            &[("if-none-match", "\"a\"")][..],
            &[("if-match", "a")],
            &[("if-match", "*"), ("if-none-match", "*")],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn metadata_comes_in_headers() {
        let given = headers(&[("x-metadata-project", "a b"), ("x-other", "c")]);
        let expected = BTreeMap::from([("project".to_owned(), "a b".to_owned())]);
        assert_eq!(metadata(&given).unwrap(), Some(expected));
        assert_eq!(metadata(&headers(&[])).unwrap(), None);
    }
}
