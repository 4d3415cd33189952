//! A storm of sudden ends under load, and the reckoning after it: no acknowledged session unknown, no container, process, mount,
//! directory, socket or control group that nobody owns, every session either usable or ended with a reason.
//!
//! `CASEMATE_STORM_SEED` repeats a storm as far as chance allows (the clients' and the machine's pace is not drawn), and
//! `CASEMATE_STORM_EVENTS` makes it longer or shorter.

mod clients;
mod events;
pub mod ground;
mod reckoning;

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::clients::{Actor, Dice, Shared};
use self::events::Storm;
use self::ground::{Disk, Podman};
use self::reckoning::Reckoning;
use crate::support::daemon::give_to_daemon;
use crate::support::{Daemon, bench};

/// How many things happen.
const EVENTS: usize = 300;

/// How many clients there are.
const CLIENTS: usize = 4;

/// How many sandboxes stand ready.
const POOL: usize = 1;

/// Most operations that clients finish between two events.
const MOST_BETWEEN: usize = 12;

/// The next event comes also when clients have not got that far.
const AT_LATEST: Duration = Duration::from_millis(1500);

/// Between two looks at how far they are, and at what must be started again.
const LOOK: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_storm_of_sudden_ends_nothing_is_lost_and_nothing_is_orphaned() {
    let seed = setting("CASEMATE_STORM_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).unwrap();
        u32::from_ne_bytes(bytes).into()
    });
    let events = setting("CASEMATE_STORM_EVENTS").map_or(EVENTS, |n| usize::try_from(n).unwrap());
    eprintln!("CASEMATE_STORM_SEED={seed} CASEMATE_STORM_EVENTS={events}");
    let mut dice = Dice::new(seed);

    let mut podman = Podman::up();
    let mut reckoning = Reckoning::before(&podman, POOL);
    let mut daemon = Daemon::on_podman(&podman.socket, &podman.runtime);
    std::fs::create_dir(daemon.state_dir()).unwrap();
    give_to_daemon(&daemon.state_dir());
    let disk = Disk::mount(daemon.state_dir());
    for (key, value) in [
        ("podman.call_timeout_s", json!(5)),
        ("podman.sandbox_timeout_s", json!(20)),
        ("sessions.max", json!(10)),
        ("sessions.queue_timeout_s", json!(3)),
        ("sessions.reattach_timeout_s", json!(15)),
        (
            "templates.warm",
            json!({"image": bench().image, "pool": POOL}),
        ),
    ] {
        daemon.set(key, value);
    }
    podman.links = daemon.run.join("link");
    daemon.start().await;
    daemon.client.key = Some(daemon.key("tests").await);
    let client = daemon.client.clone();
    for number in 0..CLIENTS {
        let wanted = json!({"name": clients::volume(number), "size_bytes": 32 << 20});
        client.post("/v1/volumes", wanted).await.expect(201);
    }
    let mut storm = Storm::new(daemon, podman, disk, Dice::new(dice.roll()));

    let shared = Arc::new(Shared::default());
    let mut actors = JoinSet::new();
    for number in 0..CLIENTS {
        let actor = Actor {
            client: client.clone(),
            dice: Dice::new(dice.roll()),
            shared: Arc::clone(&shared),
            number,
            made: 0,
            mine: Vec::new(),
        };
        actors.spawn(actor.work());
    }
    let began = Instant::now();
    for _ in 0..events {
        let enough = shared.done.load(Ordering::Relaxed) + 1 + dice.below(MOST_BETWEEN);
        let at_latest = Instant::now() + AT_LATEST;
        while shared.done.load(Ordering::Relaxed) < enough && Instant::now() < at_latest {
            storm.mend().await;
            tokio::time::sleep(LOOK).await;
        }
        storm.strike().await;
    }
    let raged = began.elapsed();
    shared.stop.store(true, Ordering::Relaxed);
    storm.heal().await;
    while let Some(actor) = actors.join_next().await {
        actor.expect("a client failed");
    }
    let healed = began.elapsed();

    let ledger = std::mem::take(&mut *shared.ledger.lock().unwrap());
    reckoning.problems.extend(ledger.problems.iter().cloned());
    reckoning.agree(&storm).await;
    reckoning.sessions(&storm, &ledger).await;
    // Those that were woken may have found out that they are over.
    reckoning.agree(&storm).await;
    let table = table(&storm, &ledger).await;
    reckoning.end(&mut storm, &ledger).await;
    let judged = began.elapsed();
    let podmans = reckoning::podmans_own(&storm.podman, &reckoning);
    eprintln!("{table}{podmans:>8}  files of podman's own and empty layers, left by its ends");
    eprintln!("raged {raged:.1?}, healed after {healed:.1?}, judged after {judged:.1?}");
    let problems = &reckoning.problems;
    if !problems.is_empty() {
        // The disk goes; whoever looks for the cause finds it beside the log.
        std::fs::copy(storm.daemon.database(), storm.daemon.home.join("state.db")).unwrap();
    }
    storm.disk.unmount();
    assert!(
        problems.is_empty(),
        "after the storm {seed}: {} problems: {problems:#?}",
        problems.len()
    );
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}: {error}")),
    )
}

/// What happened, to be read.
async fn table(storm: &Storm, ledger: &clients::Ledger) -> String {
    let mut table = String::new();
    let mut rows = |title: &str, rows: Vec<(String, String)>| {
        writeln!(table, "--- {title}").unwrap();
        for (name, value) in rows {
            writeln!(table, "{value:>8}  {name}").unwrap();
        }
    };
    let count = |of: &dyn Display, n: &usize| (of.to_string(), n.to_string());
    let events = storm.happened.iter();
    rows(
        "events",
        events
            .map(|(e, n)| (format!("{e:?}"), n.to_string()))
            .collect(),
    );
    let ended = storm.ended.iter();
    rows(
        "ends of the daemon by itself or asked for",
        ended.map(|(code, n)| count(code, n)).collect(),
    );
    let answers = ledger.answers.iter();
    rows(
        "operations",
        answers
            .map(|((what, told), n)| count(&format!("{what}: {told}"), n))
            .collect(),
    );
    let longest = ledger.longest.iter();
    rows(
        "longest waits",
        longest
            .map(|(what, took)| (what.to_string(), format!("{took:.1?}")))
            .collect(),
    );
    let mut fates = std::collections::BTreeMap::<String, usize>::new();
    let all = reckoning::all_sessions(&storm.daemon.client).await;
    for session in all.values() {
        let reason = session["reason"].as_str().unwrap_or("-");
        let phase = session["phase"].as_str().unwrap();
        *fates.entry(format!("{phase} {reason}")).or_default() += 1;
    }
    rows(
        "sessions",
        fates.iter().map(|(fate, n)| count(fate, n)).collect(),
    );
    let orphans = "SELECT count(*) FROM audit WHERE kind = 'sandbox.orphan'";
    let orphans: i64 = storm.daemon.sql(orphans).pop().unwrap();
    let log = storm.daemon.log();
    let said = |words: &str| log.matches(words).count();
    rows(
        "daemon",
        vec![
            (
                "sessions acknowledged".into(),
                ledger.sessions.len().to_string(),
            ),
            (
                "sandboxes removed that nobody owned".into(),
                orphans.to_string(),
            ),
            ("starts".into(), said("casemated is ready").to_string()),
            ("sessions adopted".into(), said("adopted a ").to_string()),
            (
                "clean-ups that had to be repeated".into(),
                said("cannot clear a session up yet").to_string(),
            ),
            (
                "storage removed that podman had forgotten".into(),
                said("storage of a sandbox that podman has no record of").to_string(),
            ),
            (
                "ends that could not be written down at once".into(),
                said("cannot record that a session ended yet").to_string(),
            ),
        ],
    );
    table
}
