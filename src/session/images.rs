//! The images that were made of sessions: which of them may go, and that none goes while it is being made.
//!
//! Such an image goes when no team's template as it is now, no template of a file and no session that lives names it, at two
//! looks one after the other: whoever read a template before it changed has admitted its session by then. After a start one
//! look is enough, as nobody was being served. An image that is made has its place here before podman hears of it, until it
//! stands in the store or is given up; so after a crash the next daemon finds what was left. podman keeps an image that a
//! container is made of, and an operator keeps one by giving it a name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::SessionError;
use super::manager::Sessions;
use crate::base::chain::Chain;
use crate::model::event::AuditEvent;
use crate::model::image::ImageDigest;
use crate::model::principal::Principal;

/// Most images that go at one look. Each is a call of podman's; the rest is found again.
const MAX_REMOVED: usize = 32;

/// After how many looks one is tried again that podman kept: an hour, at two looks a minute. Each try is a record.
const LOOKS_AT_HELD: u64 = 120;

/// What is known of images between two looks.
#[derive(Default)]
pub(super) struct Images {
    /// Images that are being made, and how often.
    making: Mutex<BTreeMap<ImageDigest, usize>>,
    /// Held while an image is removed, and for a moment before one is made: so that none is found missing after it was
    /// found there.
    door: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// How often was looked.
    looks: u64,
    /// Those that nobody used at the last look.
    idle: BTreeSet<ImageDigest>,
    /// Those that podman kept for a container that is none of a session's.
    held: BTreeSet<ImageDigest>,
}

impl Images {
    fn making(&self) -> MutexGuard<'_, BTreeMap<ImageDigest, usize>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of those that are idle now, those that may go.
    fn choose(&self, idle: BTreeSet<ImageDigest>) -> Vec<ImageDigest> {
        let mut seen = self.seen();
        let is_first = seen.looks == 0;
        seen.looks += 1;
        if seen.looks.is_multiple_of(LOOKS_AT_HELD) {
            seen.held.clear();
        }
        let before = std::mem::replace(&mut seen.idle, idle);
        let mut may_go = seen.idle.clone();
        may_go.retain(|image| (is_first || before.contains(image)) && !seen.held.contains(image));
        may_go.into_iter().take(MAX_REMOVED).collect()
    }
}

/// An image that is being made, and is not removed for as long as this is held.
pub struct Making {
    images: Arc<Images>,
    image: ImageDigest,
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut making = self.images.making();
        if let Some(count) = making.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                making.remove(&self.image);
            }
        }
    }
}

impl Sessions {
    /// Says that an image is about to be made. Waits while one is being removed.
    pub async fn making(&self, image: ImageDigest) -> Making {
        let _door = self.images.door.lock().await;
        *self.images.making().entry(image).or_default() += 1;
        Making {
            images: Arc::clone(&self.images),
            image,
        }
    }

    /// Removes images that were made of sessions and that nobody means any more. What cannot be looked at, recorded or removed
    /// now is found again.
    pub async fn sweep_images(&self) {
        match self.try_sweep_images().await {
            Ok(0) => {}
            Ok(removed) => info!(removed, "removed images of snapshots that nobody used"),
            Err(error) => {
                warn!(error = %Chain(&error), "cannot look for images of snapshots that nobody uses");
            }
        }
    }

    /// The same; how many went.
    ///
    /// # Errors
    /// When the store or the runtime cannot be read, or a removal cannot be recorded or done.
    pub async fn try_sweep_images(&self) -> Result<usize, SessionError> {
        let house = &self.house;
        let ours = house.store.installation().to_string();
        let mut found = house
            .runtime
            .images()
            .await
            .map_err(SessionError::Runtime)?;
        found.retain(|image| image.snapshot_of.as_ref() == Some(&ours) && image.names.is_empty());
        let used = self.images_in_use().await?;
        let idle: BTreeSet<_> = found
            .into_iter()
            .map(|image| image.digest)
            .filter(|image| !used.contains(image))
            .collect();
        let mut removed = 0;
        for image in self.images.choose(idle) {
            removed += usize::from(self.remove_image(image).await?);
        }
        Ok(removed)
    }

    /// Removes an image unless it is used, or made, by now.
    async fn remove_image(&self, image: ImageDigest) -> Result<bool, SessionError> {
        let _door = self.images.door.lock().await;
        if self.images.making().contains_key(&image) || self.images_in_use().await?.contains(&image)
        {
            return Ok(false);
        }
        let house = &self.house;
        let event = AuditEvent::ImageRemove { image };
        let fact = house.audit.fact(&Principal::Daemon, None, event).await;
        fact.map_err(SessionError::Audit)?;
        let removed = house.runtime.remove_image(image).await;
        let removed = removed.map_err(SessionError::Runtime)?;
        if !removed {
            self.images.seen().held.insert(image);
        }
        Ok(removed)
    }

    async fn images_in_use(&self) -> Result<BTreeSet<ImageDigest>, SessionError> {
        let used = self.house.store.images_in_use().await;
        let mut used = used.map_err(SessionError::Store)?;
        let settings = self.settings();
        used.extend(
            settings
                .templates
                .values()
                .map(|template| template.spec.image),
        );
        Ok(used)
    }
}
