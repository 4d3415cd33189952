//! Every bound of the link, in one place: sizes, counts and times, each with its unit and its reason.
//!
//! Both ends enforce what concerns them; neither trusts the other to have done so.

use std::time::Duration;

// --- Handshake -------------------------------------------------------------------------------------------------------

/// Longest handshake document, in bytes. A hello is about 500; the rest is room for the next version's fields.
pub const MAX_HELLO_BYTES: usize = 4096;

/// How long either side waits for the other's handshake document. Dialing takes milliseconds; a sandbox on a machine
/// that starts a hundred others may take seconds.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Handshakes that one listener carries at once. The real guest needs one; the rest is room for one that died half way.
/// A further dialer pushes out the oldest, so that silent peers never shut the honest one out.
pub const MAX_PENDING_HANDSHAKES: usize = 8;

/// Pause of a listener after a handshake that was rejected, and after one that made a link: a guest that dials in a loop
/// costs at most twenty of either a second.
pub const REJECT_PAUSE: Duration = Duration::from_millis(50);

/// Length of the kernel's banner in a hello, in bytes: the first two lines of gVisor's log are shorter.
pub const MAX_BANNER_BYTES: usize = 512;

/// First delay before the guest dials again. Doubles up to [`REDIAL_MAX`], each with jitter.
pub const REDIAL_MIN: Duration = Duration::from_millis(10);

/// Longest delay before the guest dials again: what a restart of the daemon costs a session at most.
pub const REDIAL_MAX: Duration = Duration::from_millis(500);

// --- HTTP/2 ----------------------------------------------------------------------------------------------------------

/// Processes with an open stream on one link.
pub const MAX_PROCESSES: usize = 256;

/// Short requests (health, signals) in flight on one link, beside the processes.
pub const MAX_CONTROL_REQUESTS: usize = 64;

/// Other streams in flight on one link: readers of processes, files, archives, watches, ports.
pub const MAX_TRANSFERS: usize = 192;

/// Bytes of requests on one link that the guest has not answered, each counted as at least [`MIN_REQUEST_BYTES`]. HTTP/2
/// keeps what the guest does not let it send, also after the caller has given up: without this bound, a guest that allows
/// no streams would make the daemon gather every request that is ever made.
pub const MAX_UNANSWERED_BYTES: usize = 16 * 1024 * 1024;

/// What a request costs beside its first chunk, in bytes.
pub const MIN_REQUEST_BYTES: usize = 2048;

/// HTTP/2 streams on one link: every process, transfer and short request has one. Announced by the guest, kept by both.
pub const MAX_STREAMS: u32 = 512;

/// Flow-control window of one stream, in bytes. This is what one stalled reader costs: one full frame on its way and one
/// behind it. A Unix socket's round trip of 30 µs needs no more for more than 1 GB/s.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// Flow-control window of the connection, in bytes: all streams together, so that stalled ones never stop another.
/// h2 also derives from it how many tiny DATA frames it holds before it ends the connection.
pub const CONNECTION_WINDOW_BYTES: u32 = MAX_STREAMS * STREAM_WINDOW_BYTES;

/// Largest HTTP/2 frame, in bytes: one full chunk of ours without a second frame header.
pub const MAX_HTTP2_FRAME_BYTES: u32 = 130 * 1024;

/// Bytes that HTTP/2 may hold for sending on one stream.
pub const MAX_SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Largest list of headers, in bytes. Ours are under 200.
pub const MAX_HEADER_LIST_BYTES: u32 = 4096;

/// Streams that one side keeps in mind after it reset them, so that what is still on its way is not taken for an error:
/// as many as a client of the daemon can drop at once, a few times over.
pub const MAX_RESET_STREAMS: usize = 1024;

/// Protocol errors that HTTP/2 answers with a stream reset before it ends the connection.
pub const MAX_ERROR_RESETS: usize = 1024;

// --- Frames of a process stream --------------------------------------------------------------------------------------

/// Bytes before each frame's payload: one of kind, four of length.
pub const FRAME_HEADER_BYTES: usize = 5;

/// Largest payload of a data frame, in bytes: twice what a pipe holds. In a sandbox system calls are what a file costs, and
/// with half of this an upload takes twice as many.
pub const MAX_FRAME_PAYLOAD_BYTES: usize = 128 * 1024;

/// Largest JSON payload except the start's, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 16 * 1024;

/// Largest item or head of a transfer, in bytes: a file's entry with its paths and metadata at their bounds.
pub const MAX_ITEM_BYTES: usize = 64 * 1024;

/// Largest payload of a start frame, in bytes: arguments and environment at their bounds, with JSON's escapes.
pub const MAX_START_BYTES: usize = 1024 * 1024;

/// Smallest body chunk, in bytes; shorter ones are filled up with a padding frame. h2 counts smaller DATA frames against
/// the peer, and a program that prints single bytes to a stalled reader would cost the whole link.
pub const MIN_CHUNK_BYTES: usize = 256;

/// Chunks without a frame of ours that a reader takes before it lets others work: padding costs its sender nothing.
pub const MAX_EMPTY_CHUNKS: usize = 32;

/// Frames that wait between a program's pipes and HTTP/2, on either side: one on its way, one behind it.
pub const FRAME_QUEUE: usize = 2;

// --- A process -------------------------------------------------------------------------------------------------------

/// Arguments of one process, the program's name included.
pub const MAX_ARGV_COUNT: usize = 4096;

/// Bytes of all arguments. Linux takes 128 KiB for one and a quarter of the stack for all.
pub const MAX_ARGV_BYTES: usize = 256 * 1024;

/// Bytes of one argument, or of a shell's command line (Linux' `MAX_ARG_STRLEN`, with the NUL).
pub const MAX_ARG_BYTES: usize = 128 * 1024;

/// Environment variables of one process.
pub const MAX_ENV_COUNT: usize = 1024;

/// Bytes of all names and values of the environment.
pub const MAX_ENV_BYTES: usize = 256 * 1024;

/// Bytes of a path (Linux' `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

/// Bytes of a user's name.
pub const MAX_USER_BYTES: usize = 64;

/// Bytes of a process's tag.
pub const MAX_TAG_BYTES: usize = 128;

/// The latest bytes of each output that are kept for readers when the caller names no bound.
pub const DEFAULT_KEEP_BYTES: u64 = 1024 * 1024;

/// The latest bytes of each output that a caller may ask to keep.
pub const MAX_KEEP_BYTES: u64 = 16 * 1024 * 1024;

/// Bytes of output that one guest keeps of all its processes; beyond it the output of ended ones goes, oldest first, and
/// running ones keep less.
pub const MAX_KEPT_BYTES: usize = 64 * 1024 * 1024;

/// Ended processes that one guest keeps for late readers.
pub const MAX_KEPT_PROCESSES: usize = 256;

/// Processes that a list of them holds: those that run and those that are kept.
pub const MAX_LISTED_PROCESSES: usize = MAX_PROCESSES + MAX_KEPT_PROCESSES;

/// Words of a process's command line in a list.
pub const MAX_LISTED_WORDS: usize = 16;

/// Bytes of each such word.
pub const MAX_LISTED_WORD_BYTES: usize = 256;

/// Time that a process has to take input that was sent to it apart from its own stream.
pub const INPUT_DEADLINE: Duration = Duration::from_secs(10);

/// Longest grace between SIGTERM and SIGKILL, in milliseconds.
pub const MAX_KILL_GRACE_MS: u64 = 60_000;

/// Grace between SIGTERM and SIGKILL when the caller names none, in milliseconds.
pub const DEFAULT_KILL_GRACE_MS: u64 = 2_000;

/// Bytes of one output stream that are sent when the caller names no bound.
pub const DEFAULT_OUTPUT_BYTES: u64 = 16 * 1024 * 1024;

/// Time from a start's first byte until the guest says started or failed. A spawn takes 5 ms; a loaded machine seconds.
pub const START_DEADLINE: Duration = Duration::from_secs(15);

/// Time for a stream to end after the process on it has.
pub const STREAM_END_DEADLINE: Duration = Duration::from_secs(1);

/// Time for a short request: health, a signal.
pub const CONTROL_DEADLINE: Duration = Duration::from_secs(5);

// --- Channels --------------------------------------------------------------------------------------------------------

/// Connections beside the link that one guest has open for large files. Each costs the guest a thread and a buffer; whoever
/// finds none left goes over the link itself.
pub const MAX_CHANNELS: usize = 8;

/// Connections of programs to the way out that one guest has open at one time; the next one waits.
pub const MAX_EGRESS_CONNECTIONS: usize = 128;

/// What the guest carries of such a connection at once, each way: all of them together have 4 MiB.
pub const EGRESS_PIECE_BYTES: usize = 16 * 1024;

/// Bytes from which a channel is worth its dial, which costs a sandbox 3 ms.
pub const MIN_CHANNEL_BYTES: u64 = 2 * 1024 * 1024;

/// Bytes that the daemon takes from a channel at once: what a Unix socket holds.
pub const CHANNEL_READ_BYTES: usize = 256 * 1024;

/// Bytes that the guest takes from a channel at once: system calls are what it costs there.
pub const CHANNEL_PART_BYTES: usize = 512 * 1024;

// --- Files, ports, usage ---------------------------------------------------------------------------------------------

/// Time until a transfer's first frame: opening a file, connecting to a port.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(15);

/// Longest silence of a guest that has something to send or to take.
pub const STALL_DEADLINE: Duration = Duration::from_secs(60);

/// Time from the last byte of a file or archive until it is in its place. On a slow disk a sync of many GiB takes minutes.
pub const COMMIT_DEADLINE: Duration = Duration::from_secs(300);

/// Levels of directories in one list.
pub const MAX_LIST_DEPTH: u32 = 64;

/// Entries of one list of files.
pub const MAX_LISTED_FILES: u32 = 10_000;

/// Bytes of all items of one list as they come: ten thousand files with names of an ordinary length, twice. A list of files
/// is cut there, every other one is refused.
pub const MAX_LIST_BYTES: usize = 8 * 1024 * 1024;

/// Entries of a file's metadata.
pub const MAX_METADATA_COUNT: usize = 32;

/// Bytes of all names and values of a file's metadata.
pub const MAX_METADATA_BYTES: usize = 8 * 1024;

/// Bytes of the name of one metadata entry.
pub const MAX_METADATA_NAME_BYTES: usize = 100;

/// Bytes of the largest file (Linux' `loff_t` has a sign).
pub const MAX_FILE_BYTES: u64 = i64::MAX.cast_unsigned();

/// Bytes of a file's entity tag.
pub const MAX_ETAG_BYTES: usize = 64;

/// Directories that one watch follows.
pub const MAX_WATCHED_DIRECTORIES: usize = 4096;

/// Ports in a list of them.
pub const MAX_LISTED_PORTS: usize = 1024;

/// Bytes of a host name.
pub const MAX_HOSTNAME_BYTES: usize = 256;

/// Bytes of a refusal's code.
pub const MAX_CODE_BYTES: usize = 64;

/// Bytes of a refusal's message; longer ones are cut.
pub const MAX_MESSAGE_BYTES: usize = 1024;
