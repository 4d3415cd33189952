//! What is known of one connection: who is at its ends, what its requests share, and when it has been idle or stuck for too long.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Version;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::line::{Parting, WRITE_DEADLINE};
use super::reply::Taking;
use super::route::Reply;
use super::server::locked;
use super::tls::Shown;
use crate::base::id::RequestId;

/// How long a connection may ask nothing by which nobody has shown who they are. HTTP/1 has the bound of a head besides.
const STRANGER_PATIENCE: Duration = Duration::from_secs(60);

/// Who speaks to whom, and how.
#[derive(Clone, Default)]
pub(super) struct Ends {
    /// Who is at the other end of the line.
    pub(super) peer: Option<IpAddr>,
    /// Which of our addresses it came to.
    pub(super) local: Option<IpAddr>,
    pub(super) is_tls: bool,
    /// The certificate by which the other end is known.
    pub(super) shown: Option<Shown>,
}

/// What the requests of one connection share.
#[derive(Default)]
pub(super) struct Conversation {
    pub(super) stop: CancellationToken,
    pub(super) ends: Ends,
    /// Whether somebody who is known has spoken.
    is_known: AtomicBool,
    /// When the last request came.
    pub(super) last: Mutex<Option<Instant>>,
    pub(super) parting: Arc<Parting>,
    /// What becomes of the connection after HTTP.
    pub(super) upgraded: Mutex<Option<BoxFuture<'static, ()>>>,
    /// The streamed answers of HTTP/2.
    taking: Mutex<Vec<Weak<Taking>>>,
}

impl Conversation {
    /// A conversation between these, until `stop` is cancelled.
    pub(super) fn between(ends: Ends, stop: CancellationToken) -> Self {
        Self {
            stop,
            ends,
            ..Self::default()
        }
    }

    /// Somebody who is known has spoken.
    pub(super) fn know(&self) {
        self.is_known.store(true, Ordering::Relaxed);
    }

    /// Ties a streamed answer to its connection.
    pub(super) fn bind(&self, request: RequestId, version: Version, reply: &mut Reply) {
        let body = reply.response.body_mut();
        if !body.takes_time() {
            return;
        }
        let parting = (version < Version::HTTP_11).then(|| Arc::clone(&self.parting));
        // HTTP/1 has one answer at a time, for which the line's own deadline speaks.
        let taking = (version >= Version::HTTP_2).then(|| {
            let taking = Arc::<Taking>::default();
            let mut all = locked(&self.taking);
            all.retain(|other| other.strong_count() > 0);
            all.push(Arc::downgrade(&taking));
            taking
        });
        body.bind(request, parting, taking);
    }

    /// Waits until a stranger has asked nothing for [`STRANGER_PATIENCE`].
    pub(super) async fn forgotten(&self) {
        let began = Instant::now();
        while !self.is_known.load(Ordering::Relaxed) {
            let due = locked(&self.last).unwrap_or(began) + STRANGER_PATIENCE;
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
        std::future::pending::<()>().await;
    }

    /// Waits until a client has taken nothing of some streamed answer for [`WRITE_DEADLINE`].
    pub(super) async fn stalled(&self) {
        loop {
            tokio::time::sleep(WRITE_DEADLINE / 4).await;
            let is_stalled = locked(&self.taking)
                .iter()
                .filter_map(|taking| taking.upgrade()?.stalled_since())
                .any(|since| since.elapsed() >= WRITE_DEADLINE);
            if is_stalled {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stranger_is_forgotten_and_one_who_is_known_is_not() {
        let conversation = Conversation::default();
        let began = Instant::now();
        conversation.forgotten().await;
        assert_eq!(began.elapsed(), STRANGER_PATIENCE);
        let asking = async {
            for _ in 0..3 {
                tokio::time::sleep(STRANGER_PATIENCE / 2).await;
                *locked(&conversation.last) = Some(Instant::now());
            }
        };
        tokio::join!(conversation.forgotten(), asking);
        assert_eq!(began.elapsed(), STRANGER_PATIENCE * 7 / 2);
        conversation.is_known.store(true, Ordering::Relaxed);
        let never = tokio::time::timeout(STRANGER_PATIENCE * 100, conversation.forgotten());
        assert!(never.await.is_err());
    }
}
