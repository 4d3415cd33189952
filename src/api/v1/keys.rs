//! Keys and tokens of sessions on the wire. A key's text is in one answer only: that of its making.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PAGE, cursor, page_limit};
use crate::api::body;
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::app::{MadeKey, NewKey};
use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, SessionId};
use crate::model::grant::{Grant, Role, Scope};
use crate::model::key::ApiKey;
use crate::model::name::Name;

/// How long a token of a session lasts when nobody says.
const TOKEN_LIFE_S: u64 = 3600;

/// What a new key shall be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateKey {
    /// What it is for; several may have the same.
    name: Name,
    /// What whoever has it is in the team: at most what its maker is. An operator makes auditors.
    #[serde(default)]
    role: Role,
    /// Of what the role may do, only this. All of it when absent.
    scopes: Option<BTreeSet<Scope>>,
    /// From when on it is not valid any more; never when neither this nor `expires_in_s` is there.
    expires_at: Option<Timestamp>,
    /// The same, counted from now.
    expires_in_s: Option<u64>,
}

/// What a token of a session shall be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateToken {
    /// What it may do with its session. `sessions:read` and `sessions:use` when absent.
    scopes: Option<BTreeSet<Scope>>,
    /// How long it lasts: 1 s to 24 h; an hour when absent. With its session it ends in any case.
    expires_in_s: Option<u64>,
}

/// A key, without its text.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct KeyView {
    id: KeyId,
    name: Name,
    role: Role,
    /// What it is narrowed to; absent: all that the role may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<BTreeSet<Scope>>,
    /// The only session that it reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    created_at: Timestamp,
    created_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_by: Option<String>,
    /// To the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<Timestamp>,
}

/// A key that was made. Its text is in this answer and nowhere else.
#[derive(Serialize, JsonSchema)]
pub(crate) struct MadeKeyView {
    #[serde(flatten)]
    view: KeyView,
    /// Its whole text: `cmk_…`.
    key: String,
    /// The same key as some E2B SDKs want it: `e2b_…`.
    e2b_key: String,
}

/// Keys, in the order of their making.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct KeyPage {
    items: Vec<KeyView>,
    /// Give it as `cursor` to get the next page; absent on the last one.
    next_cursor: Option<KeyId>,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        let (revoked_at, revoked_by) = key.revoked.unzip();
        Self {
            id: key.id,
            name: key.name,
            role: key.grant.role,
            scopes: key.grant.scopes,
            session: key.session,
            created_at: key.created_at,
            created_by: key.created_by,
            expires_at: key.expires_at,
            revoked_at,
            revoked_by,
            last_used_at: key.last_used_at,
        }
    }
}

fn made(made: MadeKey) -> Reply {
    let location = HeaderValue::from_str(&format!("/v1/keys/{}", made.key.id));
    let view = MadeKeyView {
        view: made.key.into(),
        key: made.text.expose().clone(),
        e2b_key: made.e2b.expose().clone(),
    };
    let reply = Reply::json(StatusCode::CREATED, &view);
    match location {
        Ok(location) => reply.with(header::LOCATION, location),
        Err(_) => reply,
    }
}

pub(crate) async fn create(call: &Call) -> Result<Reply, Problem> {
    let wanted: CreateKey = body::json(call)?;
    let expires_at = match (wanted.expires_at, wanted.expires_in_s) {
        (Some(_), Some(_)) => {
            return Err(Problem::bad_request("expires_at or expires_in_s, not both"));
        }
        (Some(at), None) => Some(at),
        (None, Some(seconds)) => Some(call.app.now().after(Duration::from_secs(seconds))),
        (None, None) => None,
    };
    let new = NewKey {
        name: wanted.name,
        team: None,
        grant: Grant {
            role: wanted.role,
            scopes: wanted.scopes,
        },
        expires_at,
    };
    Ok(made(call.app.create_key(call.principal()?, new).await?))
}

pub(crate) async fn list(call: &Call) -> Result<Reply, Problem> {
    let mut limit = PAGE;
    let mut after = None;
    for (name, value) in body::query(call, &["limit", "cursor"])? {
        match name.as_str() {
            "limit" => limit = page_limit(&value)?,
            _ => after = Some(cursor(&value)?),
        }
    }
    let keys = call.app.keys(call.principal()?, None, after, limit).await?;
    let is_full = u32::try_from(keys.len()).is_ok_and(|found| found == limit);
    let next_cursor = keys.last().filter(|_| is_full).map(|key| key.id);
    let items = keys.into_iter().map(KeyView::from).collect();
    Ok(Reply::json(StatusCode::OK, &KeyPage { items, next_cursor }))
}

pub(crate) async fn revoke(call: &Call) -> Result<Reply, Problem> {
    let id: KeyId = call.segment("id").map_err(|_| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "key_not_found",
            "there is no such key",
        )
    })?;
    call.app.revoke_key(call.principal()?, id).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn create_token(call: &Call) -> Result<Reply, Problem> {
    let wanted: CreateToken = if call.body.is_empty() {
        CreateToken::default()
    } else {
        body::json(call)?
    };
    let life = Duration::from_secs(wanted.expires_in_s.unwrap_or(TOKEN_LIFE_S));
    let (principal, id) = (call.principal()?, call.segment("id")?);
    let token = call
        .app
        .create_session_token(principal, id, wanted.scopes, life);
    Ok(made(token.await?))
}
