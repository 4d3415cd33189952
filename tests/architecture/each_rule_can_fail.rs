//! That what is kept would be noticed if it were broken.

use super::*;

/// What a small source with a proper head is told.
fn told(name: &str, code: &str) -> String {
    let floors = floors(
        "// 9: doors\npub mod admin;\npub mod api;\n\n// 6: x\npub mod session;\n// 4: y\npub mod runtime;\npub mod store;\n// 2: z\npub mod policy;\n// 1: z\npub mod model;\n// 0: z\npub mod base;\n",
    );
    check(&floors, name, &format!("//! A file.\n{code}")).join("\n")
}

#[test]
fn floors_below_may_be_named_in_every_way() {
    for code in [
        "use crate::store::Store;",
        "use crate::{base::id::Id, store::{self, Store}};",
        "use super::run::Run; use super::super::store::Store; use self::inner::X;",
        "fn f() { let x = crate::store::Store::open(); tokio::select! { _ = crate::store::x() => {} } }",
        "// use crate::api::X;\n/// [`crate::api::X`]\nconst TEXT: &str = \"crate::api::X\";",
    ] {
        assert_eq!(told("session/launch.rs", code), "", "{code}");
    }
}

#[test]
fn a_floor_above_is_a_violation_in_every_way() {
    for code in [
        "use crate::api::X;",
        "use crate::{base::id::Id, api::X};",
        "use crate::{base::{id::Id}, store::Store, api::{self}};",
        "use super::super::api::X;",
        "use super::{super::{api::X}};",
        "pub use crate::api;",
        "fn f() -> crate::api::X { crate::base::x() }",
        "fn f() { tokio::select! { _ = crate::api::x() => {} } }",
        "mod inner { use super::super::super::api::X; }",
        "#[cfg(test)]\nmod tests { use crate::api::X; }",
        "macro_rules! m { () => { $crate::api::X } }",
    ] {
        assert!(
            told("session/launch.rs", code).contains("a floor above"),
            "{code}"
        );
    }
}

#[test]
fn a_sibling_a_stranger_and_the_whole_house_are_violations() {
    assert!(told("store/mod.rs", "use crate::runtime::X;").contains("a sibling"));
    assert!(told("store/keys.rs", "use super::super::runtime::X;").contains("a sibling"));
    assert!(told("store/mod.rs", "use crate::utils::X;").contains("nothing that lib.rs knows"));
    for code in [
        "use crate as house;",
        "use crate::{self as house};",
        "use crate::*;",
    ] {
        assert!(
            told("store/mod.rs", code).contains("the whole house"),
            "{code}"
        );
    }
}

#[test]
fn a_front_door_that_reaches_behind_the_app_is_a_violation() {
    for code in [
        "use crate::store::Store;",
        "fn f() { crate::runtime::probe(b); }",
    ] {
        assert!(
            told("api/v1/x.rs", code).contains("behind the app"),
            "{code}"
        );
    }
    assert_eq!(told("api/server.rs", "use crate::model::X;"), "");
}

#[test]
fn a_file_on_no_floor_is_a_violation() {
    assert!(told("utils/mod.rs", "").contains("on no floor"));
    assert!(told("helpers.rs", "").contains("on no floor"));
}

#[test]
fn a_file_opens_by_saying_what_it_is() {
    assert!(check(&Floors::new(), "lib.rs", "use std::fs;\n")[0].contains("opens without"));
}

#[test]
fn too_many_lines_are_counted_without_comments_and_tests() {
    let code = "const A: u8 = 1;\n".repeat(MAX_LINES);
    assert_eq!(told("base/id.rs", &code), "");
    let quiet = format!("{code}/// Words.\n// More.\n\n#[cfg(test)]\nmod tests {{\n{code}}}\n");
    assert!(
        !told("base/id.rs", &quiet.replacen("const A: u8 = 1;\n", "", 8)).contains("lines of code")
    );
    assert!(told("base/id.rs", &format!("{code}{code}")).contains("lines of code"));
}

#[test]
fn an_outside_crate_out_of_its_place_is_a_violation() {
    assert_eq!(told("store/mod.rs", "use rusqlite::Connection;"), "");
    for (name, code) in [
        ("session/mod.rs", "use rusqlite::Connection;"),
        (
            "session/mod.rs",
            "fn f() -> Result<(), ::rusqlite::Error> { x }",
        ),
        ("session/mod.rs", "use {std::fs, podman_api::Podman};"),
        ("session/mod.rs", "extern crate ring;"),
        ("runtime/podman.rs", "use hyper::Request;"),
        ("base/clock.rs", "use anyhow::Context;"),
        ("admin/server.rs", "use casemate_link::daemon::Link;"),
        ("bin/casemate/main.rs", "use rusqlite::Connection;"),
    ] {
        assert!(told(name, code).contains("it lives in"), "{name}: {code}");
    }
    assert_eq!(
        told(
            "session/mod.rs",
            "#[cfg(test)]\nmod tests { use rusqlite::Connection; }"
        ),
        ""
    );
}

#[test]
fn an_effect_in_a_pure_file_is_a_violation() {
    assert_eq!(
        told(
            "policy/mod.rs",
            "use std::collections::BTreeMap; fn f(now: u64) -> u64 { now }"
        ),
        ""
    );
    for code in [
        "async fn f() {}",
        "fn f() { let x = async { 1 }; }",
        "use tokio::sync::watch;",
        "use std::fs;",
        "use std::{collections::BTreeMap, env};",
        "fn f() { std::env::var(NAME); }",
        "fn f(clock: &dyn Clock) { clock.now(); }",
        "fn f() { Timestamp::now(); }",
    ] {
        for name in [
            "policy/mod.rs",
            "model/x.rs",
            "session/state.rs",
            "runtime/spec.rs",
        ] {
            assert!(told(name, code).contains("to be pure"), "{name}: {code}");
        }
        assert!(
            !told("session/launch.rs", code).contains("to be pure"),
            "{code}"
        );
    }
    assert_eq!(
        told(
            "policy/mod.rs",
            "#[cfg(test)]\nmod tests { use std::fs; async fn f() {} }\n"
        ),
        ""
    );
}

#[test]
fn a_program_names_only_what_is_for_it() {
    assert_eq!(told("bin/casemated.rs", "use casemate::daemon::run;"), "");
    assert_eq!(
        told(
            "bin/casemate/main.rs",
            "use casemate::{admin::protocol::Request, base::exit::Exit};"
        ),
        ""
    );
    for code in [
        "use casemate::store::Store;",
        "use casemate::admin::AdminServer;",
        "use casemate::{base, app};",
    ] {
        assert!(
            told("bin/casemate/main.rs", code).contains("not for a program"),
            "{code}"
        );
    }
}

#[test]
fn the_ends_of_the_link_do_not_know_each_other() {
    assert!(told("link/src/daemon/link.rs", "use crate::guest::dial;").contains("the other end"));
    assert!(told("link/src/guest.rs", "use crate::daemon::Link;").contains("the other end"));
    assert_eq!(told("link/src/guest.rs", "use crate::wire::Frame;"), "");
}

#[test]
fn a_dependency_without_a_place_is_noticed() {
    let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nbytes.workspace = true\n# why\nsd-notify = \"1\"\n\n[dev-dependencies]\ny = \"1\"\n";
    assert_eq!(dependencies(manifest), ["bytes", "sd_notify"]);
}
