//! Files of the sandbox, one file for each kind of request.
//!
//! The guest's thread never waits for a file: all work on them is done in short jobs on a few threads ([`actor`]), each
//! with the rights of the user who asked and of nobody else. So no path needs to be judged: what a path leads to, the user
//! could reach anyway, and the kernel says where that ends. A transfer that nobody reads, or that brings nothing, holds no
//! thread.

mod actor;
mod attributes;
mod carry;
mod change;
mod channel;
mod copy;
mod entry;
mod error;
mod events;
mod flow;
mod layer;
mod list;
mod pack;
mod place;
mod read;
mod relocate;
mod remove;
mod tape;
mod temporary;
mod tree;
mod unpack;
mod unpack_file;
mod watch;
mod write;

pub(crate) use actor::{THREAD_KEEP_ALIVE, THREAD_STACK_BYTES, THREADS};
pub(crate) use change::{link, mkdir, set};
pub(crate) use channel::{Channels, Offered};
pub(crate) use entry::stat;
pub(crate) use layer::layer;
pub(crate) use list::list;
pub(crate) use pack::pack;
pub(crate) use read::read;
pub(crate) use relocate::relocate;
pub(crate) use remove::remove;
pub(crate) use unpack::unpack;
pub(crate) use watch::watch;
pub(crate) use write::write;
