//! How the guest says no: a code for programs, a sentence for people.

use serde::{Deserialize, Serialize};

/// Why the guest did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One of [`code`], or a newer guest's.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// The codes of a [`Refusal`].
pub mod code {
    /// The specification breaks a bound.
    pub const BAD_SPEC: &str = "bad_spec";
    /// No such program (or no interpreter for it).
    pub const NOT_FOUND: &str = "not_found";
    /// The user may not run the program.
    pub const PERMISSION_DENIED: &str = "permission_denied";
    /// The working directory does not exist or may not be entered.
    pub const BAD_WORKDIR: &str = "bad_workdir";
    /// The sandbox has no such user.
    pub const UNKNOWN_USER: &str = "unknown_user";
    /// The user exists and may not be used.
    pub const USER_NOT_ALLOWED: &str = "user_not_allowed";
    /// The sandbox runs as many processes as it may.
    pub const TOO_MANY_PROCESSES: &str = "too_many_processes";
    /// As many processes were started as may be in the sandbox's life.
    pub const LIMIT_REACHED: &str = "limit_reached";
    /// The sandbox has no memory left for another process.
    pub const OUT_OF_MEMORY: &str = "out_of_memory";
    /// The kernel refused the program for another reason.
    pub const SPAWN_FAILED: &str = "spawn_failed";
    /// The guest is ending.
    pub const STOPPING: &str = "stopping";
    /// The process is not there (any more).
    pub const NO_SUCH_PROCESS: &str = "no_such_process";
    /// The process has no input, or its input has ended.
    pub const NO_INPUT: &str = "no_input";
    /// The process did not take its input in time.
    pub const INPUT_STALLED: &str = "input_stalled";
    /// The process has no terminal.
    pub const NO_PTY: &str = "no_pty";
    /// The file is not there.
    pub const FILE_NOT_FOUND: &str = "file_not_found";
    /// Something is there already, or is not empty.
    pub const FILE_EXISTS: &str = "file_exists";
    /// It is not the kind of file that the request is for.
    pub const WRONG_FILE_KIND: &str = "wrong_file_kind";
    /// The user may not do that.
    pub const FILE_DENIED: &str = "file_denied";
    /// The part of the file that was asked for lies outside.
    pub const BAD_RANGE: &str = "bad_range";
    /// The sandbox's disk, or the bound on one file, is full.
    pub const DISK_FULL: &str = "disk_full";
    /// The condition of a write does not hold.
    pub const CONDITION_FAILED: &str = "condition_failed";
    /// The archive is damaged, or an entry would leave its root.
    pub const BAD_ARCHIVE: &str = "bad_archive";
    /// The kernel refused for another reason.
    pub const FILE_FAILED: &str = "file_failed";
    /// Nothing listens on the port.
    pub const NOT_LISTENING: &str = "not_listening";
    /// No connection to this port is made, whatever listens there.
    pub const PORT_NOT_ALLOWED: &str = "port_not_allowed";
    /// Too many streams of this kind are open.
    pub const BUSY: &str = "busy";
    /// This guest cannot do that: it is older than the request.
    pub const UNSUPPORTED: &str = "unsupported";
    /// The request makes no sense to this guest.
    pub const BAD_REQUEST: &str = "bad_request";

    /// Every code that a guest of this build gives.
    pub const ALL: &[&str] = &[
        BAD_SPEC,
        NOT_FOUND,
        PERMISSION_DENIED,
        BAD_WORKDIR,
        UNKNOWN_USER,
        USER_NOT_ALLOWED,
        TOO_MANY_PROCESSES,
        LIMIT_REACHED,
        OUT_OF_MEMORY,
        SPAWN_FAILED,
        STOPPING,
        NO_SUCH_PROCESS,
        NO_INPUT,
        INPUT_STALLED,
        NO_PTY,
        FILE_NOT_FOUND,
        FILE_EXISTS,
        WRONG_FILE_KIND,
        FILE_DENIED,
        BAD_RANGE,
        DISK_FULL,
        CONDITION_FAILED,
        BAD_ARCHIVE,
        FILE_FAILED,
        NOT_LISTENING,
        PORT_NOT_ALLOWED,
        BUSY,
        UNSUPPORTED,
        BAD_REQUEST,
    ];
}
