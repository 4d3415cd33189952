//! Routes of the processes in a session, what it uses and which ports are open.

use http::Method;

use crate::api::route::{Answer, Parameter, Request, Route, parameter, schema_of};
use crate::api::v1::{processes, terminal, usage};

const STDOUT_OFFSET: Parameter =
    parameter("stdout_offset", "Offset in standard output to begin at.");
const STDERR_OFFSET: Parameter =
    parameter("stderr_offset", "Offset in standard error to begin at.");

/// How asking the guest fails.
const FAILURES: &[u16] = &[404, 409, 502];

pub(super) const ROUTES: &[Route] = &[
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/processes",
        "start_process",
        "Start a process that goes on when nobody reads it; what it says is kept for readers, \
            up to a bound.",
        |call| Box::pin(processes::start(call)),
    )
    .request(Request::Json(schema_of::<processes::StartProcess>))
    .answer(201, Answer::Json(schema_of::<processes::Started>))
    .failures(&[404, 409, 422, 502]),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/processes",
        "list_processes",
        "The processes that run, and those that ended and are kept, oldest first.",
        |call| Box::pin(processes::list(call)),
    )
    .answer(200, Answer::Json(schema_of::<processes::ProcessPage>))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/processes/{pid}",
        "get_process",
        "One process, by its pid or its tag.",
        |call| Box::pin(processes::get(call)),
    )
    .answer(200, Answer::Json(schema_of::<processes::ProcessView>))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/processes/{pid}/output",
        "read_process",
        "What a process says, from the start of what is kept, and how it ends.",
        |call| Box::pin(processes::output(call)),
    )
    .query(&[STDOUT_OFFSET, STDERR_OFFSET])
    .headers(&[parameter("Last-Event-ID", "Go on after this event.")])
    .answer(200, Answer::Events(schema_of::<processes::OutputEvent>))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/processes/{pid}/attach",
        "attach_process",
        "Read a process and write to it over a WebSocket: binary messages are output (a first \
            byte of 1 or 2 says which) and input, text messages are JSON.",
        |call| Box::pin(terminal::attach(call)),
    )
    .query(&[STDOUT_OFFSET, STDERR_OFFSET])
    .answer(101, Answer::WebSocket(Some(terminal::PROTOCOL)))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/exec",
        "exec",
        "Start a process over a WebSocket, whose first message is what start_process takes; \
            the process ends with the socket.",
        |call| Box::pin(terminal::exec(call)),
    )
    .answer(101, Answer::WebSocket(Some(terminal::PROTOCOL)))
    .failures(&[404]),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/processes/{pid}/input",
        "write_process",
        "Send input to a process; answers when it has taken all.",
        |call| Box::pin(processes::input(call)),
    )
    .request(Request::bytes("application/octet-stream"))
    .query(&[parameter("end", "Whether its input ends then.")])
    .answer(200, Answer::Json(schema_of::<processes::InputTaken>))
    .failures(&[404, 408, 409, 502]),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/processes/{pid}/signal",
        "signal_process",
        "Send a signal to a process and its group.",
        |call| Box::pin(processes::send_signal(call)),
    )
    .request(Request::Json(schema_of::<processes::SendSignal>))
    .failures(FAILURES),
    Route::new(
        Method::POST,
        "/v1/sessions/{id}/processes/{pid}/resize",
        "resize_process",
        "Give a process's terminal another size.",
        |call| Box::pin(processes::resize(call)),
    )
    .request(Request::Json(schema_of::<processes::TerminalSize>))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/usage",
        "session_usage",
        "What a session uses now, and what it used in the last half hour.",
        |call| Box::pin(usage::usage(call)),
    )
    .answer(200, Answer::Json(schema_of::<usage::UsageView>))
    .failures(FAILURES),
    Route::new(
        Method::GET,
        "/v1/sessions/{id}/ports",
        "list_ports",
        "The ports that programs in the session listen on.",
        |call| Box::pin(usage::ports(call)),
    )
    .answer(200, Answer::Json(schema_of::<usage::PortPage>))
    .failures(FAILURES),
];
