//! The template for code interpreters as it is shipped: what clients of E2B's code interpreter find on port 49999.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Answer, Client, Daemon, bench, wait_for, wait_until};

/// Longer than any line of a cell takes here, with a kernel that starts before it.
const DEADLINE: Duration = Duration::from_secs(90);

/// Of a session.
const MAX_CONTEXTS: usize = 16;

/// Of one context, beside the one that runs.
const MAX_WAITING: usize = 16;

/// A cell that waits until the gate is opened.
const WAITS: &str = "print('waiting', flush=True); _ = open('gate').read()";

/// A session of the shipped template.
struct Interpreter {
    daemon: Daemon,
    id: String,
}

/// The lines of a cell as they come.
struct Lines {
    answer: Response<Incoming>,
    text: String,
}

impl Lines {
    /// The next one; none at the end.
    async fn next(&mut self) -> Option<Value> {
        let next = async {
            loop {
                if let Some((line, rest)) = self.text.split_once('\n') {
                    // Clients split lines at other characters, too.
                    assert!(line.is_ascii(), "{line}");
                    let line = serde_json::from_str(line).unwrap();
                    let read = self.text.len() - rest.len();
                    self.text.drain(..read);
                    return Some(line);
                }
                let frame = self.answer.body_mut().frame().await?.unwrap();
                let data = frame.into_data().unwrap_or_default();
                self.text.push_str(std::str::from_utf8(&data).unwrap());
            }
        };
        timeout(DEADLINE, next).await.expect("a line comes in time")
    }

    /// The next one that is not the number of the cell, as its stream and its text.
    async fn said(&mut self) -> (String, String) {
        loop {
            let line = self.next().await.unwrap();
            if line["type"] != "number_of_executions" {
                let text = line["text"].as_str().unwrap_or_default();
                return (line["type"].as_str().unwrap().to_owned(), text.to_owned());
            }
        }
    }

    /// All that are left; the last says that there are no more.
    async fn rest(mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        while let Some(line) = self.next().await {
            lines.push(line);
        }
        let last = lines.pop();
        assert_eq!(last, Some(json!({"type": "end_of_execution"})), "{lines:?}");
        lines
    }
}

impl Interpreter {
    async fn up() -> Self {
        let mut template: Value = serde_yaml::from_str(include_str!(
            "../../config/templates/code-interpreter-v1.yaml"
        ))
        .unwrap();
        template["image"] = json!(bench().code_interpreter);
        let daemon = Daemon::up_with(&[("templates.code-interpreter-v1", template)]).await;
        let wanted = json!({"template": "code-interpreter-v1"});
        let id = daemon.client.session(wanted).await;
        Self { daemon, id }
    }

    fn client(&self) -> &Client {
        &self.daemon.client
    }

    fn path(&self, path: &str) -> String {
        format!("/v1/sessions/{}/ports/49999{path}", self.id)
    }

    /// Sends a request that is answered at once.
    async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        self.send_bytes(method, path, body).await
    }

    async fn send_bytes(&self, method: Method, path: &str, body: Bytes) -> Answer {
        let path = self.path(path);
        let headers = [("content-type", "application/json")];
        let answer = self.client().try_send(method, &path, &headers, body).await;
        answer.unwrap()
    }

    /// Begins a cell.
    async fn begin(&self, asked: &Value) -> Lines {
        let answer = self.client().ask(&self.path("/execute"), asked).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
        let text = String::new();
        Lines { answer, text }
    }

    /// Runs what is asked for; its lines.
    async fn execute(&self, asked: Value) -> Vec<Value> {
        self.begin(&asked).await.rest().await
    }

    /// Runs a cell of the default context; its lines.
    async fn run(&self, code: &str) -> Vec<Value> {
        self.execute(json!({"code": code})).await
    }

    /// What the last expression of a cell is.
    async fn value(&self, asked: Value) -> String {
        let lines = self.execute(asked).await;
        let main = lines.iter().find(|line| line["is_main_result"] == true);
        let main = main.unwrap_or_else(|| panic!("{lines:?}"));
        main["text"].as_str().unwrap().to_owned()
    }

    /// Makes sure that it is refused; what it says.
    async fn refused(&self, method: Method, path: &str, body: Value, told: (u16, &str)) -> String {
        let answer = self.send(method, path, body).await;
        let refusal = answer.expect(told.0);
        assert_eq!(refusal["code"], told.1, "{refusal}");
        refusal["message"].as_str().unwrap().to_owned()
    }

    /// Lets go on what waits at the gate.
    async fn open_gate(&self) {
        self.client().out(&self.id, "echo open >gate").await;
    }

    /// The process of the one kernel that there is, if there is one.
    async fn kernel(&self) -> Option<String> {
        let found = self.client().sh(&self.id, "pgrep -f [i]pykernel_launcher");
        Some(found.await.1.trim().to_owned()).filter(|pid| !pid.is_empty())
    }
}

/// The only one of its kind among lines.
#[track_caller]
fn only<'a>(lines: &'a [Value], kind: &str) -> &'a Value {
    let mut found = lines.iter().filter(|line| line["type"] == kind);
    let one = found.next();
    let one = one.unwrap_or_else(|| panic!("no {kind} in {lines:?}"));
    assert!(found.next().is_none(), "{lines:?}");
    one
}

#[tokio::test]
async fn cells_share_what_they_define_and_variables_of_a_call_end_with_it() {
    let interpreter = Interpreter::up().await;
    // The first cell ever is the kernel's first.
    let lines = interpreter.run("x = 41; y = 'a text'").await;
    let count = json!({"type": "number_of_executions", "execution_count": 1});
    assert_eq!(lines, [count]);
    let asked = |code: &str| json!({"code": code, "context_id": null, "language": "python", "env_vars": null});
    assert_eq!(interpreter.value(asked("x + 1")).await, "42");
    assert_eq!(interpreter.value(asked("y")).await, "a text");
    // What is awaited, what a shell says and what is asked of IPython are cells like others.
    let lines = interpreter
        .run("import asyncio\nawait asyncio.sleep(0)\n!echo from a shell")
        .await;
    assert_eq!(only(&lines, "stdout")["text"], "from a shell\r\n");

    let look = "import os; [os.environ.get(name) for name in ('A', 'HOME', 'KEPT')]";
    let given = json!({"A": "one", "HOME": "/nowhere", "KEPT": "given"});
    let with = interpreter
        .value(json!({"code": look, "env_vars": given}))
        .await;
    assert_eq!(with, "['one', '/nowhere', 'given']");
    let without = interpreter.value(asked(look)).await;
    assert_eq!(without, "[None, '/home/user', None]");
    // They end with a cell that fails, too; what a cell says itself stays.
    let lines = interpreter
        .execute(json!({"code": "os.environ['KEPT'] = 'own'; 1 / 0", "env_vars": given}))
        .await;
    assert_eq!(only(&lines, "error")["name"], "ZeroDivisionError");
    let without = interpreter.value(asked(look)).await;
    assert_eq!(without, "[None, '/home/user', 'own']");
}

#[tokio::test]
async fn what_a_cell_writes_comes_in_its_order_and_while_it_runs() {
    let interpreter = Interpreter::up().await;
    let code = "
import os, sys
os.mkfifo('gate')
for n in range(50):
    print('out', n)
    print('err', n, file=sys.stderr)
print('waiting')
open('gate').read()
print('over \\u2028 \\x85 it')
";
    let mut lines = interpreter.begin(&json!({"code": code})).await;
    let mut said: Vec<(String, String)> = Vec::new();
    while said
        .last()
        .is_none_or(|(_, text)| !text.contains("waiting"))
    {
        let (stream, text) = lines.said().await;
        match said.last_mut() {
            Some((last, gathered)) if *last == stream => gathered.push_str(&text),
            _ => said.push((stream, text)),
        }
    }
    // It still runs.
    let (last, rest) = said.split_last().unwrap();
    assert_eq!(last.1, "waiting\n");
    assert_eq!(rest.len(), 100, "{rest:?}");
    for (n, pair) in rest.chunks(2).enumerate() {
        assert_eq!(pair[0], ("stdout".to_owned(), format!("out {n}\n")));
        assert_eq!(pair[1], ("stderr".to_owned(), format!("err {n}\n")));
    }
    interpreter.open_gate().await;
    let rest = lines.rest().await;
    let over = only(&rest, "stdout");
    assert_eq!(over["text"], "over \u{2028} \u{85} it\n");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let apart = now
        .as_secs()
        .abs_diff(over["timestamp"].as_u64().unwrap() / 1_000_000_000);
    assert!(apart < 300, "{over}");
}

#[tokio::test]
async fn a_cell_that_fails_says_where_and_the_next_one_runs() {
    let interpreter = Interpreter::up().await;
    let lines = interpreter
        .run("def f(n):\n    return 1 / n\n\nprint('before')\nf(0)")
        .await;
    assert_eq!(only(&lines, "stdout")["text"], "before\n");
    let error = only(&lines, "error");
    assert_eq!(error["name"], "ZeroDivisionError");
    assert_eq!(error["value"], "division by zero");
    let traceback = error["traceback"].as_str().unwrap();
    assert!(traceback.contains("return 1 / n"), "{traceback}");
    // For people and models, not for terminals.
    assert!(!traceback.contains('\u{1b}'), "{traceback}");
    for (code, name) in [
        ("this is no Python", "SyntaxError"),
        ("input()", "StdinNotImplementedError"),
        ("raise SystemExit(3)", "SystemExit"),
    ] {
        let lines = interpreter.run(code).await;
        assert_eq!(only(&lines, "error")["name"], name);
    }
    assert_eq!(interpreter.value(json!({"code": "f(2)"})).await, "0.5");
}

#[tokio::test]
async fn a_plot_is_a_picture_and_a_chart_and_a_frame_has_its_data() {
    let interpreter = Interpreter::up().await;
    let plot = "
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], [4, 9, float('nan')], label='a line')
plt.title('T')
plt.xlabel('time (s)')
plt.show()
";
    let lines = interpreter.run(plot).await;
    let shown = only(&lines, "result");
    assert_eq!(shown["is_main_result"], false);
    let png = BASE64_STANDARD.decode(shown["png"].as_str().unwrap().trim());
    assert!(png.unwrap().starts_with(b"\x89PNG\r\n"));
    let chart = &shown["chart"];
    assert_eq!(chart["type"], "line", "{chart}");
    assert_eq!(chart["title"], "T");
    assert_eq!(chart["x_unit"], "s");
    assert_eq!(chart["elements"][0]["label"], "a line");
    let points = json!([[1.0, 4.0], [2.0, 9.0], [3.0, null]]);
    assert_eq!(chart["elements"][0]["points"], points);

    let frame = "
import pandas as pd
pd.DataFrame({'a': [1, 2], 'b': ['x', None], 'c': [0.5, float('nan')], 4: pd.to_datetime(['2026-01-02', None])})
";
    let lines = interpreter.run(frame).await;
    let shown = only(&lines, "result");
    assert_eq!(shown["is_main_result"], true);
    assert!(shown["html"].as_str().unwrap().contains("<table"));
    let data = &shown["data"];
    assert_eq!(data["a"], json!([1, 2]));
    assert_eq!(data["b"], json!(["x", null]));
    assert_eq!(data["c"], json!([0.5, null]));
    assert!(
        data["4"][0]
            .as_str()
            .unwrap()
            .starts_with("2026-01-02T00:00:00")
    );
    // What has very much data is shown without it.
    let lines = interpreter.run("pd.DataFrame({'a': range(100_001)})").await;
    let shown = only(&lines, "result");
    assert!(shown.get("data").is_none() && shown["html"].is_string());

    // Everything else that a program shows, by its name or by its media type.
    let show = "
from IPython.display import HTML, JSON, Latex, Markdown, SVG, display
display(HTML('<b>'), Markdown('*'), Latex('$x$'), JSON({'a': 1}), SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))
display({'text/x-own': 'mine'}, raw=True)
";
    let lines = interpreter.run(show).await;
    let shown: Vec<_> = lines
        .iter()
        .filter(|line| line["type"] == "result")
        .collect();
    assert_eq!(shown.len(), 6, "{lines:?}");
    assert_eq!(shown[0]["html"], "<b>");
    assert_eq!(shown[1]["markdown"], "*");
    assert_eq!(shown[2]["latex"], "$x$");
    assert_eq!(shown[3]["json"], json!({"a": 1}));
    assert!(shown[4]["svg"].as_str().unwrap().starts_with("<svg"));
    assert_eq!(shown[5]["extra"], json!({"text/x-own": "mine"}));
}

#[tokio::test]
async fn a_cell_whose_client_goes_away_is_interrupted_or_never_run() {
    let interpreter = Interpreter::up().await;
    interpreter
        .run("import os; os.mkfifo('gate'); kept = 7")
        .await;
    // One that goes on until it is interrupted, and does not at once end then.
    let code = format!(
        "try:\n    {WAITS}\nexcept KeyboardInterrupt:\n    open('heard', 'w').write('an interrupt')\n    raise"
    );
    let mut lines = interpreter.begin(&json!({"code": code})).await;
    assert_eq!(lines.said().await.1, "waiting\n");
    drop(lines);
    wait_until("the cell is interrupted", async || {
        let heard = interpreter.client().sh(&interpreter.id, "cat heard");
        heard.await.1 == "an interrupt"
    })
    .await;
    assert_eq!(interpreter.value(json!({"code": "kept"})).await, "7");

    // Behind one that runs, a number of them wait.
    let mut runs = interpreter.begin(&json!({"code": WAITS})).await;
    assert_eq!(runs.said().await.1, "waiting\n");
    let mut waiting = Vec::new();
    for _ in 0..MAX_WAITING {
        waiting.push(interpreter.begin(&json!({"code": "kept += 1"})).await);
    }
    let execute = json!({"code": "kept += 100"});
    let told = (429, "context_crowded");
    interpreter
        .refused(Method::POST, "/execute", execute.clone(), told)
        .await;
    // One that goes away makes room.
    drop(waiting.pop());
    let path = interpreter.path("/execute");
    let accepted = wait_for("there is room", DEADLINE, async || {
        let answer = interpreter.client().ask(&path, &execute).await;
        (answer.status() == 200).then_some(answer)
    });
    let text = String::new();
    let answer = accepted.await;
    interpreter.open_gate().await;
    assert!(runs.rest().await.is_empty());
    for lines in waiting {
        only(&lines.rest().await, "number_of_executions");
    }
    Lines { answer, text }.rest().await;
    // Those that were there to the end have run, once, and no other.
    assert_eq!(interpreter.value(json!({"code": "kept"})).await, "122");
}

#[tokio::test]
async fn contexts_are_made_apart_restarted_and_removed() {
    let interpreter = Interpreter::up().await;
    let all = async || {
        interpreter
            .send(Method::GET, "/contexts", Value::Null)
            .await
            .expect(200)
    };
    let first = all().await;
    let default = json!({"id": first[0]["id"], "language": "python", "cwd": "/home/user"});
    assert_eq!(first, json!([default]));
    interpreter.run("mine = 1").await;

    let asked = json!({"language": "python", "cwd": "/tmp"});
    let made = interpreter.send(Method::POST, "/contexts", asked).await;
    let made = made.expect(201);
    let id = made["id"].as_str().unwrap();
    assert_eq!(made, json!({"id": id, "language": "python", "cwd": "/tmp"}));
    assert_eq!(all().await, json!([default, made]));
    let there = |code: &str| json!({"code": code, "context_id": id});
    let code = "import os; os.getcwd(), 'mine' in globals()";
    assert_eq!(interpreter.value(there(code)).await, "('/tmp', False)");
    interpreter.execute(there("yours = 2")).await;

    // A cell that runs when its context is restarted is told.
    let mut lines = interpreter
        .begin(&there(
            "import signal; print('on', flush=True); signal.pause()",
        ))
        .await;
    assert_eq!(lines.said().await.1, "on\n");
    let path = format!("/contexts/{id}/restart");
    interpreter
        .send(Method::POST, &path, Value::Null)
        .await
        .expect(204);
    let lines = lines.rest().await;
    assert_eq!(only(&lines, "error")["name"], "ContextRestarted");
    let code = "import os; os.getcwd(), 'yours' in globals()";
    assert_eq!(interpreter.value(there(code)).await, "('/tmp', False)");
    assert_eq!(interpreter.value(json!({"code": "mine"})).await, "1");

    let path = format!("/contexts/{id}");
    interpreter
        .send(Method::DELETE, &path, Value::Null)
        .await
        .expect(204);
    assert_eq!(all().await, json!([default]));
    assert!(
        interpreter
            .kernel()
            .await
            .is_some_and(|pid| !pid.contains('\n'))
    );
    let told = (404, "no_such_context");
    for (method, path, body) in [
        (Method::POST, "/execute".to_owned(), there("1")),
        (Method::POST, format!("{path}/restart"), Value::Null),
        (Method::DELETE, path, Value::Null),
    ] {
        let message = interpreter.refused(method, &path, body, told).await;
        assert!(message.contains(id), "{message}");
    }
    // Without the default one there is a new one.
    let path = format!("/contexts/{}", default["id"].as_str().unwrap());
    interpreter
        .send(Method::DELETE, &path, Value::Null)
        .await
        .expect(204);
    let code = json!({"code": "'mine' in globals()"});
    assert_eq!(interpreter.value(code).await, "False");
    assert_eq!(all().await.as_array().unwrap().len(), 1);
    // There is an end to it.
    for _ in 1..MAX_CONTEXTS {
        let made = interpreter.send(Method::POST, "/contexts", json!({}));
        made.await.expect(201);
    }
    let told = (429, "too_many_contexts");
    interpreter
        .refused(Method::POST, "/contexts", json!({}), told)
        .await;
    let code = json!({"code": "'mine' in globals()"});
    assert_eq!(interpreter.value(code).await, "False");
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_and_says_why() {
    let interpreter = Interpreter::up().await;
    let id = "6d4c0f4e-0000-0000-0000-000000000000";
    let post = Method::POST;
    for (path, body, status, code) in [
        (
            "/execute",
            json!({"code": "1", "language": "r"}),
            400,
            "no_such_language",
        ),
        (
            "/contexts",
            json!({"language": "javascript"}),
            400,
            "no_such_language",
        ),
        (
            "/execute",
            json!({"language": "python"}),
            400,
            "bad_request",
        ),
        ("/execute", json!({"code": 1}), 400, "bad_request"),
        (
            "/execute",
            json!({"code": "1", "env_vars": {"A": 1}}),
            400,
            "bad_request",
        ),
        (
            "/execute",
            json!({"code": "1", "env_vars": {"A=B": "1"}}),
            400,
            "bad_request",
        ),
        (
            "/execute",
            json!({"code": "1", "context_id": id, "language": "python"}),
            400,
            "bad_request",
        ),
        ("/execute", json!(["1"]), 400, "bad_request"),
        ("/contexts", json!({"cwd": "/nowhere"}), 400, "bad_cwd"),
        ("/contexts", json!({"cwd": "."}), 400, "bad_cwd"),
    ] {
        interpreter
            .refused(post.clone(), path, body, (status, code))
            .await;
    }
    // On connections that can be used again.
    for _ in 0..50 {
        let told = (404, "no_such_path");
        interpreter
            .refused(post.clone(), "/nowhere", json!({}), told)
            .await;
    }
    for (body, code) in [("{", "not_json"), (r#"{"code": "\ud800"}"#, "bad_request")] {
        let answer = interpreter
            .send_bytes(post.clone(), "/execute", body.into())
            .await;
        assert_eq!(answer.expect(400)["code"], code);
    }
    let told = (405, "method_not_allowed");
    interpreter
        .refused(Method::GET, "/execute", Value::Null, told)
        .await;
    // What is too large is refused as a whole; what is as large as can be runs.
    let code = |bytes: usize| json!({"code": format!("1#{}", "x".repeat(bytes - 13))});
    let too_large = (413, "too_large");
    interpreter
        .refused(post, "/execute", code((8 << 20) + 1), too_large)
        .await;
    assert_eq!(interpreter.value(code(8 << 20)).await, "1");
    let health = interpreter.send(Method::GET, "/health", Value::Null).await;
    health.expect(200);
}

#[tokio::test]
async fn a_cell_that_says_too_much_is_interrupted_and_few_large_words_are_not() {
    let interpreter = Interpreter::up().await;
    let lines = interpreter
        .run("kept = 1\nwhile True:\n    print('x' * 10_000)")
        .await;
    let error = only(&lines, "error");
    assert_eq!(error["name"], "OutputLimitExceeded", "{error}");
    let size: usize = lines.iter().map(|line| line.to_string().len()).sum();
    assert!((15 << 20..17 << 20).contains(&size), "{size}");
    // It ended, and the context is what it was; and many short ones all come.
    let many = "for n in range(3000):\n    display(n)\nkept";
    let lines = interpreter.run(many).await;
    let results = lines.iter().filter(|line| line["type"] == "result");
    assert_eq!(results.count(), 3001);
    let lines = interpreter.run("print('x' * (15 << 20))").await;
    let said = lines.iter().filter_map(|line| line["text"].as_str());
    assert_eq!(said.map(str::len).sum::<usize>(), (15 << 20) + 1);
}

#[tokio::test]
async fn a_kernel_that_dies_says_so_and_another_takes_its_place() {
    let interpreter = Interpreter::up().await;
    interpreter
        .run("import os, signal, threading; kept = 1; os.mkfifo('gate')")
        .await;
    let code = format!("{WAITS}; os.kill(os.getpid(), signal.SIGKILL)");
    let mut lines = interpreter.begin(&json!({"code": code})).await;
    assert_eq!(lines.said().await.1, "waiting\n");
    interpreter.open_gate().await;
    let lines = lines.rest().await;
    let error = only(&lines, "error");
    assert_eq!(error["name"], "KernelDied");
    assert!(
        error["value"].as_str().unwrap().contains("SIGKILL"),
        "{error}"
    );
    let lines = interpreter.run("'kept' in globals()").await;
    assert_eq!(only(&lines, "result")["text"], "False");
    assert!(
        lines.iter().all(|line| line["type"] != "stderr"),
        "{lines:?}"
    );

    // One that dies while nothing runs says so to the next cell.
    let code = "
import os, threading
def end():
    open('gate').read()
    os._exit(9)
threading.Thread(target=end).start()
";
    interpreter.run(code).await;
    let old = interpreter.kernel().await.unwrap();
    interpreter.open_gate().await;
    wait_until("another kernel runs", async || {
        interpreter.kernel().await.is_some_and(|pid| pid != old)
    })
    .await;
    let lines = interpreter.run("1").await;
    let told = only(&lines, "stderr")["text"].as_str().unwrap().to_owned();
    assert!(told.contains("exit code 9"), "{told}");
    assert_eq!(only(&lines, "result")["text"], "1");
    let lines = interpreter.run("2").await;
    assert!(
        lines.iter().all(|line| line["type"] != "stderr"),
        "{lines:?}"
    );
}
