//! Processes on a terminal, over a real link.

use bytes::Bytes;
use casemate_link::ProcessSpec;
use casemate_link::daemon::{Process, ProcessEvent};
use casemate_link::process::{LoginShell, PtySize, Selector};
use casemate_link::refusal::code;

use crate::support::{
    Bench, attach, ended, finish, kept, lives, pattern, read_from, refused, shell, soon, spec,
    until,
};

const SIZE: PtySize = PtySize { rows: 31, cols: 97 };

fn on_terminal(mut spec: ProcessSpec) -> ProcessSpec {
    spec.pty = Some(SIZE);
    spec
}

/// Reads a terminal until it has shown these words; returns all that it showed.
async fn shows(process: &mut Process, words: &str) -> String {
    let mut shown = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&shown).into_owned();
        if text.contains(words) {
            return text;
        }
        match tokio::time::timeout(crate::support::PATIENCE, process.next()).await {
            Ok(Some(Ok(ProcessEvent::Stdout(data)))) => shown.extend_from_slice(&data),
            other => panic!("{other:?} after {text:?}"),
        }
    }
}

async fn types(process: &Process, words: &[u8]) {
    soon(process.input.write(Bytes::copy_from_slice(words)))
        .await
        .unwrap();
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn it_is_a_terminal_of_its_size_and_belongs_to_the_user() {
    let (_bench, link) = Bench::start().await;
    let script = "tty; stty size; stat -c %u $(tty); echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo all; \
        ps -o tpgid= -p $$ | tr -d ' '; echo $$; (echo to the terminal >/dev/tty); echo bad >&2; exit 4";
    let outcome = finish(link.start(on_terminal(shell(script))).await.unwrap()).await;
    let text = text(outcome.stdout);
    let lines: Vec<&str> = text.split("\r\n").collect();
    let [
        tty,
        size,
        owner,
        term,
        all,
        foreground,
        pid,
        direct,
        bad,
        "",
    ] = &lines[..]
    else {
        panic!("{text:?}");
    };
    assert!(tty.starts_with("/dev/pts/"), "{tty}");
    assert_eq!((*size, *term, *all), ("31 97", "xterm-256color", "all"));
    assert_eq!(*owner, nix::unistd::geteuid().to_string());
    assert_eq!(
        (*foreground, *direct, *bad),
        (*pid, "to the terminal", "bad")
    );
    assert!(outcome.stderr.is_empty());
    assert_eq!(outcome.exit.exit_code, Some(4));
}

#[tokio::test]
async fn term_is_the_callers_when_it_says_one() {
    let (_bench, link) = Bench::start().await;
    let mut spec = on_terminal(shell("echo $TERM"));
    spec.env.insert("TERM".into(), "dumb".into());
    assert_eq!(
        finish(link.start(spec).await.unwrap()).await.stdout,
        b"dumb\r\n"
    );
    // And there is none without a terminal.
    let outcome = finish(link.start(shell("echo ${TERM-none}")).await.unwrap()).await;
    assert_eq!(outcome.stdout, b"none\n");
}

#[tokio::test]
async fn the_terminal_of_another_user_is_theirs() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (_bench, link) = Bench::start().await;
    let mut spec = on_terminal(spec(&[
        "sh",
        "-c",
        "stat -c %u $(tty); id -u; echo again >$(tty)",
    ]));
    (spec.user, spec.cwd) = (Some("65534".into()), Some("/".into()));
    let outcome = finish(link.start(spec).await.unwrap()).await;
    assert_eq!(text(outcome.stdout), "65534\r\n65534\r\nagain\r\n");
}

#[tokio::test]
async fn programs_hear_of_a_new_size() {
    let (_bench, link) = Bench::start().await;
    let script = "trap 'stty size; exit 3' WINCH; echo up; while :; do read line; done";
    let mut process = link.start(on_terminal(shell(script))).await.unwrap();
    shows(&mut process, "up").await;
    let number = Selector::Process(process.number());
    link.resize(number.clone(), PtySize { rows: 5, cols: 200 })
        .await
        .unwrap();
    let outcome = finish(process).await;
    assert_eq!(
        (text(outcome.stdout).trim(), outcome.exit.exit_code),
        ("5 200", Some(3))
    );
    let size = PtySize { rows: 1, cols: 1 };
    assert_eq!(
        refused(link.resize(number, size).await),
        code::NO_SUCH_PROCESS
    );
    let plain = link.start(spec(&["cat"])).await.unwrap();
    let number = Selector::Process(plain.number());
    assert_eq!(
        refused(link.resize(number.clone(), size).await),
        code::NO_PTY
    );
    let none = PtySize { rows: 0, cols: 1 };
    assert_eq!(refused(link.resize(number, none).await), code::BAD_REQUEST);
}

#[tokio::test]
async fn control_c_interrupts_the_program_in_the_foreground_only() {
    let (_bench, link) = Bench::start().await;
    let mut spec = on_terminal(spec(&[]));
    spec.shell = Some(LoginShell { command: None });
    spec.env.insert("HOME".into(), "/nonexistent".into());
    spec.env.insert("TERM".into(), "dumb".into());
    let mut process = link.start(spec).await.unwrap();
    types(&process, b"sh -c 'echo running; exec sleep 1000'\r").await;
    shows(&mut process, "\nrunning").await;
    types(&process, b"\x03").await;
    types(&process, b"echo status $?\r").await;
    shows(&mut process, "\nstatus 130").await;
    types(&process, b"exit 9\r").await;
    assert_eq!(finish(process).await.exit.exit_code, Some(9));
}

#[tokio::test]
async fn the_jobs_of_a_shell_end_with_its_terminal() {
    let (_bench, link) = Bench::start().await;
    let script = "set -m; (trap '' HUP; sh -c 'echo $$; trap \"\" HUP; sleep 1000') & sh -c 'echo $$; sleep 1000'";
    let mut process = link.start(on_terminal(shell(script))).await.unwrap();
    let mut pids: Vec<u32> = vec![process.pid];
    let mut shown = String::new();
    while pids.len() < 3 {
        shown += &shows(&mut process, "\n").await;
        pids.truncate(1);
        pids.extend(
            shown
                .lines()
                .filter_map(|line| line.trim().parse::<u32>().ok()),
        );
    }
    assert!(pids.iter().all(|pid| lives(*pid)));
    drop(process);
    until("all are gone", || !pids.iter().any(|pid| lives(*pid))).await;
}

#[tokio::test]
async fn the_end_of_input_is_one_whether_a_line_is_begun_or_not() {
    let (_bench, link) = Bench::start().await;
    for (typed, expected) in [("", ""), ("line\n", "line\n"), ("a\nbegun", "a\nbegun")] {
        let script = "stty -echo; echo up; cat; echo next; cat";
        let mut process = link.start(on_terminal(shell(script))).await.unwrap();
        shows(&mut process, "up").await;
        types(&process, typed.as_bytes()).await;
        process.input.end().await.unwrap();
        let shown = shows(&mut process, "next").await.replace("\r\n", "\n");
        assert_eq!(
            shown.trim_start_matches('\n').trim_end(),
            format!("{expected}next"),
            "{typed:?}"
        );
        // It was one end, and the next program has an end of its own.
        types(&process, b"more\n").await;
        shows(&mut process, "more").await;
        process.input.end().await.unwrap();
        assert_eq!(finish(process).await.exit.exit_code, Some(0));
    }
}

#[tokio::test]
async fn a_terminal_without_input_reads_an_end() {
    let (_bench, link) = Bench::start().await;
    let mut spec = on_terminal(shell("cat; test -t 1 && stty size </dev/tty"));
    spec.stdin = false;
    let process = link.start(spec).await.unwrap();
    let input = link.input(Selector::Process(process.number())).unwrap();
    assert_eq!(refused(input.finish(false).await), code::NO_INPUT);
    assert_eq!(text(finish(process).await.stdout), "31 97\r\n");
}

#[tokio::test]
async fn a_program_that_lets_go_of_its_terminal_is_not_over() {
    let (_bench, link) = Bench::start().await;
    let script = "echo before; exec 3>&1 </dev/null >/dev/null 2>&1 3>&-; sleep 0.3; seq 40000 >/dev/tty; exit 2";
    let outcome = finish(link.start(on_terminal(shell(script))).await.unwrap()).await;
    // More than waits for a reader: it is read while the program lives.
    let shown = text(outcome.stdout);
    assert!(shown.starts_with("before\r\n1\r\n") && shown.ends_with("\r\n40000\r\n"));
    assert_eq!(outcome.exit.exit_code, Some(2));
}

#[tokio::test]
async fn much_goes_through_a_terminal_both_ways() {
    let (_bench, link) = Bench::start().await;
    let count = 2_000_000;
    let script = format!("stty raw -echo; echo up; head -c {count} | md5sum; seq 200000");
    let mut process = link.start(on_terminal(shell(&script))).await.unwrap();
    shows(&mut process, "up\n").await;
    let data = pattern(count);
    let expected = {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data"), &data).unwrap();
        let sum = std::process::Command::new("md5sum")
            .arg(dir.path().join("data"))
            .output()
            .unwrap();
        text(sum.stdout).split(' ').next().unwrap().to_owned()
    };
    let input = link.input(Selector::Process(process.number())).unwrap();
    let writing = async {
        input.write(data).await.unwrap();
        input.finish(false).await.unwrap()
    };
    let (outcome, written) = tokio::join!(finish(process), writing);
    assert_eq!(written, u64::try_from(count).unwrap());
    let shown = text(outcome.stdout);
    assert!(shown.starts_with(&expected), "{shown:.100}");
    let numbers: Vec<String> = (1..=200_000).map(|n| n.to_string()).collect();
    let numbers = numbers.join("\n") + "\n";
    assert!(shown.ends_with(&numbers));
}

#[tokio::test]
async fn input_that_a_terminal_does_not_take_waits_and_a_signal_does_not() {
    let (_bench, link) = Bench::start().await;
    let mut process = link
        .start(on_terminal(shell(
            "stty raw -echo; echo up; exec sleep 1000",
        )))
        .await
        .unwrap();
    shows(&mut process, "up").await;
    let stuffing = process.input.write(pattern(4_000_000));
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(200), stuffing)
            .await
            .is_err()
    );
    soon(process.input.signal(15)).await.unwrap();
    assert_eq!(finish(process).await.exit.signal, Some(15));
}

#[tokio::test]
async fn a_kept_terminal_is_found_again_and_told_to_end() {
    let (mut bench, link) = Bench::start().await;
    let script = "stty -echo; echo up; while read line; do echo got $line; done; echo over";
    let mut process = link.start(kept(on_terminal(shell(script)))).await.unwrap();
    shows(&mut process, "up").await;
    let (number, pid) = (process.number(), process.pid);
    types(&process, b"one\n").await;
    shows(&mut process, "got one").await;
    link.close();
    drop(process);
    let link = bench.accept().await;
    assert!(lives(pid));
    let (info, mut again) = attach(&link, number, [0, 0]).await;
    assert!(info.pty && info.kept);
    shows(&mut again, "got one").await;
    types(&again, b"two\n").await;
    shows(&mut again, "got two").await;
    again.input.end().await.unwrap();
    assert_eq!(ended(&link, number).await.exit_code, Some(0));
    let shown = text(read_from(&link, number, [0, 0]).await.0.stdout);
    assert_eq!(shown, "up\r\ngot one\r\ngot two\r\nover\r\n");
    until("it is gone", || !lives(pid)).await;
}

#[tokio::test]
async fn dropping_a_terminal_ends_what_runs_on_it() {
    let (_bench, link) = Bench::start().await;
    let mut process = link
        .start(on_terminal(shell("echo up; exec sleep 1000")))
        .await
        .unwrap();
    shows(&mut process, "up").await;
    let pid = process.pid;
    drop(process);
    until("it is gone", || !lives(pid)).await;
}
