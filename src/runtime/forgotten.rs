//! Containers of ours that podman has storage for and no record of.
//!
//! podman makes a container's storage before its record, and a podman that is killed in between never looks at it again: it is
//! no container for it, and carries no labels. It can be listed on demand and removed like a container. But so can the storage
//! of one that is just being made: so it is removed only when it was seen for longer than making a sandbox may take.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::spec;
use crate::model::sandbox::SandboxId;

/// What podman calls the state of storage without a record.
const STORAGE: &str = "storage";

/// Something that podman has storage for.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Stored {
    pub(super) id: SandboxId,
    /// Go writes an empty list as `null` too.
    names: Option<Vec<String>>,
    #[serde(default)]
    state: String,
}

impl Stored {
    /// Whether it is a sandbox's, by its name, and podman has no record of it.
    pub(super) fn is_forgotten(&self) -> bool {
        let mut names = self.names.iter().flatten();
        self.state == STORAGE && names.any(|name| spec::is_container_name(name))
    }
}

/// Since when what is forgotten was seen.
#[derive(Debug, Default)]
pub(super) struct Forgotten(Mutex<HashMap<SandboxId, Instant>>);

impl Forgotten {
    /// Takes what is forgotten now; what has been for so long.
    pub(super) fn due(&self, found: Vec<SandboxId>, patience: Duration) -> Vec<SandboxId> {
        let now = Instant::now();
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::mem::take(&mut *since);
        *since = found
            .into_iter()
            .map(|id| {
                let first = seen.get(&id).copied().unwrap_or(now);
                (id, first)
            })
            .collect();
        let due = since
            .iter()
            .filter(|(_, first)| now.duration_since(**first) >= patience);
        due.map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(name: &str, state: &str) -> Stored {
        let value = serde_json::json!({"Id": "a".repeat(64), "Names": [name], "State": state});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_storage_of_sandboxes_without_a_record_is_forgotten() {
        let name = "casemate-ses_00000000000000000000000000";
        assert!(stored(name, "storage").is_forgotten());
        assert!(!stored(name, "created").is_forgotten());
        assert!(!stored("casemate-nonsense", "storage").is_forgotten());
        assert!(!stored("their-build", "storage").is_forgotten());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_just_being_made_is_left_alone() {
        let forgotten = Forgotten::default();
        let (one, two) = ("a".repeat(64), "b".repeat(64));
        let id = |text: &String| SandboxId::try_from(text.clone()).unwrap();
        let patience = Duration::from_secs(30);
        assert!(forgotten.due(vec![id(&one)], patience).is_empty());
        tokio::time::advance(patience).await;
        assert_eq!(
            forgotten.due(vec![id(&one), id(&two)], patience),
            [id(&one)]
        );
        // One that got its record meanwhile begins anew.
        assert!(forgotten.due(vec![], patience).is_empty());
        tokio::time::advance(patience).await;
        assert!(forgotten.due(vec![id(&two)], patience).is_empty());
    }
}
