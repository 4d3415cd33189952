//! Keys and rules at the admin socket, and what they would decide.

use std::time::Duration;

use super::protocol::{Answer, KeyLine, KeyView, Request};
use crate::app::{App, AppError, NewKey};
use crate::model::grant::Grant;
use crate::model::key::ApiKey;
use crate::model::principal::Principal;

/// Most keys of an answer, so that it fits into a frame.
const MAX_KEYS: u32 = 500;

pub(super) async fn answer(
    app: &App,
    who: &Principal,
    request: Request,
) -> Result<Answer, AppError> {
    Ok(match request {
        Request::KeyCreate {
            name,
            team,
            role,
            scopes,
            expires_in_s,
        } => {
            let new = NewKey {
                name,
                team: Some(team),
                grant: Grant { role, scopes },
                expires_at: expires_in_s.map(|s| app.now().after(Duration::from_secs(s))),
            };
            let made = app.create_key(who, new).await?;
            Answer::Key(KeyView {
                id: made.key.id,
                key: made.text.expose().clone(),
            })
        }
        Request::KeyList { team, after, limit } => {
            let keys = app.keys(who, team, after, limit.min(MAX_KEYS)).await?;
            let items = keys.into_iter().map(line).collect();
            Answer::Keys { items }
        }
        Request::KeyRevoke { id } => {
            app.revoke_key(who, id).await?;
            Answer::Done
        }
        Request::PolicyPut { name, rule } => {
            app.put_rule(who, name, rule).await?;
            Answer::Done
        }
        Request::PolicyRemove { name } => {
            app.remove_rule(who, name).await?;
            Answer::Done
        }
        Request::PolicyExplain {
            whom,
            action,
            team,
            session,
            template,
            at,
        } => {
            let resource = (team, session, template);
            Answer::Explained(app.explain(who, whom, action, resource, at).await?)
        }
        Request::EgressExplain { session, reach } => {
            Answer::Reached(app.explain_egress(who, session, reach).await?)
        }
        // The others have their own way, in `server`.
        _ => Answer::Rules {
            items: app.rules(who)?,
        },
    })
}

fn line(key: ApiKey) -> KeyLine {
    KeyLine {
        id: key.id,
        name: key.name,
        team: key.team,
        role: key.grant.role,
        scopes: key.grant.scopes,
        created_at: key.created_at,
        created_by: key.created_by,
        expires_at: key.expires_at,
        revoked_at: key.revoked.map(|(at, _)| at),
        last_used_at: key.last_used_at,
    }
}
