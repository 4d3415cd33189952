//! The link's requests: dial, serve HTTP/2 until the connection is gone, dial again.

use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;

use casemate_link::file::Offer;
use casemate_link::guest::Dialer;
use casemate_link::process::{DetachRequest, ResizeRequest, Selector, SignalRequest};
use casemate_link::refusal::{Refusal, code};
use casemate_link::warm_up::{Identity, IdentityRequest};
use casemate_link::wire::Chunk;
use casemate_link::{Health, limits, route};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::IgnoredAny;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::body::{Answer, read_document};
use crate::child::refusal;
use crate::files::{self, Channels, Offered};
use crate::identity;
use crate::processes::Processes;
use crate::rest::Rest;
use crate::stream::{self, gone};
use crate::transfer::{self, Transfer};
use crate::wakeful::Wakeful;
use crate::{VERSION, ports, say, trust, usage};

/// Serves one link after another for as long as the guest lives.
pub(crate) async fn run(mut dialer: Dialer, processes: Rc<Processes>) -> Infallible {
    // Of all links together: what an old one has open is not closed at once.
    let places = Channels::places();
    let rest = Rc::new(Rest::default());
    loop {
        let mut told = String::new();
        let opening = dialer.dial(|error| {
            // The same failure again and again is one line.
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
            let text = format!("{error}{}", cause.unwrap_or_default());
            if text != told {
                say(format_args!("link: {text}"));
                told = text;
            }
        });
        let (socket, protocol) = opening.await;
        say(format_args!("link: open, protocol {protocol}"));
        // There is a token once a link is open.
        let channels = dialer
            .channels()
            .map(|dialer| Channels::new(dialer, &places));
        serve(socket, &processes, channels, &rest).await;
        say(format_args!("link: gone"));
        if rest.is_due() {
            dialer.rest().await;
            rest.end();
        }
    }
}

/// Serves one connection to its end. Every stream of it is dropped then, which its process sees.
async fn serve(
    socket: UnixStream,
    processes: &Rc<Processes>,
    channels: Option<Channels>,
    rest: &Rc<Rest>,
) {
    let service = service_fn(|request| {
        let (processes, channels, rest) = (Rc::clone(processes), channels.clone(), Rc::clone(rest));
        async move { Ok::<_, Infallible>(answer(request, &processes, channels, &rest).await) }
    });
    let connection = http2::Builder::new(OnThisThread)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::MAX_HTTP2_FRAME_BYTES)
        .max_header_list_size(limits::MAX_HEADER_LIST_BYTES)
        .max_concurrent_streams(limits::MAX_STREAMS)
        .max_send_buf_size(limits::MAX_SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(limits::MAX_RESET_STREAMS)
        .max_local_error_reset_streams(limits::MAX_ERROR_RESETS)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(Wakeful::new(socket)), service);
    tokio::select! {
        // What is to be said is said, however long this thread had to wait.
        biased;
        // However it ended, the daemon is dialed again.
        _ = connection => {}
        // Not in order, since a client that is told to go does not wait for the end: this one has to see it.
        () = rest.begins() => {}
    }
}

/// Runs HTTP/2's tasks on the guest's one thread.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

async fn answer(
    request: Request<Incoming>,
    processes: &Rc<Processes>,
    channels: Option<Channels>,
    rest: &Rest,
) -> Response<Answer> {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::GET, route::HEALTH) => document(StatusCode::OK, &health(processes)),
        (&Method::GET, route::USAGE) => document(StatusCode::OK, &usage::read(processes.started)),
        (&Method::POST, route::IDENTITY) => done(identify(body, rest).await),
        (&Method::POST, route::TRUST) => done(extend_trust(body).await),
        (&Method::POST, route::REST) => {
            rest.ask();
            document(StatusCode::OK, &serde_json::Map::new())
        }
        (&Method::POST, route::PROCESS_START) => framed(stream::start(body, processes).await),
        (&Method::POST, route::PROCESS_ATTACH) => framed(stream::attach(body, processes).await),
        (&Method::POST, route::PROCESS_INPUT) => done(stream::input(body, processes).await),
        (&Method::POST, route::PROCESS_LIST) => list(body, processes),
        (&Method::POST, route::PROCESS_SIGNAL) => done(signal(body, processes).await),
        (&Method::POST, route::PROCESS_RESIZE) => done(resize(body, processes).await),
        (&Method::POST, route::PROCESS_DETACH) => done(detach(body, processes).await),
        (&Method::POST, route::PORT_CONNECT) => transfer(body, ports::connect),
        (&Method::POST, route::PORT_LIST) => transfer(body, ports::list),
        (&Method::POST, route::FILE_STAT) => transfer_of(processes, body, files::stat),
        (&Method::POST, route::FILE_LIST) => transfer_of(processes, body, files::list),
        (&Method::POST, route::FILE_READ) => offered(processes, channels, body, files::read),
        (&Method::POST, route::FILE_WRITE) => offered(processes, channels, body, files::write),
        (&Method::POST, route::FILE_MKDIR) => transfer_of(processes, body, files::mkdir),
        (&Method::POST, route::FILE_MOVE) => transfer_of(processes, body, files::relocate),
        (&Method::POST, route::FILE_REMOVE) => transfer_of(processes, body, files::remove),
        (&Method::POST, route::FILE_LINK) => transfer_of(processes, body, files::link),
        (&Method::POST, route::FILE_SET) => transfer_of(processes, body, files::set),
        (&Method::POST, route::FILE_WATCH) => transfer_of(processes, body, files::watch),
        (&Method::POST, route::ARCHIVE_READ) => transfer_of(processes, body, files::pack),
        (&Method::POST, route::ARCHIVE_WRITE) => transfer_of(processes, body, files::unpack),
        (&Method::POST, route::SNAPSHOT_READ) => transfer_of(processes, body, files::layer),
        _ => refused(
            StatusCode::NOT_FOUND,
            &refusal(code::UNSUPPORTED, "this guest does not know that request"),
        ),
    }
}

/// Attends a transfer; its stream says how it goes, also when it fails at once.
fn transfer<H, W>(body: Incoming, work: impl FnOnce(H, Transfer) -> W + 'static) -> Response<Answer>
where
    H: serde::de::DeserializeOwned + 'static,
    W: Future<Output = Result<(), Refusal>> + 'static,
{
    let frames = transfer::attend(body, work);
    respond(StatusCode::OK, route::FRAMES, Answer::Stream(frames))
}

/// The same for work that asks who may do what.
fn transfer_of<H, W>(
    processes: &Rc<Processes>,
    body: Incoming,
    work: impl FnOnce(Rc<Processes>, H, Transfer) -> W + 'static,
) -> Response<Answer>
where
    H: serde::de::DeserializeOwned + 'static,
    W: Future<Output = Result<(), Refusal>> + 'static,
{
    let processes = Rc::clone(processes);
    transfer(body, move |head, streams| work(processes, head, streams))
}

/// The same for what may go over a channel.
fn offered<H, W>(
    processes: &Rc<Processes>,
    channels: Option<Channels>,
    body: Incoming,
    work: impl FnOnce(Rc<Processes>, H, Transfer, Offered) -> W + 'static,
) -> Response<Answer>
where
    H: serde::de::DeserializeOwned + 'static,
    W: Future<Output = Result<(), Refusal>> + 'static,
{
    transfer_of(
        processes,
        body,
        async move |processes, offer: Offer<H>, streams| {
            let offered = Offered::new(channels, offer.channel);
            work(processes, offer.request, streams, offered).await
        },
    )
}

fn health(processes: &Processes) -> Health {
    Health {
        guest_version: VERSION.to_owned(),
        uptime_ms: u64::try_from(processes.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        processes: u32::try_from(processes.count()).unwrap_or(u32::MAX),
    }
}

/// A process's stream, or why it is none.
fn framed(result: Result<Answer, Refusal>) -> Response<Answer> {
    match result {
        Ok(answer) => respond(StatusCode::OK, route::FRAMES, answer),
        Err(refusal) => refused(StatusCode::BAD_REQUEST, &refusal),
    }
}

/// Says one process after the other. Those that are forgotten meanwhile are left out.
fn list(body: Incoming, processes: &Rc<Processes>) -> Response<Answer> {
    let processes = Rc::clone(processes);
    transfer(body, async move |_: IgnoredAny, transfer: Transfer| {
        for number in processes.numbers() {
            let found = processes.find(&Selector::Process(number));
            let info = found.map(|process| process.info());
            if let Some(info) = info
                && !transfer.output.item(&info).await
            {
                return Ok(());
            }
        }
        transfer.output.end().await;
        Ok(())
    })
}

async fn signal(body: Incoming, processes: &Processes) -> Result<(), Refusal> {
    let SignalRequest { process, signum } = asked(body).await?;
    match processes.signal(&process, signum) {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(refusal(code::BAD_REQUEST, &error.to_string())),
        None => Err(gone()),
    }
}

async fn identify(body: Incoming, rest: &Rest) -> Result<Identity, Refusal> {
    let IdentityRequest { hostname } = asked(body).await?;
    identity::assume(&hostname, rest)
}

async fn extend_trust(body: Incoming) -> Result<(), Refusal> {
    trust::extend(&asked(body).await?)
}

async fn resize(body: Incoming, processes: &Processes) -> Result<(), Refusal> {
    let ResizeRequest { process, size } = asked(body).await?;
    if size.rows == 0 || size.cols == 0 {
        return Err(refusal(code::BAD_REQUEST, "a size without rows or columns"));
    }
    let process = processes.find(&process).filter(|process| process.lives());
    match process.ok_or_else(gone)?.resize(size) {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(refusal(code::BAD_REQUEST, &error.to_string())),
        None => Err(refusal(code::NO_PTY, "the process has no terminal")),
    }
}

async fn detach(body: Incoming, processes: &Processes) -> Result<(), Refusal> {
    let DetachRequest { process } = asked(body).await?;
    processes.detach(process).then_some(()).ok_or_else(gone)
}

async fn asked<T: serde::de::DeserializeOwned>(body: Incoming) -> Result<T, Refusal> {
    let read = timeout(limits::CONTROL_DEADLINE, read_document(body)).await;
    read.ok()
        .flatten()
        .ok_or_else(|| refusal(code::BAD_REQUEST, "not the expected document"))
}

fn done(result: Result<impl Serialize, Refusal>) -> Response<Answer> {
    match result {
        Ok(answer) => document(StatusCode::OK, &answer),
        Err(refusal) if refusal.code == code::NO_SUCH_PROCESS => {
            refused(StatusCode::NOT_FOUND, &refusal)
        }
        Err(refusal) => refused(StatusCode::BAD_REQUEST, &refusal),
    }
}

fn refused(status: StatusCode, refusal: &Refusal) -> Response<Answer> {
    document(status, refusal)
}

fn document(status: StatusCode, document: &impl Serialize) -> Response<Answer> {
    let json = serde_json::to_vec(document).unwrap_or_default();
    let whole = Answer::Whole(Some(Chunk::bare(json.into())));
    respond(status, route::JSON, whole)
}

fn respond(status: StatusCode, content_type: &'static str, answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
