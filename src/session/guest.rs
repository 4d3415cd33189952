//! What is asked of a session's guest, beside running a program to its end.
//!
//! Goes straight over the link, without the session's task: a transfer of many GiB holds nobody up. What a guest says no
//! to is a [`SessionError::Refused`] with a code that we know, whatever it said.

use std::sync::Arc;
use std::time::Duration;

use casemate_link::ProcessSpec;
use casemate_link::daemon::{Link, LinkError, Process};
use casemate_link::refusal::code;

use super::SessionError;
use super::handle::SessionHandle;
use crate::model::session::Session;

/// How long a call waits for a link that is being established again.
const LINK_PATIENCE: Duration = Duration::from_secs(5);

/// Code of a refusal that no guest of ours gives.
const MADE_UP: &str = "guest_refused";

/// The guest of a session that is ready.
#[derive(Clone)]
pub struct Guest {
    link: Link,
    session: Arc<Session>,
}

impl SessionHandle {
    /// The session's guest; waits a moment while its link is being established.
    ///
    /// # Errors
    /// [`SessionError::NotReady`].
    pub async fn guest(&self) -> Result<Guest, SessionError> {
        let link = self.link(LINK_PATIENCE).await?;
        let session = self.snapshot();
        Ok(Guest { link, session })
    }
}

impl Guest {
    /// Starts a process with the session's environment, below its own, in the session's directory and as its template's user,
    /// unless it has one.
    ///
    /// # Errors
    /// As [`Link::start`].
    pub async fn start(&self, mut spec: ProcessSpec) -> Result<Process, LinkError> {
        let given = &self.session.spec;
        for (name, value) in &given.env {
            if !spec.env.contains_key(name) {
                spec.env.insert(name.clone(), value.clone());
            }
        }
        spec.cwd = spec.cwd.or_else(|| given.workdir.clone());
        spec.user = spec.user.or_else(|| given.setup.user.clone());
        self.link.start(spec).await
    }

    /// The link, for everything else.
    #[must_use]
    pub const fn link(&self) -> &Link {
        &self.link
    }
}

/// What became of a call, by what the caller does next.
#[must_use]
pub fn failed(error: LinkError) -> SessionError {
    match error {
        LinkError::Refused { code, message } => SessionError::Refused {
            code: code::ALL
                .iter()
                .find(|known| **known == code)
                .unwrap_or(&MADE_UP),
            message,
        },
        other => SessionError::GuestGone(other),
    }
}
