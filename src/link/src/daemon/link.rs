//! A live link: one HTTP/2 connection to one guest, owned by one task, spoken to through cheap handles.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::LinkError;
use super::body::{RequestBody, read_document};
use super::channel::{Channels, Offered};
use super::check;
use super::process::{InputStream, Process};
use super::transfer::{Transfer, in_time};
use crate::handshake::Hello;
use crate::limits;
use crate::process::{
    AttachRequest, DetachRequest, InputRequest, ProcessInfo, ProcessSpec, PtySize, ResizeRequest,
    Selector, SignalRequest,
};
use crate::refusal::code;
use crate::route;
use crate::trust::TrustRequest;
use crate::usage::{Health, Usage};
use crate::warm_up::{Identity, IdentityRequest};

type Connection = http2::Connection<TokioIo<UnixStream>, RequestBody, UntilClosed>;

/// A handle on a live link; clones speak to the same guest. The link ends when the last handle is dropped (processes and
/// their inputs hold one), when [`Link::close`] is called, or when the guest is gone.
#[derive(Clone)]
pub struct Link {
    asker: Asker,
    shared: Arc<Shared>,
}

struct Shared {
    protocol: u32,
    capabilities: BTreeSet<String>,
    detached: mpsc::Sender<Detached>,
    close: Arc<Notify>,
    closed: watch::Receiver<bool>,
    processes: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    controls: Semaphore,
    channels: Arc<Channels>,
}

/// Sends requests to the guest.
#[derive(Clone)]
struct Asker {
    sender: http2::SendRequest<RequestBody>,
    /// Bytes of requests that the guest may still leave unanswered.
    unanswered: Arc<Semaphore>,
}

/// A process whose [`Process`] was dropped. Its place among [`limits::MAX_PROCESSES`] is free again when the guest knows.
pub(super) struct Detached {
    pub(super) process: u64,
    pub(super) place: OwnedSemaphorePermit,
}

impl Link {
    /// Speaks HTTP/2 to a guest that was let in, and starts the task that owns the connection. What it dials besides comes
    /// in through `channels`.
    ///
    /// # Errors
    /// `Gone`, `Deadline` after [`limits::HANDSHAKE_DEADLINE`].
    pub async fn open(
        stream: UnixStream,
        protocol: u32,
        hello: &Hello,
        channels: &Arc<Channels>,
    ) -> Result<Self, LinkError> {
        let (closed_tx, closed) = watch::channel(false);
        let opening = http2::Builder::new(UntilClosed(closed.clone()))
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::MAX_HTTP2_FRAME_BYTES)
            .max_header_list_size(limits::MAX_HEADER_LIST_BYTES)
            .max_send_buf_size(limits::MAX_SEND_BUFFER_BYTES)
            // The guest opens no streams: there is no server push on a link.
            .max_concurrent_streams(0)
            .max_concurrent_reset_streams(limits::MAX_RESET_STREAMS)
            .max_pending_accept_reset_streams(limits::MAX_RESET_STREAMS)
            .max_local_error_reset_streams(limits::MAX_ERROR_RESETS)
            .handshake(TokioIo::new(stream));
        let opened = in_time(limits::HANDSHAKE_DEADLINE, async {
            opening.await.map_err(|_| LinkError::Gone)
        });
        let (sender, connection) = opened.await?;

        // Never full: each message holds one of MAX_PROCESSES places.
        let (detached, detached_rx) = mpsc::channel(limits::MAX_PROCESSES);
        let close = Arc::new(Notify::new());
        let unanswered = Arc::new(Semaphore::new(limits::MAX_UNANSWERED_BYTES));
        tokio::spawn(drive(
            connection,
            Asker {
                sender: sender.clone(),
                unanswered: Arc::clone(&unanswered),
            },
            detached_rx,
            Arc::clone(&close),
            closed_tx,
        ));
        let shared = Shared {
            protocol,
            capabilities: hello.capabilities().map(str::to_owned).collect(),
            detached,
            close,
            closed,
            processes: Arc::new(Semaphore::new(limits::MAX_PROCESSES)),
            transfers: Arc::new(Semaphore::new(limits::MAX_TRANSFERS)),
            controls: Semaphore::new(limits::MAX_CONTROL_REQUESTS),
            channels: Arc::clone(channels),
        };
        Ok(Self {
            asker: Asker { sender, unanswered },
            shared: Arc::new(shared),
        })
    }

    /// The protocol that was agreed on.
    pub fn protocol(&self) -> u32 {
        self.shared.protocol
    }

    /// Starts a process and waits until it runs. Dropping the future, like dropping the [`Process`], ends it.
    ///
    /// # Errors
    /// `Refused` when the guest cannot run it ([`code`]) or too many run already, `Deadline` after
    /// [`limits::START_DEADLINE`], `Gone`, `Protocol`.
    pub async fn start(&self, spec: ProcessSpec) -> Result<Process, LinkError> {
        spec.validate()
            .map_err(|bad| no(code::BAD_SPEC, bad.to_string()))?;
        let place = Arc::clone(&self.shared.processes).try_acquire_owned();
        let place =
            place.map_err(|_| no(code::TOO_MANY_PROCESSES, "too many processes on this link"))?;
        in_time(
            limits::START_DEADLINE,
            Process::start(self.clone(), spec, place),
        )
        .await
    }

    /// Reads a process that runs or is kept, from where the request says. Dropping the [`Process`] leaves it as it is.
    ///
    /// # Errors
    /// `Refused` with `no_such_process` or `busy`, `Gone`, `Protocol`, `Deadline`.
    pub async fn attach(
        &self,
        request: AttachRequest,
    ) -> Result<(ProcessInfo, Process), LinkError> {
        self.needs("attach")?;
        let place = self.transfer_place()?;
        in_time(
            limits::OPEN_DEADLINE,
            Process::attach(self.clone(), request, place),
        )
        .await
    }

    /// Opens the input of a process, apart from its own stream.
    ///
    /// # Errors
    /// `Refused` with `busy` or `bad_spec`.
    pub fn input(&self, process: Selector) -> Result<InputStream, LinkError> {
        self.needs("attach")?;
        InputStream::open(self, InputRequest { process }, self.transfer_place()?)
    }

    /// The processes that run, and those that ended and are kept, oldest first.
    ///
    /// # Errors
    /// `Refused`, `Gone`, `Protocol`, `Deadline`.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, LinkError> {
        self.needs("attach")?;
        let listing = Transfer::list(
            self,
            route::PROCESS_LIST,
            &(),
            check::process,
            limits::MAX_LISTED_PROCESSES,
            limits::CONTROL_DEADLINE,
        );
        listing.await?.whole()
    }

    /// Gives a process's terminal another size.
    ///
    /// # Errors
    /// `Refused` with `no_such_process` or `no_pty`, `Gone`, `Protocol`, `Deadline`.
    pub async fn resize(&self, process: Selector, size: PtySize) -> Result<(), LinkError> {
        self.needs("attach")?;
        let request = ResizeRequest { process, size };
        let _: serde::de::IgnoredAny = self
            .control(Method::POST, route::PROCESS_RESIZE, &request)
            .await?;
        Ok(())
    }

    /// Asks what the sandbox uses.
    ///
    /// # Errors
    /// `Refused`, `Gone`, `Protocol`, `Deadline`.
    pub async fn usage(&self) -> Result<Usage, LinkError> {
        self.needs("usage")?;
        check::usage(self.control(Method::GET, route::USAGE, &()).await?)
    }

    /// Tells the guest who its sandbox is, and has it give up what it needed for that.
    ///
    /// # Errors
    /// `Refused`, `Gone`, `Protocol`, `Deadline`.
    pub async fn identify(&self, hostname: &str) -> Result<Identity, LinkError> {
        self.needs("warm-up")?;
        let hostname = hostname.to_owned();
        let request = IdentityRequest { hostname };
        let told = self.control(Method::POST, route::IDENTITY, &request);
        check::identity(told.await?)
    }

    /// Has programs trust this certificate too.
    ///
    /// # Errors
    /// `Refused`, `Gone`, `Protocol`, `Deadline`.
    pub async fn trust(&self, pem: String) -> Result<(), LinkError> {
        self.needs("trust")?;
        let request = TrustRequest { pem };
        let _: serde::de::IgnoredAny = self.control(Method::POST, route::TRUST, &request).await?;
        Ok(())
    }

    /// Has the guest let go of everything of the host's, so that a checkpoint can be taken; it has when this returns. The
    /// link is gone then, also when this fails.
    ///
    /// # Errors
    /// `Refused`, `Gone`, `Protocol`, `Deadline`.
    pub async fn rest(&self) -> Result<(), LinkError> {
        let rested = async {
            self.needs("warm-up")?;
            let _: serde::de::IgnoredAny = self
                .control(Method::POST, route::REST, &serde_json::Map::new())
                .await?;
            // The guest hangs up: what ends the connection is that its end of it is closed.
            in_time(limits::CONTROL_DEADLINE, async {
                self.closed().await;
                Ok(())
            })
            .await
        };
        let rested = rested.await;
        self.close();
        rested
    }

    /// Whether the guest said that it can do this ([`crate::handshake::CAPABILITIES`]).
    pub fn can(&self, capability: &str) -> bool {
        self.shared.capabilities.contains(capability)
    }

    /// Refuses what the guest did not say that it can do.
    pub(super) fn needs(&self, capability: &str) -> Result<(), LinkError> {
        if self.can(capability) {
            return Ok(());
        }
        let message = format!("the sandbox's guest is too old for this: it lacks {capability:?}");
        Err(no(code::UNSUPPORTED, message))
    }

    /// A channel for the bytes of one large file, if there is one left.
    pub(super) fn offer_channel(&self) -> Option<Offered> {
        self.shared.channels.offer()
    }

    /// One of the link's [`limits::MAX_TRANSFERS`] places.
    pub(super) fn transfer_place(&self) -> Result<OwnedSemaphorePermit, LinkError> {
        Arc::clone(&self.shared.transfers)
            .try_acquire_owned()
            .map_err(|_| no(code::BUSY, "too many transfers on this link"))
    }

    /// Asks the guest how it is.
    ///
    /// # Errors
    /// `Deadline` after [`limits::CONTROL_DEADLINE`], `Gone`, `Protocol`.
    pub async fn health(&self) -> Result<Health, LinkError> {
        self.control(Method::GET, route::HEALTH, &()).await
    }

    /// Sends a signal to a process's group.
    ///
    /// # Errors
    /// `Refused` with `no_such_process` after its end, `Gone`, `Protocol`, `Deadline`.
    pub async fn signal(&self, process: Selector, signum: i32) -> Result<(), LinkError> {
        let _: serde::de::IgnoredAny = self
            .control(
                Method::POST,
                route::PROCESS_SIGNAL,
                &SignalRequest { process, signum },
            )
            .await?;
        Ok(())
    }

    /// Waits until the link is gone, for whatever reason.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.clone();
        // An error means that the task is gone, which is the same.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Whether the link is gone.
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow() || self.asker.sender.is_closed()
    }

    /// Hangs up now, for all handles. The guest ends the processes of this link and dials again.
    pub fn close(&self) {
        self.shared.close.notify_one();
    }

    /// Tells the guest that nobody listens to a process any more.
    pub(super) fn detach(&self, detached: Detached) {
        // Fails only when the link is gone, and then the guest knows.
        let _ = self.shared.detached.try_send(detached);
    }

    /// Sends a request and checks the head of the answer.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &'static str,
        content_type: &'static str,
        body: RequestBody,
    ) -> Result<Response<Incoming>, LinkError> {
        self.request_for(method, path, [content_type; 2], body)
            .await
    }

    /// The same, where the answer's content type is not the request's.
    pub(super) async fn request_for(
        &self,
        method: Method,
        path: &'static str,
        content_types: [&'static str; 2],
        body: RequestBody,
    ) -> Result<Response<Incoming>, LinkError> {
        self.asker.ask(method, path, content_types, body).await
    }

    async fn control<A: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &'static str,
        document: &impl Serialize,
    ) -> Result<A, LinkError> {
        in_time(limits::CONTROL_DEADLINE, async {
            let _place = self
                .shared
                .controls
                .acquire()
                .await
                .map_err(|_| LinkError::Gone)?;
            let body = RequestBody::whole(json(&method, document)?);
            read_document(
                self.request(method, path, route::JSON, body)
                    .await?
                    .into_body(),
            )
            .await
        })
        .await
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("protocol", &self.shared.protocol)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Runs the connection until it ends, until it is told to, or until nobody holds a handle any more; carries the word of
/// detached processes meanwhile.
async fn drive(
    connection: Connection,
    asker: Asker,
    mut detached: mpsc::Receiver<Detached>,
    close: Arc<Notify>,
    closed: watch::Sender<bool>,
) {
    let mut farewells = FuturesUnordered::new();
    let mut connection = Box::pin(connection);
    loop {
        tokio::select! {
            // The end first: nothing else matters then.
            biased;
            _ = &mut connection => break,
            () = close.notified() => break,
            left = detached.recv() => match left {
                Some(left) => farewells.push(farewell(asker.clone(), left)),
                // Hanging up tells the guest about all of them at once.
                None => break,
            },
            Some(()) = farewells.next(), if !farewells.is_empty() => {}
        }
    }
    // Ends HTTP/2's own tasks, whatever they wait for, and with them every stream.
    closed.send_replace(true);
}

/// Runs HTTP/2's tasks (one holds the connection, one each request's body), none longer than the link.
#[derive(Clone)]
struct UntilClosed(watch::Receiver<bool>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for UntilClosed {
    fn execute(&self, task: F) {
        let mut closed = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                // Closing also ends a connection that never runs dry. A lost sender is a closed link.
                biased;
                _ = closed.wait_for(|closed| *closed) => {}
                () = task => {}
            }
        });
    }
}

/// Tells the guest about one detached process. Whether it listens is its own affair: the stream's reset says the same,
/// unless unread input holds that reset up.
async fn farewell(asker: Asker, left: Detached) {
    let Detached { process, place } = left;
    let told = in_time(limits::CONTROL_DEADLINE, async {
        let body = RequestBody::whole(json(&Method::POST, &DetachRequest { process })?);
        asker
            .ask(Method::POST, route::PROCESS_DETACH, [route::JSON; 2], body)
            .await
    });
    drop(told.await);
    drop(place);
}

impl Asker {
    /// Sends a request and checks the head of the answer. Has no deadline of its own.
    async fn ask(
        &self,
        method: Method,
        path: &'static str,
        [content_type, answer_type]: [&'static str; 2],
        mut body: RequestBody,
    ) -> Result<Response<Incoming>, LinkError> {
        let cost = u32::try_from(body.cost_bytes()).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.unanswered).acquire_many_owned(cost).await;
        // Held here until there is an answer, and by the request itself for as long as HTTP/2 keeps it back.
        let room = Arc::new(room.map_err(|_| LinkError::Gone)?);
        body.hold(Arc::clone(&room));

        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = http::Uri::from_static(path);
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|_| LinkError::Gone)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|_| LinkError::Gone)?;
        drop(room);
        let is = |wanted: &str| {
            response
                .headers()
                .get(header::CONTENT_TYPE)
                .is_some_and(|value| value == wanted)
        };
        match response.status() {
            StatusCode::OK if is(answer_type) => Ok(response),
            status if status.is_client_error() && is(route::JSON) => {
                Err(check::refusal(read_document(response.into_body()).await?))
            }
            status => Err(LinkError::Protocol(format!(
                "an unexpected answer with status {status}"
            ))),
        }
    }
}

fn json(method: &Method, document: &impl Serialize) -> Result<Bytes, LinkError> {
    if method == Method::GET {
        return Ok(Bytes::new());
    }
    let json = serde_json::to_vec(document)
        .map_err(|_| LinkError::Protocol("a request that is no document".into()))?;
    Ok(json.into())
}

pub(super) fn no(code: &str, message: impl Into<String>) -> LinkError {
    LinkError::Refused {
        code: code.into(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;
    use crate::LinkToken;
    use crate::handshake::{KernelReport, PROTOCOL};

    /// A link to a guest that says these bytes and then only listens.
    async fn link_to(words: &'static [u8]) -> Link {
        let (mut guest, daemon) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            guest.write_all(words).await.unwrap();
            let mut sink = [0; 4096];
            while guest.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        });
        let hello = Hello {
            protocol: PROTOCOL,
            token: LinkToken::parse(&"t".repeat(32)).unwrap(),
            guest_version: String::new(),
            kernel: KernelReport::default(),
            capabilities: Vec::new(),
            channel: None,
        };
        Link::open(daemon, 1, &hello, &Channels::new())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_request_over_its_bound_is_its_caller_s_fault_and_not_the_guest_s() {
        let link = link_to(b"").await;
        let word = "\u{1}".repeat(100 * 1024);
        let spec = ProcessSpec::new(["echo", &word, &word]);
        assert_eq!(spec.validate(), Ok(()));
        match link.start(spec).await {
            Err(LinkError::Refused { code, .. }) => assert_eq!(code, "bad_spec"),
            other => panic!("{other:?}"),
        }
    }

    /// Bytes that are counted for as long as anybody keeps them.
    struct Counted(Vec<u8>, Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(self.0.len(), Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn what_a_guest_does_not_let_out_is_bounded_also_when_its_callers_gave_up() {
        // SETTINGS that allow no stream (RFC 9113 section 6.5.2), and the acknowledgement of ours.
        let none = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\x01\0\0\0\0";
        let link = link_to(none).await;
        let kept = Arc::new(AtomicUsize::new(0));
        let size = 512 * 1024;
        for _ in 0..400 {
            kept.fetch_add(size, Ordering::SeqCst);
            let document = Bytes::from_owner(Counted(vec![0; size], Arc::clone(&kept)));
            let body = RequestBody::whole(document);
            let asked = link.request(Method::POST, route::PROCESS_SIGNAL, route::JSON, body);
            let given_up = timeout(Duration::from_millis(1), asked).await;
            assert!(!matches!(given_up, Ok(Ok(_))));
            let kept = kept.load(Ordering::SeqCst);
            assert!(
                kept <= limits::MAX_UNANSWERED_BYTES,
                "{kept} bytes are kept"
            );
        }
        link.close();
        link.closed().await;
        drop(link);
        timeout(Duration::from_secs(10), async {
            while kept.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("a link that is gone keeps nothing");
    }
}
