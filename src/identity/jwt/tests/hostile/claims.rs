//! Claims that are not what they must be.
#![expect(clippy::too_many_lines, reason = "a table is as long as it is")]

use serde_json::{Value, json};

use super::super::mint::{By, Draft, NOW_S};
use super::*;

/// Claims of issuer, audience and time.
pub(super) fn registered() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, value: Value, reason| {
        let token = rsa().claim(name, value.clone()).token();
        let shown: String = value.to_string().chars().take(60).collect();
        rows.push(row(format!("{name} {shown}"), token, reason));
    };
    for value in [
        json!(null),
        json!(7),
        json!(""),
        json!(["https://public.example.com"]),
        json!("https://public.example.com/"),
        json!("HTTPS://public.example.com"),
        json!("https://PUBLIC.example.com"),
        json!("http://public.example.com"),
        json!("public"),
        json!(" https://public.example.com"),
        json!("https://public.example.com\u{0}"),
        json!("https://public.example.co"),
        json!("https://public.example.com.evil.com"),
        json!("https://nobody.example.com"),
    ] {
        add("iss", value, Refused::Issuer);
    }
    for value in [
        json!(null),
        json!(7),
        json!(true),
        json!(""),
        json!("other"),
        json!("Casemate"),
        json!("casemat"),
        json!("casemate2"),
        json!("casemate other"),
        json!("casemate,other"),
        json!(" casemate"),
        json!("*"),
        json!([]),
        json!(["other"]),
        json!(["Casemate"]),
        json!([["casemate"]]),
        json!([null]),
        json!(["casemate", 7]),
        json!({"casemate": true}),
        json!(vec!["casemate"; 1025]),
    ] {
        add("aud", value, Refused::Audience);
    }
    for value in [
        json!(NOW_S - LEEWAY_S),
        json!(NOW_S - 3600),
        json!(0),
        json!(1_799_999_970.0),
    ] {
        add("exp", value, Refused::Expired);
    }
    let not_dates = [
        json!(null),
        json!("1800000300"),
        json!(true),
        json!([1_800_000_300]),
        json!({}),
        json!(-1),
        json!(-1.5),
        json!(1e300),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(253_402_300_800_i64),
        json!("2027-01-15T08:00:00Z"),
    ];
    for name in ["exp", "nbf", "iat"] {
        for value in &not_dates {
            add(name, value.clone(), Refused::Date);
        }
    }
    for name in ["nbf", "iat"] {
        for value in [
            json!(NOW_S + LEEWAY_S + 1),
            json!(NOW_S + 3600),
            json!(253_402_300_799_i64),
        ] {
            add(name, value, Refused::Early);
        }
    }
    // In milliseconds, as some clocks have it.
    add("iat", json!(NOW_S * 1000), Refused::Date);
    for value in [
        json!(null),
        json!(7),
        json!(true),
        json!(""),
        json!(" "),
        json!("x".repeat(129)),
        json!("a b"),
        json!("a\n"),
        json!("a\r\nb"),
        json!("a\u{0}"),
        json!("\u{1b}[2J"),
        json!("a\u{7f}"),
        json!("ünï"),
        json!("\u{202e}toor"),
        json!("a\u{a0}b"),
        json!(["somebody"]),
        json!({"id": "somebody"}),
    ] {
        add("sub", value, Refused::Subject);
    }
    for (name, reason) in [
        ("iss", Refused::Issuer),
        ("aud", Refused::Audience),
        ("exp", Refused::NoExpiry),
        ("sub", Refused::Subject),
    ] {
        rows.push(row(
            format!("no {name}"),
            rsa().without(name).token(),
            reason,
        ));
    }
    let party =
        || Draft::public("ES256", "x", By::Ec).claim("iss", "https://party.example.com".into());
    for (name, draft) in [
        (
            "an audience where none is expected",
            party().claim("azp", "web".into()),
        ),
        (
            "an empty audience where none is expected",
            party().claim("azp", "web".into()).claim("aud", json!([])),
        ),
    ] {
        rows.push(row(name, draft.token(), Refused::Audience));
    }
    rows.push(row(
        "no party where one is asked for",
        party().without("aud").token(),
        Refused::Party,
    ));
    rows.push(row(
        "the name of the claim in other letters",
        rsa().with_text("\"exp\"", "\"EXP\""),
        Refused::NoExpiry,
    ));
    rows.push(row(
        "a claim with a blank in its name",
        rsa().with_text("\"aud\"", "\"aud \""),
        Refused::Audience,
    ));
    rows
}

/// Claims that the settings ask for, and those that are mapped.
pub(super) fn mapped() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |path: &str, value: Value, reason| {
        let token = Draft::secret().claim(path, value.clone()).token();
        rows.push(row(format!("{path} {value}"), token, reason));
    };
    for value in [
        json!(null),
        json!("Web"),
        json!(""),
        json!("other"),
        json!(["web"]),
        json!(7),
        json!({"web": 1}),
    ] {
        add("azp", value, Refused::Party);
    }
    for value in [
        json!(NOW_S - 3600 - LEEWAY_S),
        json!(0),
        json!(NOW_S - 86_400),
    ] {
        add("iat", value, Refused::TooOld);
    }
    for value in [
        json!(false),
        json!(null),
        json!("True"),
        json!(1),
        json!([]),
        json!([false]),
        json!([["true"]]),
        json!({"true": true}),
    ] {
        add("verified", value, Refused::Claim);
    }
    for value in [
        json!("bronze"),
        json!("Gold"),
        json!(null),
        json!(["bronze"]),
        json!("gold silver"),
        json!({"gold": 1}),
    ] {
        add("plan.tier", value, Refused::Claim);
    }
    for value in [json!(8), json!(7.5), json!("07"), json!(-7), json!([])] {
        add("plan.seats", value, Refused::Claim);
    }
    for value in [
        json!([]),
        json!(["a"]),
        json!("a"),
        json!([["b"]]),
        json!(null),
    ] {
        add("flags", value, Refused::Claim);
    }
    add("plan", json!("gold"), Refused::Claim);
    add(
        "plan",
        json!([{"tier": "gold", "seats": 7}]),
        Refused::Claim,
    );
    for value in [
        json!(null),
        json!(""),
        json!(7),
        json!([]),
        json!("x y"),
        json!({"id": "u-1"}),
    ] {
        add("user.id", value, Refused::Subject);
    }
    for value in [
        json!(null),
        json!(""),
        json!("acme"),
        json!("/Acme"),
        json!("/acme/"),
        json!("/unknown"),
        json!(7),
        json!([]),
        json!(["/unknown"]),
        json!(["/acme", "/other"]),
        json!(["/acme", 7]),
        json!([["/acme"]]),
        json!({"/acme": true}),
    ] {
        add("org.team", value, Refused::Team);
    }
    add("org", json!(["/acme"]), Refused::Team);
    for value in [
        json!(null),
        json!(""),
        json!([]),
        json!(["unknown"]),
        json!("Staff"),
        json!("staff boss"),
        json!("auditor"),
        json!("team-admin"),
        json!(7),
        json!(["staff", 7]),
        json!([["staff"]]),
        json!({"staff": true}),
        json!(["inspector", "staff"]),
        json!(["boss", "inspector"]),
    ] {
        add("roles", value, Refused::Role);
    }
    for value in [
        json!(7),
        json!(true),
        json!(["sessions:read", 7]),
        json!({"sessions:read": true}),
    ] {
        add("scope", value, Refused::Scope);
    }
    for (name, reason) in [
        ("azp", Refused::Party),
        ("iat", Refused::TooOld),
        ("verified", Refused::Claim),
        ("plan", Refused::Claim),
        ("user", Refused::Subject),
        ("org", Refused::Team),
        ("roles", Refused::Role),
    ] {
        rows.push(row(
            format!("no {name} where it is mapped"),
            Draft::secret().without(name).token(),
            reason,
        ));
    }
    // A name with a dot is no way around one that is asked for.
    let flat = Draft::secret()
        .without("org")
        .with_text("\"user\"", "\"org.team\":\"/acme\",\"user\"");
    rows.push(row("a claim named org.team", flat, Refused::Team));
    let named = |team: Value| {
        let draft =
            Draft::public("EdDSA", "x", By::Ed).claim("iss", "https://named.example.com".into());
        draft.claim("team", team).token()
    };
    for team in [
        json!("Acme"),
        json!("a b"),
        json!(""),
        json!("../acme"),
        json!("a/b"),
        json!("-acme"),
        json!("é"),
        json!("a\n"),
        json!("x".repeat(64)),
        json!(null),
        json!(7),
        json!(["a", "b"]),
        json!([]),
    ] {
        rows.push(row(
            format!("a team named {team}"),
            named(team),
            Refused::Team,
        ));
    }
    rows
}
