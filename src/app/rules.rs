//! The operator's rules as they hold now: those of files and those of the store, put together when one of them changes.

use std::sync::{Arc, PoisonError, RwLock};

use super::App;
use crate::model::principal::Principal;
use crate::policy::{self, Action, NamedRule, Resource, Rules};

/// The rules that hold.
#[derive(Debug, Default)]
pub struct RuleBook(RwLock<Book>);

#[derive(Debug, Default)]
struct Book {
    files: Vec<NamedRule>,
    stored: Vec<NamedRule>,
    all: Arc<Rules>,
}

impl RuleBook {
    /// What holds now.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        let book = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&book.all)
    }

    /// Puts other rules in place of those of the files.
    pub fn set_files(&self, files: Vec<NamedRule>) {
        self.change(|book| book.files = files);
    }

    /// Puts other rules in place of those of the store.
    pub fn set_stored(&self, stored: Vec<NamedRule>) {
        self.change(|book| book.stored = stored);
    }

    fn change(&self, change: impl FnOnce(&mut Book)) {
        let mut book = self.0.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut book);
        let all = book.files.iter().chain(&book.stored).cloned();
        book.all = Arc::new(Rules::new(all.collect()));
    }
}

impl App {
    /// Whether the policy would allow it, without anybody being refused.
    pub(super) fn would_allow(&self, principal: &Principal, action: Action) -> bool {
        let rules = self.0.rules.rules();
        policy::decide(&rules, principal, action, &Resource::default(), self.now()).allowed
    }
}
