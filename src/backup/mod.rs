//! Floor 6: the state as one file, and back.
//!
//! ```text
//!  store -> copy of the database, checked -> manifest with sums -> tar -> zstd -> sealed for a recipient -> FILE   (keeper, archive)
//!  FILE -> staged beside the state, every sum and the database checked -> one rename -> old aside, new in place    (restore, swap)
//!  podman -> archives of images -> FILE -> archives beside the new state -> podman, at the next start             (images)
//! ```
//!
//! Invariants: a file that has a backup's name is whole; whenever a restore is cut short, what is there afterwards is the old
//! state or the new one. What is sealed in the state stays sealed in a backup.

mod archive;
pub mod images;
pub mod keeper;
pub mod manifest;
pub mod restore;
mod seal;
pub mod swap;

use std::path::{Path, PathBuf};

pub use self::keeper::{Backups, Made, Progress};
pub use self::seal::check_recipient;
use crate::audit::AuditError;
use crate::model::image::ImageDigest;
use crate::runtime::RuntimeError;
use crate::store::StoreError;

/// What of the state's directory belongs to a backup beside the database, where it is there.
const OTHER_FILES: [&str; 1] = [crate::identity::HASH_KEY_FILE];

/// Why there is no backup, or no restore, split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Another one is being made. Try again later.
    #[error("a backup is being made already; wait for it")]
    UnderWay,
    /// The record in it is not what was written. An operator decides.
    #[error(
        "the chain of its record breaks at event {0}: somebody changed it; take an older backup, or this one with --broken-record"
    )]
    BrokenRecord(i64),
    /// There is not enough room. Make some.
    #[error(
        "a backup may take {wanted} bytes at {}, where {free} are free; make room, or name another directory", directory.display()
    )]
    NoRoom {
        /// Where.
        directory: PathBuf,
        /// How many it may take.
        wanted: u64,
        /// How many there are.
        free: u64,
    },
    /// Nothing is written over.
    #[error("{} exists; name a file that does not", .0.display())]
    Exists(PathBuf),
    /// The name cannot be one of a backup.
    #[error("{} is no absolute path of a file", .0.display())]
    BadName(PathBuf),
    /// It would lie where the daemon does not write.
    #[error(
        "casemated writes backups below {} only, so not to {}: name a file there, or have another directory in backup.elsewhere", places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" and "), target.display()
    )]
    Outside {
        /// The file.
        target: PathBuf,
        /// The directories.
        places: Vec<PathBuf>,
    },
    /// The file system said no.
    #[error("{doing} {} as casemated's own user", path.display())]
    File {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// podman does not save or load an image. Try again, or without images.
    #[error("carry the image {image}")]
    Image {
        /// Which.
        image: ImageDigest,
        /// Why not.
        source: RuntimeError,
    },
    /// What podman saved would be another image where it is loaded.
    #[error(
        "podman's archive of the image {0} is of another image; make the backup without images"
    )]
    OtherImage(ImageDigest),
    /// An operator decides.
    #[error(
        "the images of templates have more than {0} bytes; raise backup.max_images_bytes, or make the backup without images"
    )]
    ImagesTooLarge(u64),
    /// The database cannot be copied, or its copy is not whole.
    #[error("copy the database")]
    Store(#[source] StoreError),
    /// It cannot be recorded, so it was not done.
    #[error("record the backup; none was made")]
    Audit(#[source] AuditError),
    /// The daemon is stopping.
    #[error("casemated is stopping; no backup was made")]
    Stopping,
    /// A defect.
    #[error("the backup came to no end: {0}")]
    Internal(String),
    /// It is something else.
    #[error("this is not a backup of Casemate: {0}")]
    Foreign(String),
    /// A newer Casemate made it.
    #[error(
        "this backup was made by Casemate {casemate} (format {format}, this one reads {}); restore it with that version",
        manifest::FORMAT
    )]
    NewerFormat {
        /// Its format.
        format: u32,
        /// Who made it.
        casemate: String,
    },
    /// It is not whole.
    #[error("this backup is damaged: {0}; take another one")]
    Damaged(String),
    /// Its database is not what it says it is.
    #[error("the database in this backup was refused")]
    BadDatabase(#[source] StoreError),
    /// It is encrypted.
    #[error(
        "this backup is encrypted; name the file of the identity that it is for: --identity FILE"
    )]
    Sealed,
    /// It is encrypted for somebody else.
    #[error("this backup is encrypted for another identity than the one given")]
    WrongIdentity,
    /// The file holds no identity.
    #[error("{} holds no age identity: a line that begins with AGE-SECRET-KEY-1 (age-keygen makes one)", .0.display())]
    BadIdentity(PathBuf),
    /// There is a state already.
    #[error(
        "there is a state in {} already; with --replace it is put aside, whole, and this one takes its place", .0.display()
    )]
    StateThere(PathBuf),
}

impl BackupError {
    fn file(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    /// A stable word for programs and for the record.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnderWay => "backup_under_way",
            Self::NoRoom { .. } => "no_room",
            Self::Image { .. } | Self::OtherImage(_) => "image",
            Self::ImagesTooLarge(_) => "images_too_large",
            Self::Exists(_) | Self::BadName(_) | Self::Outside { .. } => "bad_name",
            Self::File { .. } => "file",
            Self::Store(_) => "store",
            Self::Audit(_) => "audit",
            Self::Stopping => "stopping",
            Self::Internal(_) => "internal",
            Self::Foreign(_) | Self::NewerFormat { .. } => "foreign",
            Self::Damaged(_) | Self::BadDatabase(_) => "damaged",
            Self::Sealed | Self::WrongIdentity | Self::BadIdentity(_) => "sealed",
            Self::StateThere(_) => "state_there",
            Self::BrokenRecord(_) => "broken_record",
        }
    }
}

#[cfg(test)]
mod tests;
