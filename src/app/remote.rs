//! Operators from elsewhere: whoever presents the operator token speaks to the same desk as whoever comes by the admin socket.

use std::sync::{Arc, OnceLock, Weak};

use futures_util::future::BoxFuture;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

use super::{App, AppError};
use crate::model::principal::Principal;
use crate::policy::{Action, Resource};

/// Bytes on their way, in each direction.
const LINE_BYTES: usize = 64 * 1024;

/// What serves operators, one command per stream.
pub trait Desk: Send + Sync {
    /// Carries out what is said on `stream`, for this operator, until it is done, the stream ends, or `stop` is cancelled.
    fn serve(
        self: Arc<Self>,
        who: Principal,
        stream: DuplexStream,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()>;
}

/// Where the desk is, once there is one. The desk holds the app, so the app does not hold the desk.
#[derive(Default)]
pub struct RemoteDesk(OnceLock<Weak<dyn Desk>>);

impl App {
    /// Says where operators from elsewhere are sent; the first time counts.
    pub fn open_desk(&self, desk: Weak<dyn Desk>) {
        // A second desk would be the same one.
        let _ = self.0.desk.0.set(desk);
    }

    /// A line to the desk, for an operator from elsewhere. What is under way there goes on when the line is dropped, as it does for
    /// whoever leaves the admin socket.
    ///
    /// # Errors
    /// [`AppError::Denied`] for anybody else; [`AppError::Internal`] while there is no desk yet.
    pub fn administer(
        &self,
        principal: &Principal,
        stop: CancellationToken,
    ) -> Result<DuplexStream, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let desk = self.0.desk.0.get().and_then(Weak::upgrade);
        let desk = desk.ok_or_else(|| AppError::Internal("the desk is not open".to_owned()))?;
        let (ours, theirs) = tokio::io::duplex(LINE_BYTES);
        self.0
            .calls
            .spawn(desk.serve(principal.clone(), theirs, stop));
        Ok(ours)
    }
}
