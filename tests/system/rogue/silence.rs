//! A rogue's silence: it begins to answer, or does not, and leaves off.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::Ask::{
    Archive, Input, List, Output, Ports, Processes, Read, Run, Signal, Start, Stat, Usage, Watch,
    Write,
};
use super::{Ask, FRAMES, House, STARTED, lines};

/// What the guest says and then leaves off, what is asked meanwhile, and for how many seconds it waits.
type Silence = (Vec<String>, &'static [(Ask, u64)]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rogue_guest_that_stalls_meets_deadlines() {
    let mut house = House::new().await;
    let sessions: [Silence; 5] = [
        // No head; a head and nothing else; a beginning and nothing else; a byte now and then.
        (
            lines(["stall"]),
            &[
                (Run, 15),
                (Start, 15),
                (Stat, 15),
                (Read, 15),
                (Output, 15),
                (Write, 15),
                (Watch, 15),
                (Usage, 5),
                (Processes, 5),
                (Ports, 5),
                (Signal, 5),
                (Input, 15),
                (List(10), 60),
            ],
        ),
        (
            lines([FRAMES, "stall"]),
            &[
                (Run, 15),
                (Stat, 15),
                (Read, 15),
                (Output, 15),
                (Processes, 5),
                (Ports, 5),
                (Archive, 15),
                (List(10), 60),
            ],
        ),
        (
            lines([FRAMES, STARTED, "drip 100000 10 12 x"]),
            &[(Run, 13)],
        ),
        (
            lines([FRAMES, "drip 100000 1000 80 x"]),
            &[
                (Run, 15),
                (Stat, 15),
                (Read, 15),
                (Ports, 5),
                (List(10), 60),
            ],
        ),
        // Nothing is let out any more, while the client asks for more and more.
        (
            lines(["set 3 0", "stall"]),
            &[(Run, 15), (Stat, 15), (Usage, 5), (Processes, 5)],
        ),
    ];
    let mut rogues = Vec::new();
    for (script, asks) in sessions {
        let rogue = house.rogue().await;
        rogue.told(&script).await;
        rogues.push((rogue, asks));
    }
    house.look();
    let asked = rogues.iter().flat_map(|(rogue, asks)| {
        asks.iter().map(async |&(ask, seconds)| {
            let began = Instant::now();
            let answer = rogue
                .ask(ask)
                .await
                .unwrap_or_else(|error| panic!("{ask:?}: {error}"));
            let took = began.elapsed();
            answer.problem(502, "guest_gone");
            let bound = Duration::from_secs(seconds) + Duration::from_secs(8);
            assert!(took < bound, "{ask:?} took {took:?}");
        })
    });
    join_all(asked).await;
    house.unharmed().await;
}
