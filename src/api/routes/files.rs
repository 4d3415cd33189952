//! Routes of the files in a session.

use http::Method;

use crate::api::route::{Answer, Parameter, Request, Route, parameter, schema_of};
use crate::api::v1::{archive, files};

const PATH: Parameter = parameter(
    "path",
    "Its path in the sandbox; a relative one is below the home of the user who acts.",
);
const USER: Parameter = parameter("user", "Who acts inside; `user` when absent.");
const COMPRESSION: Parameter = parameter("compression", "`none`, or `zstd`.");

/// How asking for a file fails.
const FAILURES: &[u16] = &[403, 404, 409, 422, 502];

/// How changing something fails that takes room on the disk.
const WRITE_FAILURES: &[u16] = &[403, 404, 409, 422, 502, 507];

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/files",
        "read_file",
        "The bytes of a file, or a part of it.",
        |call| Box::pin(files::read(call)),
    )
    .query(&[PATH, USER])
    .headers(&[
        parameter(
            "Range",
            "The part: `bytes=0-99`, `bytes=100-`, `bytes=-100`.",
        ),
        parameter(
            "If-Range",
            "Only a part of this very file; otherwise all of it.",
        ),
        parameter("If-Match", "Only of this very file."),
        parameter("If-None-Match", "Only if it is not this one."),
    ])
    .answer(200, Answer::Bytes(&["application/octet-stream"]))
    .others(&[
        (
            206,
            "The part.",
            Answer::Bytes(&["application/octet-stream"]),
        ),
        (304, "The client has it.", Answer::Empty),
    ])
    .failures(&[403, 404, 409, 412, 416, 422, 502]),
    Route::new(
        Method::PUT,
        "/v1/sessions/{id}/files",
        "write_file",
        "Write a file: whoever reads it sees the old content or the new. Headers X-Metadata-* \
            are kept with it.",
        |call| Box::pin(files::write(call)),
    )
    .request(Request::bytes("application/octet-stream"))
    .query(&[
        PATH,
        USER,
        parameter(
            "mode",
            "Permission bits, octal; those of the file that is replaced, or 0644, when absent.",
        ),
        parameter(
            "append",
            "Whether to add to what is there, which is not atomic.",
        ),
        parameter(
            "parents",
            "Whether directories that are missing are made; they are when absent.",
        ),
        parameter("sync", "Whether it must be on the disk before the answer."),
    ])
    .headers(&[
        parameter(
            "If-Match",
            "Only instead of this very file, or of any with *.",
        ),
        parameter("If-None-Match", "With *: only if there is none."),
    ])
    .answer(200, Answer::Json(schema_of::<files::FileView>))
    .failures(&[403, 404, 408, 409, 412, 422, 502, 507]),
    Route::new(
        Method::DELETE,
        "/v1/sessions/{id}/files",
        "remove_file",
        "Remove a file or a directory.",
        |call| Box::pin(files::remove(call)),
    )
    .query(&[
        PATH,
        USER,
        parameter(
            "recursive",
            "Whether a directory goes with all that is in it.",
        ),
    ])
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/files/stat",
        "stat_file",
        "What is known of a file.",
        |call| Box::pin(files::stat(call)),
    )
    .query(&[
        PATH,
        USER,
        parameter(
            "follow",
            "Whether a symbolic link stands for what it leads to; it does when absent.",
        ),
    ])
    .answer(200, Answer::Json(schema_of::<files::FileView>))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/files/list",
        "list_files",
        "What is in a directory, parents before what is in them.",
        |call| Box::pin(files::list(call)),
    )
    .query(&[
        PATH,
        USER,
        parameter("depth", "Levels below it, 1 to 64; 1 when absent."),
        parameter("limit", "At most so many, 1 to 10000; 1000 when absent."),
    ])
    .answer(200, Answer::Json(schema_of::<files::FilePage>))
    .failures(FAILURES),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/files/mkdir",
        "make_directory",
        "Make a directory; one that is there already is as well.",
        |call| Box::pin(files::mkdir(call)),
    )
    .request(Request::Json(schema_of::<files::MakeDirectory>))
    .answer(200, Answer::Json(schema_of::<files::MadeView>))
    .failures(WRITE_FAILURES),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/files/move",
        "move_file",
        "Give a file or directory another name.",
        |call| Box::pin(files::rename(call)),
    )
    .request(Request::Json(schema_of::<files::MoveFile>))
    .answer(200, Answer::Json(schema_of::<files::FileView>))
    .failures(WRITE_FAILURES),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/files/link",
        "link_file",
        "Make a symbolic link.",
        |call| Box::pin(files::link(call)),
    )
    .request(Request::Json(schema_of::<files::MakeLink>))
    .answer(200, Answer::Json(schema_of::<files::FileView>))
    .failures(WRITE_FAILURES),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/files/set",
        "set_file",
        "Change a file's mode, owner, group or metadata.",
        |call| Box::pin(files::set(call)),
    )
    .request(Request::Json(schema_of::<files::SetFile>))
    .answer(200, Answer::Json(schema_of::<files::FileView>))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/files/watch",
        "watch_files",
        "What happens to a file or below a directory, from now on.",
        |call| Box::pin(files::watch(call)),
    )
    .query(&[
        PATH,
        USER,
        parameter("recursive", "Whether directories below it are watched too."),
    ])
    .answer(200, Answer::Events(schema_of::<files::FileEventView>))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/archive",
        "read_archive",
        "A directory, with all below it, as a tar stream.",
        |call| Box::pin(archive::read(call)),
    )
    .query(&[PATH, USER, COMPRESSION])
    .answer(
        200,
        Answer::Bytes(&["application/x-tar", "application/zstd"]),
    )
    .failures(FAILURES),
    Route::new(
        Method::PUT,
        "/v1/sessions/{id}/archive",
        "write_archive",
        "Unpack a tar stream into a directory, which no entry leaves.",
        |call| Box::pin(archive::write(call)),
    )
    .request(Request::bytes("application/x-tar"))
    .query(&[PATH, USER, COMPRESSION])
    .answer(200, Answer::Json(schema_of::<archive::Unpacked>))
    .failures(&[403, 404, 408, 409, 422, 502, 507]),
];
