//! Which session is meant: by its ID, or by the name that no other live session of the team has.

use std::convert::Infallible;
use std::str::FromStr;

use casemate::base::exit::Exit;
use casemate::base::id::SessionId;
use casemate::model::name::Name;
use casemate::model::session::Phase;
use serde::Deserialize;

use super::session::wire::Page;
use crate::failure::Failure;
use crate::http::{Call, Client};

/// A session as people say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Its ID.
    Id(SessionId),
    /// Its name.
    Name(Name),
}

#[derive(Deserialize)]
struct Found {
    id: SessionId,
}

/// Reads an ID or a name.
pub fn which(text: &str) -> Result<Which, String> {
    if let Ok(id) = text.parse() {
        return Ok(Which::Id(id));
    }
    let name = text.parse().map(Which::Name);
    name.map_err(|error| format!("neither an ID nor a name; {error}"))
}

/// The session that is meant; the only live one of the team when none is named.
pub async fn sole(which: Option<&Which>, client: &Client) -> Result<SessionId, Failure> {
    if let Some(which) = which {
        return which.find(client).await;
    }
    let live = Phase::ALL.into_iter().filter(|phase| !phase.is_final());
    let mut query: Vec<_> = live
        .map(|phase| ("phase", phase.as_str().to_owned()))
        .collect();
    query.push(("limit", "2".to_owned()));
    let answer = client.call(Call::get("/v1/sessions", &query)).await?;
    let page: Page<Found> = client.read(&answer)?;
    match page.items.as_slice() {
        [only] => Ok(only.id),
        [] => Err(Failure::new(Exit::Failed, "there is no live session")),
        _ => Err(Failure::usage(
            "there is more than one live session; name one with --session",
        )),
    }
}

impl Which {
    /// Its ID. Only a name needs a question.
    pub async fn find(&self, client: &Client) -> Result<SessionId, Failure> {
        let name = match self {
            Self::Id(id) => return Ok(*id),
            Self::Name(name) => name,
        };
        let live = Phase::ALL.into_iter().filter(|phase| !phase.is_final());
        let mut query: Vec<_> = live
            .map(|phase| ("phase", phase.as_str().to_owned()))
            .collect();
        query.push(("name", name.to_string()));
        let answer = client.call(Call::get("/v1/sessions", &query)).await?;
        let page: Page<Found> = client.read(&answer)?;
        let found = page.items.first().map(|found| found.id);
        found.ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!("no live session has the name {name}; see `casemate session list`"),
            )
        })
    }
}

/// A process in a session: its pid, or the tag that its starter gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhichProcess(String);

impl FromStr for WhichProcess {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl WhichProcess {
    /// The path of what belongs to it.
    pub fn path(&self, id: SessionId, rest: &str) -> String {
        let process = crate::http::percent(&self.0);
        format!("/v1/sessions/{id}/processes/{process}{rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_goes_before_a_name() {
        let id = "ses_00000000000000000000000001";
        assert!(matches!(which(id), Ok(Which::Id(_))));
        assert!(matches!(which("ses_1"), Ok(Which::Name(_))));
        assert!(which("A B").unwrap_err().contains("neither"));
    }

    #[test]
    fn a_tag_cannot_lead_elsewhere() {
        let process: WhichProcess = "a/b?c".parse().unwrap();
        let id = SessionId::from_bytes([1; 16]);
        assert!(process.path(id, "/x").ends_with("/processes/a%2Fb%3Fc/x"));
    }
}
