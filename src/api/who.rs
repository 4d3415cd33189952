//! Who asks at the HTTP door, and whether there is something left for them.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, header};

use super::browser::{self, Site};
use super::conversation::Ends;
use super::e2b::{ACCESS_TOKEN, TRAFFIC_TOKEN};
use super::error::Problem;
use super::limit::Limits;
use super::server::Server;
use crate::app::{AppError, Authenticated, Validity};
use crate::model::event::DoorLimit;

impl Server {
    /// Who asks. From an address that has nothing left (`crowded`), or failed too often, few are looked up at a time.
    pub(super) async fn authenticate(
        &self,
        ends: &Ends,
        headers: &HeaderMap,
        site: &Site,
        crowded: Option<Duration>,
    ) -> Result<Authenticated, Problem> {
        let peer = ends.peer;
        // What is sent with a request counts before what the connection began with, which browsers show for any page.
        // Ports in sessions are not reached by a certificate at all: what runs there is a page too.
        if let Some(shown) = &ends.shown
            && !presents(headers)
            && !browser::is_sent_by_another_page(headers, site)
            && let Some(principal) = shown.principal(self.app.now())
        {
            return Ok(Authenticated {
                principal: principal.clone(),
                validity: Validity::default(),
            });
        }
        let presented = credentials(headers).map(|presented| self.app.authenticate(presented));
        self.vouched(peer, crowded, presented).await
    }

    /// Whoever presented this; it is looked up with the same care.
    pub(super) async fn vouch(
        &self,
        peer: Option<IpAddr>,
        crowded: Option<Duration>,
        looked_up: impl Future<Output = Result<Authenticated, AppError>>,
    ) -> Result<Authenticated, Problem> {
        self.vouched(peer, crowded, Some(looked_up)).await
    }

    /// Whether there is something left for whoever asks; that there is not is noted.
    pub(super) fn admit_principal(&self, asked: &Authenticated) -> Result<(), Problem> {
        let admitted = self.limits.admit(&asked.principal);
        admitted.map_err(|(limit, wait)| {
            self.app.limited(&asked.principal, limit);
            Limits::refused(limit, wait)
        })
    }

    /// Nobody presents anything.
    pub(super) async fn vouch_for_nobody(
        &self,
        peer: Option<IpAddr>,
        crowded: Option<Duration>,
    ) -> Result<Authenticated, Problem> {
        let nothing = None::<std::future::Pending<Result<Authenticated, AppError>>>;
        self.vouched(peer, crowded, nothing).await
    }

    async fn vouched(
        &self,
        peer: Option<IpAddr>,
        crowded: Option<Duration>,
        looked_up: Option<impl Future<Output = Result<Authenticated, AppError>>>,
    ) -> Result<Authenticated, Problem> {
        let is_presented = looked_up.is_some();
        let distrusted = crowded.or_else(|| self.limits.distrust(peer));
        let asked = match (looked_up, distrusted) {
            (None, _) => Err(AppError::Unauthenticated),
            (Some(looked_up), None) => looked_up.await,
            (Some(looked_up), Some(wait)) => self.limits.in_turn(looked_up, wait).await?,
        };
        if !matches!(asked, Err(AppError::Unauthenticated)) {
            return Ok(asked?);
        }
        self.app.not_authenticated(peer);
        let Some(wait) = distrusted else {
            self.limits.failed(peer);
            return Ok(asked?);
        };
        if is_presented {
            Limits::hold_back().await;
        }
        Err(Limits::refused(DoorLimit::Address, wait))
    }

    /// An address that nobody is known by has nothing left: that is noted, and what it is told.
    pub(super) fn crowded(&self, peer: Option<IpAddr>, wait: Duration) -> Problem {
        self.app.crowded(peer, DoorLimit::Address);
        Limits::refused(DoorLimit::Address, wait)
    }
}

/// Whether anything is presented, be it right or wrong.
pub(super) fn presents(headers: &HeaderMap) -> bool {
    headers.contains_key(header::AUTHORIZATION)
        || headers.contains_key("x-api-key")
        || headers.contains_key(ACCESS_TOKEN)
        || headers.contains_key(TRAFFIC_TOKEN)
}

/// The key in `Authorization: Bearer` or `X-API-Key`. Both at once is no credential at all: which
/// of them counts must not be a matter of taste.
fn credentials(headers: &HeaderMap) -> Option<&str> {
    let mut bearer = headers.get_all(header::AUTHORIZATION).iter();
    let mut key = headers.get_all("x-api-key").iter();
    match (bearer.next(), bearer.next(), key.next(), key.next()) {
        (Some(value), None, None, None) => {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        }
        (None, None, Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| {
                (
                    n.parse::<header::HeaderName>().unwrap(),
                    HeaderValue::from_static(v),
                )
            })
            .collect()
    }

    #[test]
    fn one_credential_in_one_place() {
        assert_eq!(
            credentials(&headers(&[("authorization", "Bearer k")])),
            Some("k")
        );
        assert_eq!(
            credentials(&headers(&[("authorization", "bearer k")])),
            Some("k")
        );
        assert_eq!(credentials(&headers(&[("x-api-key", "k")])), Some("k"));
        assert_eq!(credentials(&headers(&[("authorization", "Basic k")])), None);
        assert_eq!(
            credentials(&headers(&[
                ("authorization", "Bearer k"),
                ("x-api-key", "k")
            ])),
            None
        );
        assert_eq!(credentials(&headers(&[])), None);
        let mut twice = headers(&[("x-api-key", "k")]);
        twice.append("x-api-key", HeaderValue::from_static("l"));
        assert_eq!(credentials(&twice), None);
    }
}
