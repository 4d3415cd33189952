//! Access tokens: what clients that know no keys inside a sandbox show instead. A session has two, always the same: one for all that is inside
//! it, one for its ports only.
//!
//! A token names its session under a tag that only this installation can make, so nothing keeps it; it is worth something as long as the
//! session lives, whatever becomes of the key of whoever was given it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::links::Links;
use super::{App, AppError, Authenticated, Validity};
use crate::base::id::SessionId;
use crate::model::grant::{Grant, Role, Scope};
use crate::model::principal::{Client, Principal, Proof};
use crate::policy::{Action, Resource};
use crate::session::SessionError;
use crate::vault::TAG_BYTES;

/// What access tokens begin with.
const PREFIX: &str = "cma_";

/// What a token opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// All that is inside: processes, files, ports.
    Inside,
    /// The ports only.
    Ports,
}

/// The tokens of a session.
#[derive(Clone, Debug)]
pub struct AccessTokens {
    /// For [`Opens::Inside`].
    pub inside: String,
    /// For [`Opens::Ports`].
    pub ports: String,
}

impl Links {
    /// The token of a session.
    fn access_token(&self, opens: Opens, session: SessionId) -> String {
        let mut body = body(opens, session);
        body.extend(self.tag(&body));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(body))
    }

    /// What a token opens, if we made it. Whether the session lives is for whoever asks.
    fn read_access_token(&self, text: &str) -> Option<(Opens, SessionId)> {
        let text = text.strip_prefix(PREFIX)?;
        if text.len() > 128 {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (said, tag) = bytes.split_at_checked(1 + 16)?;
        let (kind, session) = said.split_first()?;
        let opens = match kind {
            3 => Opens::Inside,
            4 => Opens::Ports,
            _ => return None,
        };
        let session = SessionId::from_bytes(*session.first_chunk::<16>()?);
        (tag.len() == TAG_BYTES && self.knows(said, tag)).then_some((opens, session))
    }
}

/// What the tag is over: shorter than any pass, so that neither can be taken for the other.
fn body(opens: Opens, session: SessionId) -> Vec<u8> {
    let mut body = vec![match opens {
        Opens::Inside => 3,
        Opens::Ports => 4,
    }];
    body.extend(session.to_bytes());
    body
}

impl App {
    /// Whether a text is spelled like an access token: then it is nobody else's business.
    #[must_use]
    pub fn is_spelled_like_an_access_token(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// The tokens of a session that the principal may use.
    ///
    /// # Errors
    /// [`AppError`].
    pub fn access_tokens(
        &self,
        principal: &Principal,
        session: &crate::model::session::Session,
    ) -> Result<AccessTokens, AppError> {
        let resource = Resource {
            session: Some(session.id),
            ..Resource::of(&session.spec.team).template(&session.spec.template)
        };
        self.allow(principal, Action::UseSession, &resource)?;
        let links = &self.0.links;
        Ok(AccessTokens {
            inside: links.access_token(Opens::Inside, session.id),
            ports: links.access_token(Opens::Ports, session.id),
        })
    }

    /// Whether a session lives.
    #[must_use]
    pub fn is_live(&self, id: SessionId) -> bool {
        self.0.sessions.handle(id).is_some()
    }

    /// Who presents what was signed with the token for all that is inside a session: of the one that is named, or of whichever `is_by`
    /// finds it to be. The ids are random, and so are the tokens: nobody finds one by asking.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`].
    pub fn by_signature(
        &self,
        session: Option<SessionId>,
        is_by: impl Fn(&str) -> bool,
    ) -> Result<Authenticated, AppError> {
        let live = match session {
            Some(session) => vec![session],
            None => self.0.sessions.live_ids(),
        };
        let links = &self.0.links;
        let signer = live
            .into_iter()
            .find(|session| is_by(&links.access_token(Opens::Inside, *session)));
        self.holder_of_access(signer.ok_or(AppError::Unauthenticated)?)
    }

    /// Who presents this access token, where it opens so much. Of a session that lives no more it tells that there is none: whoever has
    /// its token may know.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`]; [`SessionError::NotFound`].
    pub fn by_access_token(&self, text: &str, wanted: Opens) -> Result<Authenticated, AppError> {
        let read = self.0.links.read_access_token(text);
        let (_, session) = read
            .filter(|(opens, _)| *opens == wanted || *opens == Opens::Inside)
            .ok_or(AppError::Unauthenticated)?;
        self.holder_of_access(session)
    }

    /// Whoever holds the access token of a session.
    pub(super) fn holder_of_access(&self, id: SessionId) -> Result<Authenticated, AppError> {
        let handle = self.0.sessions.handle(id);
        let handle = handle.ok_or(AppError::Session(SessionError::NotFound))?;
        Ok(Authenticated {
            principal: Principal::Client(Client {
                by: Proof::Access(id),
                team: handle.snapshot().spec.team.clone(),
                grant: Grant {
                    role: Role::Member,
                    scopes: Some([Scope::SessionsRead, Scope::SessionsUse].into()),
                },
                session: Some(id),
            }),
            validity: Validity::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::Vault;

    #[test]
    fn a_token_is_of_one_session_and_one_reach_and_of_this_installation() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let links = |directory: &tempfile::TempDir| {
            Links::fleeting(&Vault::open(None, directory.path(), false).unwrap()).unwrap()
        };
        let (ours, others) = (links(&one), links(&other));
        let session = SessionId::from_bytes([7; 16]);
        let inside = ours.access_token(Opens::Inside, session);
        let ports = ours.access_token(Opens::Ports, session);
        assert_ne!(inside, ports);
        assert_eq!(
            ours.read_access_token(&inside),
            Some((Opens::Inside, session))
        );
        assert_eq!(
            ours.read_access_token(&ports),
            Some((Opens::Ports, session))
        );
        assert_eq!(others.read_access_token(&inside), None);
        for at in PREFIX.len()..inside.len() {
            let mut bent = inside.clone().into_bytes();
            bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
            let bent = String::from_utf8(bent).unwrap();
            assert_eq!(ours.read_access_token(&bent), None, "{at}");
        }
        for bad in ["", "cma_", "cma_AA", "cmk_AA", &inside[4..]] {
            assert_eq!(ours.read_access_token(bad), None, "{bad}");
        }
    }
}
