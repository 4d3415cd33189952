//! Requests for what E2B's clients find in a sandbox: whose it is, who asks, and which route answers.

use std::collections::BTreeMap;

use http::request::Parts;

use super::signed::Signed;
use super::{ACCESS_TOKEN, TRAFFIC_TOKEN};
use crate::api::conversation::Conversation;
use crate::api::endpoint::Arrived;
use crate::api::error::Problem;
use crate::api::reply::Reply;
use crate::api::route::{Access, Dialect};
use crate::api::server::{Answering, Server, method_not_allowed, no_such_route};
use crate::app::{AppError, Authenticated, Opens};
use crate::base::id::{RequestId, SessionId};
use crate::model::principal::Principal;

/// The path of signed addresses.
const FILES: &str = "/files";

impl Server {
    /// Whether a path is one of the control routes.
    pub(in crate::api) fn is_control(&self, path: &str) -> bool {
        let found = self.table.at(path);
        found.is_ok_and(|found| {
            found
                .value
                .iter()
                .any(|route| route.dialect == Dialect::E2b)
        })
    }

    /// Whether a request says by its token or its signature alone which sandbox it is for.
    pub(in crate::api) fn says_which_sandbox(&self, head: &Parts) -> bool {
        if head.headers.contains_key(ACCESS_TOKEN) {
            return self.sandboxes.at(head.uri.path()).is_ok();
        }
        head.uri.path() == FILES && Signed::read(&head.method, head.uri.query()).is_some()
    }

    /// Answers a request for what is inside a sandbox; without one, for that whose token it was signed with.
    pub(in crate::api) async fn inside(
        &self,
        conversation: &Conversation,
        request_id: RequestId,
        session: Option<SessionId>,
        mut arrived: Arrived,
        answering: &mut Answering,
    ) -> Result<Reply, Problem> {
        answering.dialect = Dialect::Sandbox;
        answering.session = session;
        let found = self.sandboxes.at(arrived.head.uri.path());
        let found = found.map_err(|_| no_such_route())?;
        let takes = |route: &&crate::api::route::Route| route.takes(&arrived.head.method);
        let route = found.value.iter().find(takes);
        let route = route.ok_or_else(|| method_not_allowed(found.value))?;
        answering.dialect = route.dialect;
        debug_assert_eq!(route.access, Access::Sandbox);
        let asked = self.admit_inside(conversation, session, &mut arrived.head, answering);
        let asked = asked.await?;
        conversation.know();
        self.admit_principal(&asked)?;
        let signed_for = match &asked.principal {
            Principal::Client(client) => client.session,
            _ => None,
        };
        let session = session.or(signed_for);
        let session = session.ok_or_else(Problem::unauthenticated)?;
        let path = BTreeMap::from([("id".to_owned(), session.to_string())]);
        self.call(conversation, request_id, route, path, arrived, Some(asked))
            .await
    }

    /// Who asks: by the sandbox's token, by what was signed with it, or by a key of ours.
    async fn admit_inside(
        &self,
        conversation: &Conversation,
        session: Option<SessionId>,
        head: &mut Parts,
        answering: &Answering,
    ) -> Result<Authenticated, Problem> {
        let (peer, crowded) = (conversation.ends.peer, answering.crowded);
        let app = &self.app;
        head.headers.remove(TRAFFIC_TOKEN);
        if let Some(token) = head.headers.remove(ACCESS_TOKEN) {
            let known = async { app.by_access_token(token.to_str().unwrap_or(""), Opens::Inside) };
            return self.vouch(peer, crowded, known).await;
        }
        if head.uri.path() == FILES
            && let Some(signed) = Signed::read(&head.method, head.uri.query())
        {
            let known = async {
                if signed.is_over(app.now()) {
                    return Err(AppError::Unauthenticated);
                }
                let claimed = signed.digest().ok_or(AppError::Unauthenticated)?;
                app.by_signature(session, |token| signed.text(token), &claimed)
            };
            return self.vouch(peer, crowded, known).await;
        }
        if let Some(key) = head.headers.get("x-api-key").cloned() {
            let known = app.authenticate(key.to_str().unwrap_or(""));
            return self.vouch(peer, crowded, known).await;
        }
        self.vouch_for_nobody(peer, crowded).await
    }
}
