//! Floor 1: the nouns. Data and their own invariants; no I/O, no async, no clock.

pub mod check;
pub mod credential;
pub mod endpoint;
pub mod event;
pub mod grant;
pub mod image;
pub mod issuer;
pub mod key;
pub mod lease;
pub mod limit;
pub mod name;
pub mod principal;
pub mod process;
pub mod query;
pub mod record;
pub mod sandbox;
pub mod session;
pub mod settings;
pub mod setup;
pub mod signal;
pub mod template;
pub mod verify;
pub mod volume;
pub mod web;
