//! What a token costs: verified for the first time, and known. `cargo bench --bench tokens`.
//!
//! Prints a line of JSON for each algorithm, in microseconds: medians of a thousand.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a measurement that fails has no figures, and prints those that it has"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use casemate::base::clock::Timestamp;
use casemate::config::Config;
use casemate::identity::jwt::Tokens;
use serde_json::Value;

const ROUNDS: usize = 1000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jwt");
    let table: Value =
        serde_json::from_slice(&std::fs::read(fixtures.join("jose.json")).unwrap()).unwrap();
    let now = Timestamp::from_millis(table["now_s"].as_i64().unwrap() * 1000);
    let settings = format!(
        "version: 1\njwt: {{any: {{issuer: 'https://any.example.com', audiences: [casemate], algorithms: [RS256, ES256, EdDSA], \
         jwks_file: {}, team: acme}}}}",
        fixtures.join("jwks.json").display()
    );
    let source = ("casemate.yaml".to_owned(), settings.into_bytes());
    let issuers = Config::from_sources(&[source], &[]).unwrap().jwt;
    for row in table["tokens"].as_array().unwrap() {
        if row["issuer"] != "any" {
            continue;
        }
        let token = row["token"].as_str().unwrap();
        let tokens = Tokens::default();
        let (mut first, mut known) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            // Whoever is trusted anew is verified anew.
            tokens.trust(tokens.prepare(issuers.clone(), now).await.unwrap());
            for times in [&mut first, &mut known] {
                let began = Instant::now();
                tokens.authenticate(token, now).await.unwrap();
                times.push(began.elapsed());
            }
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2].as_nanos() / 1000
        };
        let name = row["name"].as_str().unwrap();
        let figures = serde_json::json!({
            "token": name, "first_us": median(&mut first), "known_us": median(&mut known),
        });
        println!("{figures}");
    }
}
