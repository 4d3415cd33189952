//! The first version of the wire: its types live here, never in `model`.

pub(super) mod admin;
pub(super) mod archive;
pub(super) mod audit;
pub(super) mod credentials;
pub(super) mod endpoints;
pub(super) mod files;
pub(super) mod health;
pub(super) mod keys;
pub(super) mod lease;
pub(super) mod processes;
mod program;
pub(super) mod run;
pub(super) mod sessions;
pub(super) mod snapshot;
pub(super) mod templates;
pub(super) mod terminal;
mod text;
pub(super) mod usage;
pub(super) mod volumes;

use http::StatusCode;

use super::error::Problem;

/// Most entries of a page.
const MAX_PAGE: u32 = 200;
/// Entries of a page when the client does not say.
const PAGE: u32 = 50;

/// Reads `limit`.
fn page_limit(text: &str) -> Result<u32, Problem> {
    match text.parse() {
        Ok(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        _ => Err(Problem::bad_request(format!("limit: 1 to {MAX_PAGE}"))),
    }
}

/// Reads a cursor that we gave out.
fn cursor<T: std::str::FromStr>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid_cursor",
            "cursor: use next_cursor of the page before, unchanged",
        )
    })
}
