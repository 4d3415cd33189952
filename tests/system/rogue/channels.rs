//! A rogue's channels: opened or not, with too little, too much or nothing on them.

use serde_json::json;

use super::Ask::{Read, Write, WriteMuch};
use super::Fate::{Cut, Fine, Gone, Problem, Told};
use super::{Attack, END, FRAMES, attacked_with, entry, lines, said, with};

/// Answers to what is asked about large files, and what comes on the channels for them.
fn channels() -> Vec<Attack> {
    let read = |size: u64, more: &[&str]| {
        let entry = with(
            entry(json!({"size_bytes": size})),
            &json!({"on_channel": true}),
        );
        let mut script = lines([FRAMES]);
        script.extend(more.iter().map(|&line| line.to_owned()));
        let at = script.iter().position(|line| line == "HEAD").unwrap();
        script[at] = said("21", &entry);
        script
    };
    let taken = r#"doc 21 {"on_channel":true}"#;
    let done = said("23", &entry(json!({})));
    let full = r#"doc 25 {"code":"disk_full","message":"x"}"#;
    vec![
        (
            Read,
            read(10, &["channel 0123456789", "HEAD", END, "end"]),
            Fine,
        ),
        (
            Read,
            read(
                10,
                &["channels 20", "channel 0123456789", "HEAD", END, "end"],
            ),
            Fine,
        ),
        // Not dialed, too little, too much, not whole after all, nothing said at its end, a link that goes meanwhile.
        (Read, read(10, &["HEAD", END, "end"]), Gone),
        (Read, read(10, &["channel 01234", "HEAD", END, "end"]), Cut),
        (
            Read,
            read(10, &["channel {{0*20}}", "HEAD", END, "end"]),
            Cut,
        ),
        (
            Read,
            read(10, &["channel 0123456789", "HEAD", full, "end"]),
            Cut,
        ),
        (Read, read(10, &["channel 0123456789", "HEAD", "end"]), Cut),
        (Read, read(10, &["channel 01234", "HEAD", "hang-up"]), Cut),
        (
            Read,
            read(
                10,
                &["channel 0123456789", "HEAD", "doc 22 more", END, "end"],
            ),
            Cut,
        ),
        (WriteMuch, lines([FRAMES, taken, "stall"]), Gone),
        (WriteMuch, lines([FRAMES, "channel ", taken, "stall"]), Gone),
        (
            WriteMuch,
            lines([FRAMES, "channel ", taken, full, "end"]),
            Problem(507, "disk_full"),
        ),
        (
            WriteMuch,
            lines([FRAMES, "channel-held", taken, full, "end"]),
            Problem(507, "disk_full"),
        ),
        (
            WriteMuch,
            lines([FRAMES, "channel-held", taken, &done, END, "end"]),
            Gone,
        ),
        (
            WriteMuch,
            lines([FRAMES, "channel-held", taken, "hang-up"]),
            Gone,
        ),
        // It was not offered one, and nothing comes over it: it counts when it is said at the right moment.
        (Write, lines([FRAMES, taken, &done, END, "end"]), Told),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rogue_guest_does_with_channels_ends_in_a_named_error() {
    attacked_with(channels()).await;
}
