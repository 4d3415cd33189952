//! Processes that outlive their reader, have several, or are found again, over a real link.

use std::time::Duration;

use bytes::Bytes;
use casemate_link::ProcessSpec;
use casemate_link::daemon::{Link, ProcessEvent};
use casemate_link::limits::{MAX_SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES};
use casemate_link::process::{AttachRequest, LoginShell, ProcessInfo, Selector, SlowReader};
use casemate_link::refusal::code;
use tokio::time::Instant;

use crate::support::{
    Bench, PATIENCE, attach, children_of, ended, finish, finish_losing, first_line, kept, lives,
    pattern, read_from, refused, resident_bytes, run, shell, soon, spec, until,
};

/// What the system keeps of a socket in one direction, by default (`net.core.wmem_default`).
const SOCKET_BUFFER_BYTES: usize = 212_992;

async fn info(link: &Link, process: u64) -> Option<ProcessInfo> {
    let all = soon(link.processes()).await.unwrap();
    all.into_iter().find(|info| info.process == process)
}

fn number(text: &str) -> Selector {
    Selector::Tag(text.to_owned())
}

/// Reads so many bytes of standard output.
async fn take(process: &mut casemate_link::daemon::Process, count: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < count {
        match soon(process.next()).await {
            Some(Ok(ProcessEvent::Stdout(piece))) => data.extend_from_slice(&piece),
            other => panic!("{other:?}"),
        }
    }
    data
}

/// A number a line.
fn numbers(range: std::ops::RangeInclusive<u32>) -> String {
    let lines: Vec<String> = range.map(|number| number.to_string()).collect();
    lines.join("\n") + "\n"
}

/// Waits until there was so much output.
async fn reaches(link: &Link, process: u64, offset: u64) {
    let deadline = Instant::now() + PATIENCE;
    while info(link, process).await.unwrap().stdout_to < offset {
        assert!(Instant::now() < deadline, "it never gets there");
    }
}

/// Waits until an output has stood still: the process waits for somebody.
async fn standstill(link: &Link, process: u64) -> u64 {
    let mut before = u64::MAX;
    let mut since = Instant::now();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = info(link, process).await.unwrap().stdout_to;
        if now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() > Duration::from_millis(300) {
            return now;
        }
        assert!(Instant::now() < deadline, "it never stands still");
    }
}

#[tokio::test]
async fn a_kept_process_outlives_its_starter_and_is_read_from_its_start() {
    let (_bench, link) = Bench::start().await;
    let script = "echo one; echo bad >&2; read line; echo two $line; exit 7";
    let mut process = link.start(kept(shell(script))).await.unwrap();
    assert_eq!(first_line(&mut process).await, "one");
    let (number, pid) = (process.number(), process.pid);
    drop(process);
    let (seen, late) = attach(&link, number, [0, 0]).await;
    assert!(
        seen.kept && seen.exit.is_none() && seen.pid == pid,
        "{seen:?}"
    );
    assert!(lives(pid));
    late.input
        .write(Bytes::from_static(b"words\n"))
        .await
        .unwrap();
    let outcome = finish(late).await;
    assert_eq!(
        (&outcome.stdout[..], &outcome.stderr[..]),
        (&b"one\ntwo words\n"[..], &b"bad\n"[..])
    );
    assert_eq!(outcome.exit.exit_code, Some(7));
    // Again, and again from within, after its end.
    for (offsets, stdout, stderr) in [
        ([0, 0], "one\ntwo words\n", "bad\n"),
        ([4, 4], "two words\n", ""),
    ] {
        let (outcome, lost) = read_from(&link, number, offsets).await;
        assert_eq!(
            (outcome.stdout, outcome.stderr),
            (stdout.into(), stderr.into())
        );
        assert_eq!((outcome.exit.exit_code, lost.stdout_bytes), (Some(7), 0));
    }
    assert_eq!(ended(&link, number).await.exit_code, Some(7));
    assert_eq!(link.health().await.unwrap().processes, 0);
}

#[tokio::test]
async fn a_process_that_is_not_kept_is_forgotten_and_its_readers_get_the_rest() {
    let (_bench, link) = Bench::start().await;
    let process = link
        .start(shell("head -c 300000 /dev/zero; read line"))
        .await
        .unwrap();
    let (_, second) = attach(&link, process.number(), [0, 0]).await;
    let (number, input) = (process.number(), process.input.clone());
    input.end().await.unwrap();
    assert_eq!(finish(process).await.stdout.len(), 300_000);
    assert!(info(&link, number).await.is_none());
    let request = AttachRequest {
        process: Selector::Process(number),
        stdout_offset: 0,
        stderr_offset: 0,
        output: true,
    };
    assert_eq!(refused(link.attach(request).await), code::NO_SUCH_PROCESS);
    assert_eq!(finish(second).await.stdout.len(), 300_000);
}

#[tokio::test]
async fn the_slower_of_two_readers_slows_the_program_down_and_memory_stays_bounded() {
    let (bench, link) = Bench::start().await;
    let mut endless = shell("yes 0123456789abcde");
    (endless.max_stdout_bytes, endless.keep_bytes) = (u64::MAX, 200_000);
    let mut fast = link.start(endless).await.unwrap();
    let (_, mut slow) = attach(&link, fast.number(), [0, 0]).await;
    take(&mut fast, 100_000).await;
    let number = fast.number();
    let reading = async { while let Some(Ok(_)) = fast.next().await {} };
    tokio::pin!(reading);
    let before = resident_bytes(bench.guest.id());
    let stood = tokio::select! {
        () = &mut reading => panic!("it ended"),
        stood = standstill(&link, number) => stood,
    };
    // What is kept, what is on its way (a window, a buffer before it, and those of both sockets), and no more.
    let on_its_way = STREAM_WINDOW_BYTES as usize + MAX_SEND_BUFFER_BYTES + 2 * SOCKET_BUFFER_BYTES;
    assert!(stood <= (200_000 + on_its_way) as u64, "{stood}");
    assert!(resident_bytes(bench.guest.id()) < before + 1_000_000);
    let seen = tokio::select! {
        () = &mut reading => panic!("it ended"),
        seen = take(&mut slow, 1_000_000) => seen,
    };
    let mut lines = seen.chunks_exact(16);
    assert!(lines.all(|line| line == b"0123456789abcde\n"));
    // Nobody else to wait for: it goes on as the other reads.
    drop(slow);
    tokio::select! {
        () = &mut reading => panic!("it ended"),
        () = reaches(&link, number, stood + 10_000_000) => {}
    };
}

#[tokio::test]
async fn a_reader_that_is_not_waited_for_is_told_exactly_what_it_lost() {
    let (bench, link) = Bench::start().await;
    let count = 20_000_000;
    let mut spec = kept(shell(&format!(
        "seq 100000000 | head -c {count}; seq 100000000 | head -c 100 >&2"
    )));
    (spec.max_stdout_bytes, spec.keep_bytes, spec.slow_reader) =
        (u64::MAX, 100_000, SlowReader::Skip);
    let slow = link.start(spec).await.unwrap();
    let number = slow.number();
    // It reads nothing until the program is done.
    assert_eq!(ended(&link, number).await.exit_code, Some(0));
    assert!(resident_bytes(bench.guest.id()) < 12_000_000);
    let all = numbers(1..=3_000_000).into_bytes();
    assert!(all.len() > count);
    let (mut at, mut lost, mut process) = (0, 0, slow);
    let exit = loop {
        match soon(process.next()).await.unwrap().unwrap() {
            ProcessEvent::Stdout(data) => {
                assert!(data == all[at..at + data.len()], "other bytes at {at}");
                at += data.len();
            }
            ProcessEvent::Lost(some) => {
                assert_eq!(some.stderr_bytes, 0);
                lost += some.stdout_bytes;
                at += usize::try_from(some.stdout_bytes).unwrap();
            }
            ProcessEvent::Stderr(data) => assert_eq!(data.len(), 100),
            ProcessEvent::Exited(exit) => break exit,
        }
        assert_eq!(process.offsets()[0], u64::try_from(at).unwrap());
    };
    assert_eq!((at, exit.exit_code), (count, Some(0)));
    assert!(lost > 15_000_000, "{lost}");
    // Whoever comes later, too, exactly as the list says.
    let from = info(&link, number).await.unwrap().stdout_from;
    let (outcome, lost) = read_from(&link, number, [5, 0]).await;
    assert_eq!(
        (lost.stdout_bytes + 5, from),
        (from, u64::try_from(count - 100_000).unwrap())
    );
    assert!(outcome.stdout == all[count - 100_000..count]);
}

#[tokio::test]
async fn a_reader_goes_on_at_its_offset_after_the_link_was_lost() {
    let (mut bench, mut link) = Bench::start().await;
    let mut spec = kept(shell("seq 1000000"));
    spec.max_stdout_bytes = u64::MAX;
    let expected = numbers(1..=1_000_000);
    let mut process = link.start(spec).await.unwrap();
    let (number, mut seen) = (process.number(), Vec::new());
    for round in 1..=5 {
        let piece = take(&mut process, 500_000 * round).await;
        seen.extend_from_slice(&piece);
        let offsets = process.offsets();
        assert_eq!(offsets[0], u64::try_from(seen.len()).unwrap());
        link.close();
        soon(link.closed()).await;
        drop(process);
        link = bench.accept().await;
        let (info, again) = attach(&link, number, offsets).await;
        process = again;
        // Nobody listened meanwhile, so what was too old by then is lost, and told.
        assert!(info.stdout_from <= info.stdout_to);
        if info.stdout_from > offsets[0] {
            match soon(process.next()).await {
                Some(Ok(ProcessEvent::Lost(lost))) => {
                    assert_eq!(offsets[0] + lost.stdout_bytes, info.stdout_from);
                    let at = usize::try_from(info.stdout_from).unwrap();
                    seen.extend_from_slice(&expected.as_bytes()[seen.len()..at]);
                }
                other => panic!("{other:?}"),
            }
        }
        if process.offsets()[0] + 3_000_000 > u64::try_from(expected.len()).unwrap() {
            break;
        }
    }
    seen.extend_from_slice(&finish(process).await.stdout);
    assert!(
        seen == expected.as_bytes(),
        "{} of {} bytes",
        seen.len(),
        expected.len()
    );
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_over_a_lost_link_while_it_is_all_kept() {
    let (mut bench, mut link) = Bench::start().await;
    let mut spec = kept(shell(
        "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done",
    ));
    spec.keep_bytes = 16 << 20;
    let mut process = link.start(spec).await.unwrap();
    let (number, mut seen) = (process.number(), Vec::new());
    let expected = numbers(0..=19_999);
    for _ in 0..4 {
        // The loop may be over before the link is, and no more comes then than there is.
        let count = 10_000.min(expected.len() - seen.len());
        seen.extend_from_slice(&take(&mut process, count).await);
        let offsets = process.offsets();
        link.close();
        drop(process);
        link = bench.accept().await;
        process = attach(&link, number, offsets).await.1;
    }
    seen.extend_from_slice(&finish(process).await.stdout);
    assert!(seen == expected.as_bytes());
}

#[tokio::test]
async fn a_list_shows_what_runs_and_what_is_kept_with_its_words_cut() {
    let (_bench, link) = Bench::start().await;
    let mut first = kept(spec(&["sh", "-c", "echo done", &"ü".repeat(500)]));
    first.argv.extend((0..30).map(|n| n.to_string()));
    (first.tag, first.cwd) = (Some("first".into()), Some("/usr".into()));
    let first = link.start(first).await.unwrap();
    let ended = first.number();
    finish(first).await;
    let running = link.start(spec(&["sleep", "1000"])).await.unwrap();
    finish(link.start(spec(&["true"])).await.unwrap()).await;
    let all = link.processes().await.unwrap();
    let [one, two] = &all[..] else {
        panic!("{all:?}")
    };
    assert_eq!((one.process, two.process), (ended, running.number()));
    assert_eq!(
        (one.argv.len(), &one.argv[2][..], &one.argv[3]),
        (16, "echo done", &"ü".repeat(128))
    );
    assert_eq!(
        (one.tag.as_deref(), one.cwd.as_deref()),
        (Some("first"), Some("/usr"))
    );
    assert_eq!((one.stdout_from, one.stdout_to, one.stderr_to), (0, 5, 0));
    assert_eq!(one.exit.unwrap().exit_code, Some(0));
    assert!(one.kept && !one.pty && !two.kept && two.exit.is_none());
    assert_eq!(
        (two.argv.join(" "), two.pid),
        ("sleep 1000".into(), running.pid)
    );
    assert!(two.started_at_ms >= one.started_at_ms && one.started_at_ms > 1_700_000_000_000);
    assert!(two.cwd.is_some() && !two.user.is_empty());
}

#[tokio::test]
async fn a_process_is_found_by_its_pid_and_the_latest_by_its_tag() {
    let (_bench, link) = Bench::start().await;
    let tagged = |script: &str| {
        let mut spec = kept(shell(script));
        spec.tag = Some("server".into());
        spec
    };
    let old = link.start(tagged("exec sleep 1000")).await.unwrap();
    let new = link
        .start(tagged("echo up; exec sleep 1000"))
        .await
        .unwrap();
    let by = |process| AttachRequest {
        process,
        stdout_offset: 0,
        stderr_offset: 0,
        output: true,
    };
    let (found, mut reader) = link.attach(by(number("server"))).await.unwrap();
    assert_eq!(
        (found.process, first_line(&mut reader).await.as_str()),
        (new.number(), "up")
    );
    let (found, _) = link.attach(by(Selector::Pid(old.pid))).await.unwrap();
    assert_eq!(found.process, old.number());
    link.signal(number("server"), 9).await.unwrap();
    assert_eq!(finish(reader).await.exit.signal, Some(9));
    assert!(lives(old.pid));
    // The latest of that name is the one that ended, and no other is meant.
    assert_eq!(
        refused(link.signal(number("server"), 9).await),
        code::NO_SUCH_PROCESS
    );
    link.signal(Selector::Pid(old.pid), 15).await.unwrap();
    assert_eq!(finish(old).await.exit.signal, Some(15));
    for nobody in [number("client"), Selector::Pid(1), Selector::Process(999)] {
        assert_eq!(
            refused(link.signal(nobody.clone(), 15).await),
            code::NO_SUCH_PROCESS
        );
        assert_eq!(
            refused(link.attach(by(nobody)).await),
            code::NO_SUCH_PROCESS
        );
    }
}

#[tokio::test]
async fn input_comes_from_anybody_and_is_counted() {
    let (_bench, link) = Bench::start().await;
    let process = link.start(kept(spec(&["cat"]))).await.unwrap();
    let number = process.number();
    let input = link.input(Selector::Process(number)).unwrap();
    input.write(Bytes::from_static(b"one\n")).await.unwrap();
    assert_eq!(input.finish(false).await.unwrap(), 4);
    let (_, other) = attach(&link, number, [0, 0]).await;
    other
        .input
        .write(Bytes::from_static(b"two\n"))
        .await
        .unwrap();
    drop((take(&mut { other }, 8).await, process));
    let input = link.input(Selector::Process(number)).unwrap();
    input.write(Bytes::from_static(b"three\n")).await.unwrap();
    assert_eq!(input.finish(true).await.unwrap(), 6);
    assert_eq!(ended(&link, number).await.exit_code, Some(0));
    assert_eq!(
        read_from(&link, number, [0, 0]).await.0.stdout,
        b"one\ntwo\nthree\n"
    );
}

#[tokio::test]
async fn frames_of_input_from_several_streams_stay_whole() {
    let (_bench, link) = Bench::start().await;
    let process = link.start(kept(spec(&["cat"]))).await.unwrap();
    let number = process.number();
    let mut writers = tokio::task::JoinSet::new();
    for letter in b'a'..=b'd' {
        let input = link.input(Selector::Process(number)).unwrap();
        writers.spawn(async move {
            for _ in 0..30 {
                input.write(vec![letter; 60_000].into()).await.unwrap();
            }
            input.finish(false).await.unwrap()
        });
    }
    let reading = tokio::spawn(finish_losing(process));
    for written in soon(writers.join_all()).await {
        assert_eq!(written, 30 * 60_000);
    }
    link.input(Selector::Process(number))
        .unwrap()
        .finish(true)
        .await
        .unwrap();
    let stdout = reading.await.unwrap().0.stdout;
    assert_eq!(stdout.len(), 4 * 30 * 60_000);
    assert!(
        stdout
            .chunks_exact(60_000)
            .all(|frame| frame.iter().all(|byte| *byte == frame[0]))
    );
}

#[tokio::test]
async fn input_that_has_nowhere_to_go_is_refused() {
    let (_bench, link) = Bench::start().await;
    let mut without = kept(spec(&["sh", "-c", "wc -c; exec sleep 1000"]));
    without.stdin = false;
    let mut without = link.start(without).await.unwrap();
    assert_eq!(first_line(&mut without).await, "0");
    let ended = link.start(kept(spec(&["cat"]))).await.unwrap();
    ended.input.end().await.unwrap();
    let over = ended.number();
    finish(ended).await;
    for number in [without.number(), over] {
        let input = link.input(Selector::Process(number)).unwrap();
        input.write(Bytes::from_static(b"words")).await.ok();
        assert_eq!(refused(input.finish(false).await), code::NO_INPUT);
    }
    let input = link.input(number("nobody")).unwrap();
    assert_eq!(refused(input.finish(true).await), code::NO_SUCH_PROCESS);
    // One that lives and has closed its input, seen when the first bytes go nowhere.
    let mut closed = link
        .start(shell("exec <&-; echo closed; exec sleep 1000"))
        .await
        .unwrap();
    first_line(&mut closed).await;
    let input = link.input(Selector::Process(closed.number())).unwrap();
    input.write(Bytes::from_static(b"words")).await.ok();
    assert_eq!(refused(input.finish(false).await), code::NO_INPUT);
}

#[tokio::test]
async fn input_that_is_not_read_is_given_up_in_time_and_says_what_went_in() {
    let (_bench, link) = Bench::start().await;
    let process = link.start(spec(&["sleep", "1000"])).await.unwrap();
    let input = link.input(Selector::Process(process.number())).unwrap();
    let began = Instant::now();
    let stuffing = async {
        input.write(pattern(1_000_000)).await.ok();
        input.finish(true).await
    };
    match soon(stuffing).await {
        Err(casemate_link::daemon::LinkError::Refused { code, message }) => {
            assert_eq!(code, code::INPUT_STALLED);
            assert!(message.contains("65536 bytes"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() >= casemate_link::limits::INPUT_DEADLINE);
    assert_eq!(run(&link, spec(&["true"])).await.exit.exit_code, Some(0));
}

#[tokio::test]
async fn two_hundred_ended_processes_are_kept_in_bounded_memory_and_the_oldest_goes() {
    let (bench, link) = Bench::start().await;
    let mut numbers = Vec::new();
    for round in 0..10 {
        let mut starts = tokio::task::JoinSet::new();
        for at in 0..30 {
            let link = link.clone();
            starts.spawn(async move {
                let script = format!("echo {}; head -c 100000 /dev/zero >&2", round * 30 + at);
                let process = link.start(kept(shell(&script))).await.unwrap();
                let number = process.number();
                finish(process).await;
                number
            });
        }
        let mut round = soon(starts.join_all()).await;
        round.sort_unstable();
        numbers.extend(round);
    }
    let all = link.processes().await.unwrap();
    assert_eq!(all.len(), 256);
    assert!(
        all.iter()
            .all(|info| info.stderr_to == 100_000 && info.stderr_from == 0)
    );
    assert!(
        numbers.contains(&all[0].process) && !all.iter().any(|info| info.process == numbers[0])
    );
    // 256 times 100 kB, and the guest itself.
    until("memory is given back", || {
        resident_bytes(bench.guest.id()) < 36_000_000
    })
    .await;
    let last = read_from(&link, *numbers.last().unwrap(), [0, 0]).await.0;
    assert_eq!(last.stderr.len(), 100_000);
}

#[tokio::test]
async fn all_that_is_kept_together_is_bounded() {
    let (bench, link) = Bench::start().await;
    let mut numbers = Vec::new();
    for _ in 0..8 {
        let mut big = kept(shell("head -c 16777216 /dev/zero"));
        (big.keep_bytes, big.max_stdout_bytes) = (16 << 20, u64::MAX);
        let process = link.start(big).await.unwrap();
        numbers.push(process.number());
        let outcome = finish(process).await;
        assert_eq!(
            (outcome.stdout.len(), outcome.exit.exit_code),
            (16 << 20, Some(0))
        );
    }
    let kept: Vec<u64> = link
        .processes()
        .await
        .unwrap()
        .iter()
        .map(|info| info.process)
        .collect();
    assert!(
        kept.len() < 4 && kept == numbers[8 - kept.len()..],
        "{kept:?} of {numbers:?}"
    );
    until("memory is given back", || {
        resident_bytes(bench.guest.id()) < 64 << 20
    })
    .await;
    let last = read_from(&link, numbers[7], [0, 0]).await.0;
    assert_eq!(last.stdout.len(), 16 << 20);
}

#[tokio::test]
async fn two_hundred_kept_processes_run_at_once_and_end_with_the_guest() {
    let (mut bench, link) = Bench::start().await;
    let mut numbers = Vec::new();
    for _ in 0..200 {
        let process = link
            .start(kept(shell("echo up; read line; echo $line")))
            .await
            .unwrap();
        numbers.push(process.number());
    }
    assert!(
        resident_bytes(bench.guest.id()) < 16_000_000,
        "{}",
        resident_bytes(bench.guest.id())
    );
    link.close();
    let link = bench.accept().await;
    assert_eq!(link.health().await.unwrap().processes, 200);
    for number in numbers.split_off(100) {
        let input = link.input(Selector::Process(number)).unwrap();
        input.write(Bytes::from_static(b"bye\n")).await.unwrap();
        assert_eq!(read_from(&link, number, [3, 0]).await.0.stdout, b"bye\n");
    }
    assert_eq!(link.health().await.unwrap().processes, 100);
    assert_eq!(children_of(bench.guest.id()), 100);
    drop((link, bench));
}

#[tokio::test]
async fn a_guest_runs_no_more_than_it_may() {
    let (mut bench, link) = Bench::start().await;
    for _ in 0..256 {
        // Dropped at once, so that the link has a place for the next.
        drop(link.start(kept(spec(&["sleep", "1000"]))).await.unwrap());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let code = refused(link.start(kept(spec(&["sleep", "1000"]))).await);
        assert_eq!(code, code::TOO_MANY_PROCESSES);
        // The first refusals may be the link's own; the guest's say so after the links have forgotten.
        if link.health().await.unwrap().processes == 256 {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    link.close();
    let link = bench.accept().await;
    assert_eq!(
        refused(link.start(spec(&["true"])).await),
        code::TOO_MANY_PROCESSES
    );
}

#[tokio::test]
async fn a_process_whose_start_nobody_waits_for_ends_or_is_kept() {
    let (mut bench, mut link) = Bench::start().await;
    for at in 0..20_u64 {
        let tag = format!("start {at}");
        let mut wanted = spec(&["sleep", "1000"]);
        wanted.tag = Some(tag.clone());
        let wanted = if at % 2 == 0 { kept(wanted) } else { wanted };
        let starting = tokio::spawn({
            let link = link.clone();
            async move { drop(link.start(wanted).await) }
        });
        tokio::time::sleep(Duration::from_micros(at * 150)).await;
        link.close();
        soon(starting).await.unwrap();
        link = bench.accept().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = link.processes().await.unwrap();
            let found = found.iter().find(|info| info.tag.as_ref() == Some(&tag));
            match found {
                Some(info) if info.kept => {
                    assert!(at % 2 == 0 && lives(info.pid));
                    link.signal(Selector::Pid(info.pid), 9).await.unwrap();
                    break;
                }
                None => break,
                Some(_) => assert!(Instant::now() < deadline),
            }
        }
    }
    until("no child is forgotten", || {
        children_of(bench.guest.id()) == 0
    })
    .await;
}

#[tokio::test]
async fn a_login_shell_is_the_accounts_own() {
    let (_bench, link) = Bench::start().await;
    let login = |command: Option<&str>| {
        let mut spec = spec(&[]);
        spec.shell = Some(LoginShell {
            command: command.map(str::to_owned),
        });
        spec.env.insert("HOME".into(), "/nonexistent".into());
        spec
    };
    let own: ProcessSpec = login(Some(
        "echo $0 $SHELL; shopt -q login_shell 2>/dev/null && echo login; exit 5",
    ));
    let outcome = run(&link, own).await;
    let text = String::from_utf8(outcome.stdout).unwrap();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let uid = nix::unistd::geteuid().to_string();
    let account = passwd
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&uid))
        .unwrap();
    let own = account.rsplit(':').next().unwrap();
    assert_eq!(
        text.lines().next(),
        Some(format!("{own} {own}").as_str()),
        "{text}"
    );
    assert_eq!(text.contains("login"), own.ends_with("bash"), "{text}");
    assert_eq!(outcome.exit.exit_code, Some(5));

    let process = link.start(login(None)).await.unwrap();
    assert_eq!(
        info(&link, process.number()).await.unwrap().argv,
        [own, "-l"]
    );
    process
        .input
        .write(Bytes::from_static(b"echo typed\nexit 6\n"))
        .await
        .unwrap();
    let outcome = finish(process).await;
    assert_eq!(
        (outcome.exit.exit_code, outcome.stdout),
        (Some(6), b"typed\n".to_vec())
    );
}
