//! What the guest promises of programs, kept over a real link.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use casemate_link::ProcessSpec;
use casemate_link::daemon::{LinkError, ProcessEvent};
use casemate_link::refusal::code;

use crate::support::{
    Bench, children_of, finish, first_line, lives, pattern, refused, run, shell, soon, spec, until,
    zombies_of,
};

#[tokio::test]
async fn output_comes_apart_and_as_bytes() {
    let (_bench, link) = Bench::start().await;
    let outcome = run(
        &link,
        shell(r"printf 'a\377\000b'; printf 'err\376' >&2; exit 7"),
    )
    .await;
    assert_eq!(outcome.stdout, b"a\xff\0b");
    assert_eq!(outcome.stderr, b"err\xfe");
    assert_eq!(
        (outcome.exit.exit_code, outcome.exit.signal),
        (Some(7), None)
    );
}

#[tokio::test]
async fn the_signal_that_ended_it_is_told() {
    let (_bench, link) = Bench::start().await;
    for signum in [9, 15, 34] {
        let outcome = run(&link, shell(&format!("kill -{signum} $$"))).await;
        assert_eq!(
            (outcome.exit.exit_code, outcome.exit.signal),
            (None, Some(signum))
        );
    }
}

#[tokio::test]
async fn ten_megabytes_of_input_come_back() {
    let (_bench, link) = Bench::start().await;
    let process = link.start(spec(&["cat"])).await.unwrap();
    let (input, data) = (process.input.clone(), pattern(10_000_000));
    let writing = async {
        input.write(data.clone()).await.unwrap();
        input.end().await.unwrap();
    };
    let (outcome, ()) = tokio::join!(finish(process), writing);
    assert!(outcome.stdout == data && outcome.exit.exit_code == Some(0));
}

#[tokio::test]
async fn a_program_that_closes_its_input_is_no_error() {
    let (_bench, link) = Bench::start().await;
    let mut process = link
        .start(shell("exec <&-; echo closed; exec sleep 0.1"))
        .await
        .unwrap();
    assert_eq!(first_line(&mut process).await, "closed");
    soon(process.input.write(pattern(1_000_000))).await.ok();
    assert_eq!(finish(process).await.exit.exit_code, Some(0));
}

#[tokio::test]
async fn a_signal_overtakes_input_that_is_not_read() {
    let (_bench, link) = Bench::start().await;
    let mut process = link.start(shell("echo up; exec sleep 1000")).await.unwrap();
    first_line(&mut process).await;
    let stuffed = process.input.write(pattern(4_000_000));
    assert!(
        tokio::time::timeout(Duration::from_millis(100), stuffed)
            .await
            .is_err()
    );
    soon(process.input.signal(15)).await.unwrap();
    assert_eq!(finish(process).await.exit.signal, Some(15));
}

#[tokio::test]
async fn dropping_a_process_whose_input_is_stuffed_ends_it_too() {
    let (_bench, link) = Bench::start().await;
    let mut process = link.start(shell("echo up; exec sleep 1000")).await.unwrap();
    first_line(&mut process).await;
    let stuffed = process.input.write(pattern(4_000_000));
    assert!(
        tokio::time::timeout(Duration::from_millis(100), stuffed)
            .await
            .is_err()
    );
    let pid = process.pid;
    drop(process);
    until("the process is gone", || !lives(pid)).await;
    assert_eq!(run(&link, spec(&["true"])).await.exit.exit_code, Some(0));
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group_and_a_dead_one_is_told() {
    let (_bench, link) = Bench::start().await;
    let mut process = link
        .start(shell("sleep 1000 & echo $!; wait"))
        .await
        .unwrap();
    let child: u32 = first_line(&mut process).await.parse().unwrap();
    let input = process.input.clone();
    input.signal(9).await.unwrap();
    assert_eq!(finish(process).await.exit.signal, Some(9));
    until("the child is gone", || !lives(child)).await;
    let again = input.signal(9).await.unwrap_err();
    assert!(
        matches!(&again, LinkError::Refused { code, .. } if code == code::NO_SUCH_PROCESS),
        "{again:?}"
    );
}

#[tokio::test]
async fn the_time_limit_kills_a_program_that_ignores_sigterm() {
    let (_bench, link) = Bench::start().await;
    let mut spec = shell("trap '' TERM; echo up; while :; do sleep 1000; done");
    spec.timeout_ms = Some(1000);
    let began = Instant::now();
    let outcome = run(&link, spec).await;
    assert!(
        outcome.exit.timed_out && outcome.exit.signal == Some(9),
        "{:?}",
        outcome.exit
    );
    assert!((1200..20_000).contains(&began.elapsed().as_millis()));
}

#[tokio::test]
async fn what_is_left_in_the_background_lives_on_and_does_not_hold_the_answer_up() {
    let (_bench, link) = Bench::start().await;
    let began = Instant::now();
    let outcome = run(&link, shell("sleep 1000 & echo $!; exit 3")).await;
    assert!(began.elapsed() < crate::support::PATIENCE);
    assert_eq!(outcome.exit.exit_code, Some(3));
    let child: u32 = String::from_utf8(outcome.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(lives(child));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.cast_signed()),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
}

#[tokio::test]
async fn a_background_printer_does_not_hold_the_answer_up() {
    let (_bench, link) = Bench::start().await;
    let outcome = run(&link, shell("yes & echo done; exit 0")).await;
    assert_eq!(outcome.exit.exit_code, Some(0));
}

#[tokio::test]
async fn all_that_was_written_before_the_end_arrives() {
    let (_bench, link) = Bench::start().await;
    for _ in 0..20 {
        let outcome = run(&link, shell("head -c 60000 /dev/zero; sleep 1000 & exit 0")).await;
        assert_eq!(outcome.stdout.len(), 60_000);
    }
}

#[tokio::test]
async fn an_endless_printer_is_bounded_and_then_killed() {
    let (_bench, link) = Bench::start().await;
    let mut spec = spec(&["yes"]);
    (spec.max_stdout_bytes, spec.timeout_ms) = (100_000, Some(500));
    spec.kill_grace_ms = 20_000;
    let outcome = run(&link, spec).await;
    assert_eq!(outcome.stdout.len(), 100_000);
    assert!(outcome.exit.timed_out && outcome.exit.stdout_dropped_bytes > 100_000);
    assert_eq!(outcome.exit.signal, Some(15));
}

#[tokio::test]
async fn a_stalled_reader_stalls_only_its_own_program() {
    let (_bench, link) = Bench::start().await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut endless = shell("while :; do echo x; done");
        endless.max_stdout_bytes = u64::MAX;
        stalled.push(link.start(endless).await.unwrap());
    }
    for _ in 0..20 {
        assert_eq!(run(&link, spec(&["true"])).await.exit.exit_code, Some(0));
    }
    assert_eq!(link.health().await.unwrap().processes, 20);
    let reader = stalled.first_mut().unwrap();
    assert!(matches!(
        soon(reader.next()).await,
        Some(Ok(ProcessEvent::Stdout(_)))
    ));
}

#[tokio::test]
async fn dropping_the_stream_kills_the_group() {
    let (_bench, link) = Bench::start().await;
    let mut process = link
        .start(shell(
            "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000",
        ))
        .await
        .unwrap();
    let (leader, child) = (process.pid, first_line(&mut process).await.parse().unwrap());
    assert!(lives(leader) && lives(child));
    drop(process);
    until("the group is gone", || !lives(leader) && !lives(child)).await;
}

#[tokio::test]
async fn two_hundred_processes_run_at_once() {
    let (_bench, link) = Bench::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let link = link.clone();
        tasks.spawn(async move {
            let outcome = run(&link, shell(&format!("read line; echo $line {number}"))).await;
            (
                outcome.stdout,
                format!(" {number}\n").trim_start().to_owned(),
            )
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        let (stdout, expected) = done.unwrap();
        assert_eq!(String::from_utf8(stdout).unwrap().trim(), expected.trim());
    }
    assert_eq!(link.health().await.unwrap().processes, 0);
}

#[tokio::test]
async fn processes_may_be_dropped_by_the_hundred() {
    let (bench, link) = Bench::start().await;
    for _ in 0..3 {
        let mut starts = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let link = link.clone();
            starts
                .spawn(async move { link.start(shell("echo up; exec sleep 1000")).await.unwrap() });
        }
        drop(soon(starts.join_all()).await);
        for _ in 0..20 {
            drop(tokio::time::timeout(Duration::from_millis(1), link.start(spec(&["cat"]))).await);
        }
    }
    let deadline = Instant::now() + crate::support::PATIENCE;
    while link.health().await.unwrap().processes > 0 {
        assert!(Instant::now() < deadline);
    }
    until("all are reaped", || children_of(bench.guest.id()) == 0).await;
    assert_eq!(run(&link, spec(&["true"])).await.exit.exit_code, Some(0));
}

#[tokio::test]
async fn no_child_stays_a_zombie() {
    let (bench, link) = Bench::start().await;
    for _ in 0..30 {
        run(&link, shell("for i in 1 2 3; do (exit 1) & done")).await;
    }
    until("all are reaped", || zombies_of(bench.guest.id()) == 0).await;
}

#[tokio::test]
async fn each_reason_not_to_start_has_its_code() {
    let (bench, link) = Bench::start().await;
    let plain = bench.dir.path().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).unwrap();
    let changed = |change: fn(&mut ProcessSpec)| {
        let mut spec = spec(&["true"]);
        change(&mut spec);
        spec
    };
    assert_eq!(
        refused(link.start(spec(&["no-such-program"])).await),
        code::NOT_FOUND
    );
    assert_eq!(
        refused(link.start(spec(&["/no/such/program"])).await),
        code::NOT_FOUND
    );
    assert_eq!(
        refused(link.start(spec(&[plain.to_str().unwrap()])).await),
        code::PERMISSION_DENIED
    );
    assert_eq!(
        refused(
            link.start(changed(|s| s.cwd = Some("/no/such".into())))
                .await
        ),
        code::BAD_WORKDIR
    );
    assert_eq!(
        refused(
            link.start(changed(|s| s.user = Some("no-such-user".into())))
                .await
        ),
        code::UNKNOWN_USER
    );
    assert_eq!(
        refused(link.start(changed(|s| s.argv.clear())).await),
        code::BAD_SPEC
    );
    assert_eq!(link.health().await.unwrap().processes, 0);
}

#[tokio::test]
async fn a_process_starts_with_the_environment_and_place_it_was_given() {
    let (_bench, link) = Bench::start().await;
    let mut spec = spec(&[
        "sh",
        "-c",
        "env; pwd; umask; ulimit -c; ls -l /proc/self/fd | wc -l",
    ]);
    spec.env.insert("GREETING".into(), "a=b c".into());
    spec.env.insert("LANG".into(), "C".into());
    spec.cwd = Some("/usr".into());
    let outcome = run(&link, spec).await;
    let text = String::from_utf8(outcome.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for expected in ["GREETING=a=b c", "LANG=C", "/usr", "0022", "0"] {
        assert!(lines.contains(&expected), "{expected} in {text}");
    }
    let mut names: Vec<&str> = lines
        .iter()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "GREETING", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"
        ]
    );
    // Its three streams, the directory being listed, and ls's line of the total.
    assert_eq!(lines.last().copied(), Some("5"));
}

#[tokio::test]
async fn a_program_is_found_in_the_given_path_only() {
    let (_bench, link) = Bench::start().await;
    let mut spec = spec(&["ls"]);
    spec.env.insert("PATH".into(), "/nowhere".into());
    assert_eq!(refused(link.start(spec).await), code::NOT_FOUND);
}
