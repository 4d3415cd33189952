//! Accepts operators, turns others away, carries out one command per connection. Operators from elsewhere come by the HTTP door,
//! which knows them by their token.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::access;
use super::protocol::{
    Answer, BackupView, DoctorView, Envelope, Request, RotatedView, SessionLine, StatusView,
    VERSION, codec,
};
use super::record;
use crate::app::{self, App, AppError};
use crate::backup::Progress;
use crate::base::chain::Chain;
use crate::host::accept::{Bounds, accept};
use crate::host::peer::Peer;
use crate::model::check::Verdict;
use crate::model::event::AuditEvent;
use crate::model::principal::Principal;
use crate::model::query::SessionFilter;
use crate::model::session::Phase;

/// Operators at one time, here and as many elsewhere. There are few of them; more is somebody playing.
const MAX_CONNECTIONS: usize = 16;

/// How long a peer may take to say what it wants, and to take an answer.
const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// How long the next piece of an archive may take.
const CHUNK_DEADLINE: Duration = Duration::from_secs(60);

/// Longest list in one answer: it fits into one frame.
pub(super) const MAX_LIST: u32 = 500;

/// Milliseconds between two records of refused peers: a flood of them must not fill the disk.
const REFUSAL_RECORD_MS: i64 = 1_000;

/// Pieces of an archive on their way to the runtime; a slow runtime slows the sender.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Time between two reports of progress.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How much of an archive arrives between two reports of progress.
const PROGRESS_STEP_BYTES: u64 = 8 << 20;

/// The admin door.
pub struct AdminServer {
    listener: UnixListener,
    desk: Arc<Desk>,
}

/// What every connection is served from.
struct Desk {
    path: PathBuf,
    app: App,
    group: String,
    refusal_recorded_at: AtomicI64,
    /// Places of operators from elsewhere.
    remote: Semaphore,
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something that is not a socket is in its place; it is not ours to remove.
    #[error("{0} exists and is not a socket; move it away")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("make the admin socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Frames to and from an operator, here or elsewhere.
pub(super) type Frames = Framed<Box<dyn Line>, LengthDelimitedCodec>;

/// What bytes go over.
pub(super) trait Line: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Line for T {}

impl AdminServer {
    /// Makes the socket. The state lock is held, so that a socket in its place is a dead daemon's.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path, app: App, group: String) -> Result<Self, BindError> {
        let failed = |source| BindError::Io {
            path: path.to_owned(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => return Err(BindError::NotASocket(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
        let desk = Desk {
            path: path.to_owned(),
            app,
            group,
            refusal_recorded_at: AtomicI64::new(i64::MIN),
            remote: Semaphore::new(MAX_CONNECTIONS),
        };
        let desk = Arc::new(desk);
        let remote: Weak<dyn app::Desk> = Arc::<Desk>::downgrade(&desk);
        desk.app.open_desk(remote);
        Ok(Self { listener, desk })
    }

    /// Serves until `stop` is cancelled; then finishes what is in flight, for at most `grace`.
    pub async fn serve(self, stop: CancellationToken, grace: Duration) {
        let Self { listener, desk } = self;
        let bounds = Bounds {
            connections: MAX_CONNECTIONS,
            grace,
        };
        let path = desk.path.clone();
        let stopping = stop.clone();
        accept("admin", listener, bounds, stop, move |stream| {
            let (desk, stop) = (Arc::clone(&desk), stopping.clone());
            async move { desk.converse(stream, &stop).await }
        })
        .await;
        if let Err(error) = std::fs::remove_file(path) {
            warn!(%error, "cannot remove the admin socket");
        }
    }
}

impl app::Desk for Desk {
    fn serve(
        self: Arc<Self>,
        who: Principal,
        stream: DuplexStream,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut frames = framed(stream);
            let answer = match self.remote.try_acquire() {
                Ok(_place) => self.carry_out(&mut frames, &who, &stop).await,
                Err(_) => Some(refused(
                    "too_many_operators",
                    format!("{MAX_CONNECTIONS} operators are here from elsewhere; try again"),
                )),
            };
            if let Some(answer) = answer {
                send(&mut frames, &answer).await;
            }
        })
    }
}

fn framed(stream: impl Line + 'static) -> Frames {
    Framed::new(Box::new(stream), codec())
}

impl Desk {
    async fn converse(&self, stream: UnixStream, stop: &CancellationToken) {
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                warn!(error = %Chain(&error), "cannot tell who is on the admin socket");
                return;
            }
        };
        let mut frames = framed(stream);
        let answer = match peer.may_administer(&self.group) {
            Ok(true) => {
                info!(uid = peer.uid, pid = peer.pid, "an operator came");
                let who = Principal::Operator { uid: peer.uid };
                self.carry_out(&mut frames, &who, stop).await
            }
            Ok(false) => self.turn_away(peer).await,
            Err(error) => {
                warn!(uid = peer.uid, error = %Chain(&error), "cannot tell whether a peer is an operator");
                self.turn_away(peer).await
            }
        };
        if let Some(answer) = answer {
            send(&mut frames, &answer).await;
        }
    }

    async fn turn_away(&self, peer: Peer) -> Option<Answer> {
        warn!(
            uid = peer.uid,
            gid = peer.gid,
            pid = peer.pid,
            "turned a peer of the admin socket away"
        );
        let now = self.app.now().as_millis();
        let last = self.refusal_recorded_at.load(Ordering::Relaxed);
        if now.saturating_sub(last) >= REFUSAL_RECORD_MS {
            self.refusal_recorded_at.store(now, Ordering::Relaxed);
            let event = AuditEvent::AdminRefused {
                uid: peer.uid,
                gid: peer.gid,
            };
            let who = Principal::Operator { uid: peer.uid };
            if let Err(error) = self.app.note(&who, event).await {
                warn!(error = %Chain(&error), "cannot record a refused peer");
            }
        }
        Some(refused(
            "not_an_operator",
            format!(
                "the admin socket is for root and the group {}; uid {} is neither",
                self.group, peer.uid
            ),
        ))
    }

    async fn carry_out(
        &self,
        frames: &mut Frames,
        who: &Principal,
        stop: &CancellationToken,
    ) -> Option<Answer> {
        let frame = match tokio::time::timeout(FRAME_DEADLINE, frames.next()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Some(refused("bad_frame", error.to_string())),
            // Gone, or silent for too long: nobody listens.
            Ok(None) | Err(_) => return None,
        };
        let envelope: Envelope = match serde_json::from_slice(&frame) {
            Ok(envelope) => envelope,
            Err(error) => {
                return Some(refused(
                    "bad_request",
                    format!(
                        "this casemated does not understand the request ({error}); are casemate and casemated of one version?"
                    ),
                ));
            }
        };
        if envelope.version != VERSION {
            return Some(refused(
                "other_version",
                format!(
                    "casemate speaks version {}, casemated {VERSION}; use the casemate of the same package",
                    envelope.version
                ),
            ));
        }
        let name = envelope.request.name();
        info!(%who, command = name, "admin command");
        let event = AuditEvent::AdminCommand {
            command: name.to_owned(),
        };
        // No record, no effect: not even a look.
        if let Err(error) = self.app.note(who, event).await {
            return Some(told(&error));
        }
        Some(
            match self.command(frames, who, envelope.request, stop).await {
                Ok(answer) => answer,
                Err(error) => {
                    warn!(command = name, error = %Chain(&error), "an admin command failed");
                    told(&error)
                }
            },
        )
    }

    async fn command(
        &self,
        frames: &mut Frames,
        who: &Principal,
        request: Request,
        stop: &CancellationToken,
    ) -> Result<Answer, AppError> {
        Ok(match request {
            Request::Status => self.status().await,
            Request::KeyCreate { .. }
            | Request::KeyList { .. }
            | Request::KeyRevoke { .. }
            | Request::PolicyList
            | Request::PolicyPut { .. }
            | Request::PolicyRemove { .. }
            | Request::PolicyExplain { .. }
            | Request::EgressExplain { .. } => access::answer(&self.app, who, request).await?,
            Request::SessionList { live, limit } => self.sessions(who, live, limit).await?,
            Request::SessionStop { id } => {
                self.app.end_session(who, id).await?;
                Answer::Done
            }
            Request::ImageImport => self.import(frames, who).await?,
            Request::ImageList => Answer::Images {
                items: self.app.images(who).await?,
            },
            Request::AuditList { .. }
            | Request::AuditTail { .. }
            | Request::AuditExport { .. }
            | Request::AuditVerify
            | Request::AuditKey
            | Request::AuditArchives { .. }
            | Request::AuditArchive { .. } => {
                record::answer(&self.app, frames, who, request, stop).await?
            }
            Request::Doctor => {
                let checks = self.app.examine(who).await?;
                let fit = checks.iter().all(|check| check.verdict != Verdict::Failed);
                Answer::Doctor(DoctorView { fit, checks })
            }
            Request::Reload => {
                self.app.reload(who).await?;
                Answer::Done
            }
            Request::RotateKey => {
                let rotated = self.app.rotate_key(who).await?;
                Answer::Rotated(RotatedView {
                    generation: rotated.generation,
                    sealed: rotated.sealed,
                    origin: rotated.origin,
                })
            }
            Request::Backup { to, images } => self.backup(frames, who, to, images).await?,
        })
    }

    /// Tells how far it has come until it is made. An operator who goes away stops it not.
    async fn backup(
        &self,
        frames: &mut Frames,
        who: &Principal,
        to: Option<PathBuf>,
        with_images: bool,
    ) -> Result<Answer, AppError> {
        let (told, progress) = watch::channel(Progress::default());
        let making = self.app.make_backup(who, to, with_images, told);
        tokio::pin!(making);
        let mut beat = tokio::time::interval(PROGRESS_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                made = &mut making => {
                    let made = made?;
                    return Ok(Answer::Backup(BackupView {
                        path: made.path,
                        size_bytes: made.size_bytes,
                        made_at: made.made_at,
                        encrypted: made.encrypted,
                        images: made.images,
                        images_missing: made.images_missing,
                    }));
                }
                _ = beat.tick() => {
                    let Progress { done_bytes, total_bytes } = *progress.borrow();
                    let so_far = Answer::Progress {
                        received_bytes: done_bytes,
                        total_bytes: Some(total_bytes),
                    };
                    send(frames, &so_far).await;
                }
            }
        }
    }

    async fn status(&self) -> Answer {
        let readiness = self.app.readiness().await;
        let checks = self.app.health().await;
        let settings = self.app.settings();
        let facts = self.app.facts();
        Answer::Status(StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: readiness.is_ready(),
            checks: checks
                .into_iter()
                .map(|check| (check.name.to_owned(), check.problem))
                .collect(),
            last_backup_at: self.app.last_backup(),
            live_sessions: self.app.live_sessions(),
            max_sessions: settings.sessions.max,
            templates: settings.templates.keys().cloned().collect(),
            podman_version: facts.podman_version.clone(),
            runtime_version: facts.runtime_version.clone(),
            unenforced_limits: facts
                .unenforced_limits
                .iter()
                .map(|&name| name.to_owned())
                .collect(),
        })
    }

    async fn sessions(&self, who: &Principal, live: bool, limit: u32) -> Result<Answer, AppError> {
        let filter = SessionFilter {
            phases: if live {
                Phase::ALL
                    .into_iter()
                    .filter(|phase| !phase.is_final())
                    .collect()
            } else {
                Vec::new()
            },
            limit: limit.min(MAX_LIST),
            ..SessionFilter::default()
        };
        let sessions = self.app.sessions(who, filter).await?;
        let items = sessions
            .into_iter()
            .map(|session| SessionLine {
                id: session.id,
                name: session.spec.name,
                team: session.spec.team,
                template: session.spec.template,
                phase: session.status.phase,
                reason: session.status.reason,
                message: session.status.message,
                created_at: session.created_at,
                ends_at: session.lease.ends_at,
            })
            .collect();
        Ok(Answer::Sessions { items })
    }

    /// Hands the archive on as it arrives. A client that goes away in the middle fails the load.
    async fn import(&self, frames: &mut Frames, who: &Principal) -> Result<Answer, AppError> {
        let (chunks, archive) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_IN_FLIGHT);
        let archive = futures_util::stream::unfold(archive, |mut archive| async move {
            archive.recv().await.map(|chunk| (chunk, archive))
        });
        let receiving = async {
            let (mut received_bytes, mut told_bytes) = (0_u64, 0_u64);
            loop {
                let chunk = match tokio::time::timeout(CHUNK_DEADLINE, frames.next()).await {
                    Ok(Some(Ok(chunk))) => chunk.freeze(),
                    Ok(Some(Err(error))) => return drop(chunks.send(Err(error)).await),
                    Ok(None) | Err(_) => {
                        let gone = io::Error::from(io::ErrorKind::UnexpectedEof);
                        return drop(chunks.send(Err(gone)).await);
                    }
                };
                if chunk.is_empty() {
                    return drop(chunks);
                }
                received_bytes += chunk.len() as u64;
                if chunks.send(Ok(chunk)).await.is_err() {
                    return;
                }
                if received_bytes - told_bytes >= PROGRESS_STEP_BYTES {
                    told_bytes = received_bytes;
                    let so_far = Answer::Progress {
                        received_bytes,
                        total_bytes: None,
                    };
                    send(frames, &so_far).await;
                }
            }
        };
        let loading = self.app.import_image(who, archive.boxed());
        let ((), digest) = tokio::join!(receiving, loading);
        Ok(Answer::Image { digest: digest? })
    }
}

/// Whether it was taken.
pub(super) async fn send(frames: &mut Frames, answer: &Answer) -> bool {
    let frame = match serde_json::to_vec(answer) {
        Ok(frame) => Bytes::from(frame),
        Err(error) => {
            warn!(%error, "cannot write an answer");
            return false;
        }
    };
    match tokio::time::timeout(FRAME_DEADLINE, frames.send(frame)).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => info!(%error, "an operator went away"),
        Err(_) => info!("an operator does not read its answer"),
    }
    false
}

fn refused(code: &str, message: impl Into<String>) -> Answer {
    Answer::Refused {
        code: code.to_owned(),
        message: message.into(),
    }
}

/// An operator may see causes: they own the machine.
fn told(error: &AppError) -> Answer {
    let code = match error {
        AppError::Unauthenticated => "unauthenticated",
        AppError::Denied { .. } => "denied",
        AppError::Session(error) => error.code(),
        AppError::Store(_) => "store_failed",
        AppError::Audit(_) => "audit_failed",
        AppError::NoRecord(_) => "no_record",
        AppError::BadFilter(_) => "bad_filter",
        AppError::Archived { .. } => "audit_archived",
        AppError::Archive(error) => error.code(),
        AppError::BadArchive(_) => "bad_archive",
        AppError::Runtime(_) => "runtime_failed",
        AppError::Template(refusal) => refusal.code(),
        AppError::Key(refusal) => refusal.code(),
        AppError::Rule(refusal) => refusal.code(),
        AppError::Credential(error) => error.code(),
        AppError::Snapshot(refusal) => refusal.code(),
        AppError::Backup(error) => error.code(),
        AppError::Reload(_) => "not_reloaded",
        AppError::Endpoint(refusal) => refusal.code(),
        AppError::Internal(_) => "internal",
    };
    refused(code, Chain(error).to_string())
}
