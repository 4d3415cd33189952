//! The paths and content types of the link's HTTP/2 requests, as both ends spell them.

/// `GET`: a [`crate::Health`] as JSON.
pub const HEALTH: &str = "/v1/health";

/// `POST`: a process; both bodies are frames ([`crate::wire`]) and last as long as the process.
pub const PROCESS_START: &str = "/v1/process/start";

/// `POST`: a [`crate::process::SignalRequest`]. Apart from the process's own stream, because input that the program does
/// not read stalls that stream, and a signal behind it would never arrive.
pub const PROCESS_SIGNAL: &str = "/v1/process/signal";

/// `POST`: a [`crate::process::DetachRequest`]: nobody listens to the process any more.
pub const PROCESS_DETACH: &str = "/v1/process/detach";

/// Content type of a body of frames.
pub const FRAMES: &str = "application/vnd.casemate.frames";

/// Content type of a document.
pub const JSON: &str = "application/json";
