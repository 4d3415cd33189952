//! A rogue at the door: what it says before there is a link, and how often it comes.

use super::Ask::{Run, Usage};
use super::{FRAMES, House, STARTED, lines};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rogue_guest_that_dials_strangely_hurts_nobody() {
    let mut house = House::new().await;
    let rogue = house.rogue().await;
    rogue.told(&[]).await;
    house.look();
    let token = r#""protocol":{"min":1,"max":1},"token":"%TOKEN%""#;
    let strange = [
        "{{x*5000}}".to_owned(),
        "{{[*4000}}".to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        "\u{1}".to_owned(),
        format!("{{{token},\"kernel\":7}}"),
        r#"{"protocol":{"min":4294967295,"max":4294967295},"token":"%TOKEN%"}"#.to_owned(),
        r#"{"protocol":{"min":4294967296,"max":4294967296},"token":"%TOKEN%"}"#.to_owned(),
        r#"{"protocol":{"min":9,"max":0},"token":"%TOKEN%"}"#.to_owned(),
        r#"{"protocol":{"min":1,"max":1},"token":"{{f*64}}"}"#.to_owned(),
        r#"{"protocol":{"min":1,"max":1},"token":""}"#.to_owned(),
        format!("{{{token},\"token\":\"%TOKEN%\"}}"),
    ];
    // Each is turned away, and the next right one is let in.
    let hellos = format!("hellos {}", strange.join("|"));
    rogue.told(&lines([&hellos, "hang-up"])).await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    rogue.told(&[]).await;
    // A thousand capabilities are as good as their first.
    let many = format!(
        "{{{token},\"kernel\":{{\"banner\":\"Starting gVisor\"}},\"guest_version\":\"\\u001b[31m\\n\",\"capabilities\":[{{{{\"a\",*900}}}}\"b\"]}}"
    );
    rogue
        .told(&lines([&format!("hellos {many}"), "hang-up"]))
        .await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    rogue.told(&[]).await;
    rogue.ask(Usage).await.unwrap().problem(501, "unsupported");
    // A crowd at the door while the link stands, and while it does not.
    rogue
        .told(&lines(["crowd 100", FRAMES, STARTED, "hang-up"]))
        .await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    rogue.told(&lines(["hang-up"])).await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    rogue.told(&[]).await;
    // Who claims another kernel is not the sandbox any more, and what it claims reaches no terminal.
    let linux = format!("{{{token},\"kernel\":{{\"banner\":\"\\u001b[31mLinux\\n\"}}}}");
    rogue
        .told(&lines([&format!("hellos {linux}"), "hang-up"]))
        .await;
    rogue.ask(Run).await.unwrap().problem(502, "guest_gone");
    let session = house.daemon.phase(&rogue.id, "failed").await;
    let message = session["message"].as_str().unwrap();
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(!house.daemon.log().contains('\u{1b}'));
    house.unharmed().await;
}
