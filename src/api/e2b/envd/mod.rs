//! What E2B's clients find in a sandbox, at [`PORT`]: files over HTTP, processes and files over Connect. There is no such server in the
//! sandbox: it is the daemon that answers, by the same ways as everything else, so that it is decided and recorded alike.

pub(super) mod files;
pub(super) mod filesystem;
pub(super) mod process;
pub(in crate::api) mod watchers;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate_link::file::Place;
use http::{HeaderMap, Method, StatusCode, header};

use super::error::Dialect;
use crate::api::error::Problem;
use crate::api::reply::Reply;
use crate::api::route::{Access, Answer, Call, Request, Route};
use crate::base::id::SessionId;
use crate::model::session::Phase;

/// The port at which clients look for it.
pub(in crate::api) const PORT: u16 = 49983;

/// The version of E2B's own server whose services these are: clients ask less of an older one.
pub(in crate::api) const VERSION: &str = "0.6.4";

const fn rpc(
    path: &'static str,
    name: &'static str,
    about: &'static str,
    handler: crate::api::route::Handler,
) -> Route {
    let route = Route::new(Method::POST, path, name, about, handler);
    let mut route = route.request(Request::bytes("application/json"));
    route.status = 200;
    route.answer = Answer::Bytes(&["application/json"]);
    route.access = Access::Sandbox;
    route.dialect = Dialect::Connect;
    route
}

const fn plain(
    method: Method,
    path: &'static str,
    name: &'static str,
    about: &'static str,
    handler: crate::api::route::Handler,
) -> Route {
    let mut route = Route::new(method, path, name, about, handler);
    route.access = Access::Sandbox;
    route.dialect = Dialect::Sandbox;
    route
}

/// The routes at [`PORT`].
pub(in crate::api) const ROUTES: &[Route] = &[
    plain(
        Method::GET,
        "/health",
        "e2b_health",
        "Whether the sandbox runs.",
        |call| Box::pin(health(call)),
    ),
    plain(
        Method::GET,
        "/files",
        "e2b_read_file",
        "Read a file.",
        |call| Box::pin(files::read(call)),
    ),
    plain(
        Method::POST,
        "/files",
        "e2b_write_files",
        "Write files.",
        |call| Box::pin(files::write(call)),
    )
    .request(Request::bytes("application/octet-stream")),
    rpc(
        "/process.Process/List",
        "e2b_list_processes",
        "What runs.",
        |call| Box::pin(process::list(call)),
    ),
    rpc(
        "/process.Process/Start",
        "e2b_start_process",
        "Start a process.",
        |call| Box::pin(process::start(call)),
    ),
    rpc(
        "/process.Process/Connect",
        "e2b_connect_process",
        "Follow a process.",
        |call| Box::pin(process::attach(call)),
    ),
    rpc(
        "/process.Process/Update",
        "e2b_update_process",
        "Resize a terminal.",
        |call| Box::pin(process::update(call)),
    ),
    rpc(
        "/process.Process/SendInput",
        "e2b_send_input",
        "Feed a process.",
        |call| Box::pin(process::send_input(call)),
    ),
    rpc(
        "/process.Process/StreamInput",
        "e2b_stream_input",
        "Feed a process for long.",
        |call| Box::pin(process::stream_input(call)),
    ),
    rpc(
        "/process.Process/CloseStdin",
        "e2b_close_stdin",
        "End a process's input.",
        |call| Box::pin(process::close_stdin(call)),
    ),
    rpc(
        "/process.Process/SendSignal",
        "e2b_send_signal",
        "Signal a process.",
        |call| Box::pin(process::send_signal(call)),
    ),
    rpc(
        "/filesystem.Filesystem/Stat",
        "e2b_stat",
        "Look at a file.",
        |call| Box::pin(filesystem::stat(call)),
    ),
    rpc(
        "/filesystem.Filesystem/MakeDir",
        "e2b_make_dir",
        "Make a directory.",
        |call| Box::pin(filesystem::make_dir(call)),
    ),
    rpc(
        "/filesystem.Filesystem/Move",
        "e2b_move",
        "Give a file another name.",
        |call| Box::pin(filesystem::rename(call)),
    ),
    rpc(
        "/filesystem.Filesystem/ListDir",
        "e2b_list_dir",
        "List a directory.",
        |call| Box::pin(filesystem::list(call)),
    ),
    rpc(
        "/filesystem.Filesystem/Remove",
        "e2b_remove",
        "Remove a file.",
        |call| Box::pin(filesystem::remove(call)),
    ),
    rpc(
        "/filesystem.Filesystem/WatchDir",
        "e2b_watch_dir",
        "Follow a directory.",
        |call| Box::pin(filesystem::watch(call)),
    ),
    rpc(
        "/filesystem.Filesystem/CreateWatcher",
        "e2b_create_watcher",
        "Watch a directory.",
        |call| Box::pin(filesystem::create_watcher(call)),
    ),
    rpc(
        "/filesystem.Filesystem/GetWatcherEvents",
        "e2b_watcher_events",
        "What a watcher saw.",
        |call| Box::pin(filesystem::watcher_events(call)),
    ),
    rpc(
        "/filesystem.Filesystem/RemoveWatcher",
        "e2b_remove_watcher",
        "Watch no more.",
        |call| Box::pin(filesystem::remove_watcher(call)),
    ),
];

/// Only whoever may look at a session that lives comes so far.
async fn health(call: &Call) -> Result<Reply, Problem> {
    let session = call.app.session(call.principal()?, id(call)?).await?;
    // One that is paused does not run, and asking does not wake it.
    if session.ended_at.is_some() || session.status.phase == Phase::Paused {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "session_not_found",
            "the session has ended",
        ));
    }
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// The sandbox that is addressed.
fn id(call: &Call) -> Result<SessionId, Problem> {
    call.segment("id")
}

/// Who shall act inside: the name in `Authorization: Basic`, whose password is empty.
///
/// # Errors
/// When the header is there and says something else.
fn user(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let read = || {
        let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(text.trim()).ok()?).ok()?;
        let (user, _) = decoded.split_once(':')?;
        Some(user.to_owned())
    };
    let user = read().ok_or_else(|| {
        Problem::bad_request("Authorization: Basic, with a user's name and no password")
    })?;
    Ok(Some(user).filter(|user| !user.is_empty()))
}

/// A path as clients write it: absolute, below `~`, or relative to the user's home.
fn place(path: &str, user: Option<String>) -> Place {
    let path = match path {
        "" | "~" => ".",
        path => path.strip_prefix("~/").unwrap_or(path),
    };
    Place {
        path: path.to_owned(),
        user,
    }
}
