//! Whether this machine and its settings are fit, for an operator who asks.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{App, AppError};
use crate::model::check::Examined;
use crate::model::principal::Principal;
use crate::policy::{Action, Resource};

/// Makes every check, one after the other. Only the daemon knows what they need.
pub type Examine = Arc<dyn Fn() -> BoxFuture<'static, Vec<Examined>> + Send + Sync>;

impl App {
    /// Makes every hardening check now.
    ///
    /// # Errors
    /// [`AppError::Denied`].
    pub async fn examine(&self, principal: &Principal) -> Result<Vec<Examined>, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        Ok((self.0.examine)().await)
    }
}
