//! The paths and content types of the link's HTTP/2 requests, as both ends spell them.
//!
//! Documents go as [`JSON`], bodies of frames as [`FRAMES`] ([`crate::wire`]). Each family of routes has a capability that a
//! guest announces ([`crate::handshake::CAPABILITIES`]); the daemon asks no guest for what it did not announce.

/// `GET`: a [`crate::Health`] as JSON.
pub const HEALTH: &str = "/v1/health";

/// `GET`: a [`crate::usage::Usage`] as JSON.
pub const USAGE: &str = "/v1/usage";

/// `POST`: a process; both bodies are process frames and last as long as the process.
pub const PROCESS_START: &str = "/v1/process/start";

/// `POST`: a reader of a process that runs or is kept; both bodies are process frames.
pub const PROCESS_ATTACH: &str = "/v1/process/attach";

/// `POST`: input for a process; the request is process frames, the answer a [`crate::process::InputSummary`] when the
/// process has taken them.
pub const PROCESS_INPUT: &str = "/v1/process/input";

/// `POST`: no head; the answer is transfer frames, a [`crate::process::ProcessInfo`] an item.
pub const PROCESS_LIST: &str = "/v1/process/list";

/// `POST`: a [`crate::process::SignalRequest`]. Apart from the process's own stream, because input that the program does
/// not read stalls that stream, and a signal behind it would never arrive.
pub const PROCESS_SIGNAL: &str = "/v1/process/signal";

/// `POST`: a [`crate::process::ResizeRequest`].
pub const PROCESS_RESIZE: &str = "/v1/process/resize";

/// `POST`: a [`crate::process::DetachRequest`]: nobody listens to the process any more.
pub const PROCESS_DETACH: &str = "/v1/process/detach";

/// `POST`, transfer frames both ways: a [`crate::file::StatRequest`].
pub const FILE_STAT: &str = "/v1/file/stat";

/// `POST`, transfer frames both ways: a [`crate::file::ListRequest`].
pub const FILE_LIST: &str = "/v1/file/list";

/// `POST`, transfer frames both ways: a [`crate::file::ReadRequest`].
pub const FILE_READ: &str = "/v1/file/read";

/// `POST`, transfer frames both ways: a [`crate::file::WriteRequest`].
pub const FILE_WRITE: &str = "/v1/file/write";

/// `POST`, transfer frames both ways: a [`crate::file::MkdirRequest`].
pub const FILE_MKDIR: &str = "/v1/file/mkdir";

/// `POST`, transfer frames both ways: a [`crate::file::MoveRequest`].
pub const FILE_MOVE: &str = "/v1/file/move";

/// `POST`, transfer frames both ways: a [`crate::file::RemoveRequest`].
pub const FILE_REMOVE: &str = "/v1/file/remove";

/// `POST`, transfer frames both ways: a [`crate::file::LinkRequest`].
pub const FILE_LINK: &str = "/v1/file/link";

/// `POST`, transfer frames both ways: a [`crate::file::SetRequest`].
pub const FILE_SET: &str = "/v1/file/set";

/// `POST`, transfer frames both ways: a [`crate::file::WatchRequest`].
pub const FILE_WATCH: &str = "/v1/file/watch";

/// `POST`, transfer frames both ways: a [`crate::file::ArchiveRequest`].
pub const ARCHIVE_READ: &str = "/v1/archive/read";

/// `POST`, transfer frames both ways: a [`crate::file::UnpackRequest`].
pub const ARCHIVE_WRITE: &str = "/v1/archive/write";

/// `POST`, transfer frames both ways: a [`crate::snapshot::SnapshotRequest`].
pub const SNAPSHOT_READ: &str = "/v1/snapshot/read";

/// `POST`, transfer frames both ways: a [`crate::port::ConnectRequest`].
pub const PORT_CONNECT: &str = "/v1/port/connect";

/// `POST`: no head; the answer is transfer frames, a [`crate::port::OpenPort`] an item.
pub const PORT_LIST: &str = "/v1/port/list";

/// `POST`: a [`crate::warm_up::IdentityRequest`]; the answer is a [`crate::warm_up::Identity`].
pub const IDENTITY: &str = "/v1/identity";

/// `POST`: a [`crate::trust::TrustRequest`].
pub const TRUST: &str = "/v1/trust";

/// `POST`: an empty document. The guest lets go of its link, and of everything else of the host's, until it finds a new token.
pub const REST: &str = "/v1/rest";

/// Content type of a body of frames.
pub const FRAMES: &str = "application/vnd.casemate.frames";

/// Content type of a document.
pub const JSON: &str = "application/json";
