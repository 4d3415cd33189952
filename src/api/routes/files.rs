//! Routes of the files in a session.

use http::Method;

use crate::api::route::{
    Access, Answer, HeaderParameter, QueryParameter, Request, Route, schema_of,
};
use crate::api::v1::{archive, files};

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        path: "/v1/sessions/{id}/files",
        name: "read_file",
        about: "The bytes of a file, or a part of it.",
        access: Access::Key,
        request: Request::None,
        query: &[
            QueryParameter {
                name: "path",
                about: "Its path in the sandbox; a relative one is below the home of the user who acts.",
            },
            QueryParameter {
                name: "user",
                about: "Who acts inside; `user` when absent.",
            },
        ],
        headers: &[
            HeaderParameter {
                name: "Range",
                about: "The part: `bytes=0-99`, `bytes=100-`, `bytes=-100`.",
            },
            HeaderParameter {
                name: "If-Range",
                about: "Only a part of this very file; otherwise all of it.",
            },
            HeaderParameter {
                name: "If-Match",
                about: "Only of this very file.",
            },
            HeaderParameter {
                name: "If-None-Match",
                about: "Only if it is not this one.",
            },
        ],
        status: 200,
        answer: Answer::Bytes(&["application/octet-stream"]),
        others: &[
            (
                206,
                "The part.",
                Answer::Bytes(&["application/octet-stream"]),
            ),
            (304, "The client has it.", Answer::Empty),
        ],
        failures: &[403, 404, 409, 412, 416, 422, 502],
        handler: |call| Box::pin(files::read(call)),
    },
    Route {
        method: Method::PUT,
        path: "/v1/sessions/{id}/files",
        name: "write_file",
        about: "Write a file: whoever reads it sees the old content or the new. Headers X-Metadata-* are kept with it.",
        access: Access::Key,
        request: Request::Bytes {
            content_type: "application/octet-stream",
            max_bytes: None,
        },
        query: &[
            QueryParameter {
                name: "path",
                about: "Its path in the sandbox; a relative one is below the home of the user who acts.",
            },
            QueryParameter {
                name: "user",
                about: "Who acts inside; `user` when absent.",
            },
            QueryParameter {
                name: "mode",
                about: "Permission bits, octal; those of the file that is replaced, or 0644, when absent.",
            },
            QueryParameter {
                name: "append",
                about: "Whether to add to what is there, which is not atomic.",
            },
            QueryParameter {
                name: "parents",
                about: "Whether directories that are missing are made; they are when absent.",
            },
            QueryParameter {
                name: "sync",
                about: "Whether it must be on the disk before the answer.",
            },
        ],
        headers: &[
            HeaderParameter {
                name: "If-Match",
                about: "Only instead of this very file, or of any with *.",
            },
            HeaderParameter {
                name: "If-None-Match",
                about: "With *: only if there is none.",
            },
        ],
        status: 200,
        answer: Answer::Json(schema_of::<files::FileView>),
        others: &[],
        failures: &[403, 404, 408, 409, 412, 422, 502, 507],
        handler: |call| Box::pin(files::write(call)),
    },
    Route {
        method: Method::DELETE,
        path: "/v1/sessions/{id}/files",
        name: "remove_file",
        about: "Remove a file or a directory.",
        access: Access::Key,
        request: Request::None,
        query: &[
            QueryParameter {
                name: "path",
                about: "Its path in the sandbox; a relative one is below the home of the user who acts.",
            },
            QueryParameter {
                name: "user",
                about: "Who acts inside; `user` when absent.",
            },
            QueryParameter {
                name: "recursive",
                about: "Whether a directory goes with all that is in it.",
            },
        ],
        headers: &[],
        status: 204,
        answer: Answer::Empty,
        others: &[],
        failures: &[403, 404, 409, 422, 502],
        handler: |call| Box::pin(files::remove(call)),
    },
    Route {
        method: Method::GET,
        path: "/v1/sessions/{id}/files/stat",
        name: "stat_file",
        about: "What is known of a file.",
        access: Access::Key,
        request: Request::None,
        query: &[
            QueryParameter {
                name: "path",
                about: "Its path in the sandbox; a relative one is below the home of the user who acts.",
            },
            QueryParameter {
                name: "user",
                about: "Who acts inside; `user` when absent.",
            },
            QueryParameter {
                name: "follow",
                about: "Whether a symbolic link stands for what it leads to; it does when absent.",
            },
        ],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<files::FileView>),
        others: &[],
        failures: &[403, 404, 409, 422, 502],
        handler: |call| Box::pin(files::stat(call)),
    },
    Route {
        method: Method::GET,
        path: "/v1/sessions/{id}/files/list",
        name: "list_files",
        about: "What is in a directory, parents before what is in them.",
        access: Access::Key,
        request: Request::None,
        query: &[
            QueryParameter {
                name: "path",
                about: "Its path in the sandbox; a relative one is below the home of the user who acts.",
            },
            QueryParameter {
                name: "user",
                about: "Who acts inside; `user` when absent.",
            },
            QueryParameter {
                name: "depth",
                about: "Levels below it, 1 to 64; 1 when absent.",
            },
            QueryParameter {
                name: "limit",
                about: "At most so many, 1 to 10000; 1000 when absent.",
            },
        ],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<files::FilePage>),
        others: &[],
        failures: &[403, 404, 409, 422, 502],
        handler: |call| Box::pin(files::list(call)),
    },
    Route {
        method: Method::POST,
        path: "/v1/sessions/{id}/files/mkdir",
        name: "make_directory",
        about: "Make a directory; one that is there already is as well.",
        access: Access::Key,
        request: Request::Json(schema_of::<files::MakeDirectory>),
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<files::MadeView>),
        others: &[],
        failures: &[403, 404, 409, 422, 502, 507],
        handler: |call| Box::pin(files::mkdir(call)),
    },
    Route {
        method: Method::POST,
        path: "/v1/sessions/{id}/files/move",
        name: "move_file",
        about: "Give a file or directory another name.",
        access: Access::Key,
        request: Request::Json(schema_of::<files::MoveFile>),
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<files::FileView>),
        others: &[],
        failures: &[403, 404, 409, 422, 502, 507],
        handler: |call| Box::pin(files::rename(call)),
    },
    Route {
        method: Method::POST,
        path: "/v1/sessions/{id}/files/link",
        name: "link_file",
        about: "Make a symbolic link.",
        access: Access::Key,
        request: Request::Json(schema_of::<files::MakeLink>),
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<files::FileView>),
        others: &[],
        failures: &[403, 404, 409, 422, 502, 507],
        handler: |call| Box::pin(files::link(call)),
    },
    Route {
        method: Method::POST,
        path: "/v1/sessions/{id}/files/set",
        name: "set_file",
        about: "Change a file's mode, owner, group or metadata.",
        access: Access::Key,
        request: Request::Json(schema_of::<files::SetFile>),
        query: &[],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<files::FileView>),
        others: &[],
        failures: &[403, 404, 409, 422, 502],
        handler: |call| Box::pin(files::set(call)),
    },
    Route {
        method: Method::GET,
        path: "/v1/sessions/{id}/files/watch",
        name: "watch_files",
        about: "What happens to a file or below a directory, from now on.",
        access: Access::Key,
        request: Request::None,
        query: &[
            QueryParameter {
                name: "path",
                about: "Its path in the sandbox; a relative one is below the home of the user who acts.",
            },
            QueryParameter {
                name: "user",
                about: "Who acts inside; `user` when absent.",
            },
            QueryParameter {
                name: "recursive",
                about: "Whether directories below it are watched too.",
            },
        ],
        headers: &[],
        status: 200,
        answer: Answer::Events(schema_of::<files::FileEventView>),
        others: &[],
        failures: &[403, 404, 409, 422, 502],
        handler: |call| Box::pin(files::watch(call)),
    },
    Route {
        method: Method::GET,
        path: "/v1/sessions/{id}/archive",
        name: "read_archive",
        about: "A directory, with all below it, as a tar stream.",
        access: Access::Key,
        request: Request::None,
        query: &[
            QueryParameter {
                name: "path",
                about: "Its path in the sandbox; a relative one is below the home of the user who acts.",
            },
            QueryParameter {
                name: "user",
                about: "Who acts inside; `user` when absent.",
            },
            QueryParameter {
                name: "compression",
                about: "`none`, or `zstd`.",
            },
        ],
        headers: &[],
        status: 200,
        answer: Answer::Bytes(&["application/x-tar", "application/zstd"]),
        others: &[],
        failures: &[403, 404, 409, 422, 502],
        handler: |call| Box::pin(archive::read(call)),
    },
    Route {
        method: Method::PUT,
        path: "/v1/sessions/{id}/archive",
        name: "write_archive",
        about: "Unpack a tar stream into a directory, which no entry leaves.",
        access: Access::Key,
        request: Request::Bytes {
            content_type: "application/x-tar",
            max_bytes: None,
        },
        query: &[
            QueryParameter {
                name: "path",
                about: "Its path in the sandbox; a relative one is below the home of the user who acts.",
            },
            QueryParameter {
                name: "user",
                about: "Who acts inside; `user` when absent.",
            },
            QueryParameter {
                name: "compression",
                about: "`none`, or `zstd`.",
            },
        ],
        headers: &[],
        status: 200,
        answer: Answer::Json(schema_of::<archive::Unpacked>),
        others: &[],
        failures: &[403, 404, 408, 409, 422, 502, 507],
        handler: |call| Box::pin(archive::write(call)),
    },
];
