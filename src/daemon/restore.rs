//! `casemated restore`: a state out of a backup, while no daemon runs on it.

use std::io::{Read, Write};
use std::path::PathBuf;

use super::start::{House, Refusal, check_images};
use super::{complain, places};
pub use crate::backup::restore::Wish;
use crate::backup::restore::{Place, Restored, identity, restore as make_state};
use crate::backup::{BackupError, images, swap};
use crate::base::chain::Chain;
use crate::base::clock::{Clock, SystemClock};
use crate::base::exit::Exit;
use crate::config::Config;
use crate::host::notify::Notifier;
use crate::host::{directory, harden, lock, realm, syscalls};
use crate::store::StoreError;
use crate::volume::VolumeFiles;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The main configuration file: it says where the state is.
    pub config: PathBuf,
    /// The backup; `-` is standard input.
    pub file: PathBuf,
    /// The file of the identity that it is encrypted for.
    pub identity: Option<PathBuf>,
    /// What is wanted.
    pub wish: Wish,
}

/// Restores a backup; how that ended.
#[must_use]
pub fn restore(options: &RestoreOptions) -> Exit {
    match restored(options) {
        Ok(()) => Exit::Ok,
        Err(refusal) => {
            complain(&refusal.text);
            refusal.exit
        }
    }
}

fn restored(options: &RestoreOptions) -> Result<(), Refusal> {
    let config = Config::load(&options.config)
        .map_err(|problems| Refusal::new(Exit::Config, problems.to_string()))?;
    harden::refuse_root()?;
    harden::restrict()?;
    directory::ensure(&config.state_dir, directory::STATE_MODE)?;
    realm::confine(&places::of_restore(
        &config,
        &options.config,
        options.wish.templates,
    ))?;
    syscalls::forbid()?;
    let _lock = lock::StateLock::acquire(&config.state_dir)?;
    let key = options.identity.as_deref().map(identity).transpose()?;
    let from: Box<dyn Read> = if options.file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        let file = std::fs::File::open(&options.file).map_err(|source| BackupError::File {
            doing: "open",
            path: options.file.clone(),
            source,
        })?;
        Box::new(file)
    };
    let place = Place {
        volumes: VolumeFiles::new(&config.volumes.dir),
        templates: Config::templates_beside(&options.config),
        state_dir: config.state_dir,
    };
    let done = make_state(from, key.as_ref(), &place, options.wish, SystemClock.now())?;
    // Nothing is left to do when nobody listens.
    let _ = std::io::stdout()
        .lock()
        .write_all(words(&done, options, &place).as_bytes());
    Ok(())
}

/// What was done, or would be.
fn words(done: &Restored, options: &RestoreOptions, place: &Place) -> String {
    let Restored {
        manifest,
        before,
        templates,
        volumes_missing,
    } = done;
    let would = if options.wish.dry_run {
        "would be "
    } else {
        ""
    };
    let mut text = format!(
        "the backup of {} from {}, made by Casemate {} (schema {}, {} bytes), is whole\n",
        manifest.installation,
        manifest.made_at,
        manifest.casemate,
        manifest.schema,
        manifest.size_bytes(),
    );
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    if let Some(before) = before {
        line(format!(
            "the state that was there {would}kept in {}",
            before.display()
        ));
    }
    line(format!(
        "the state in {} {would}restored",
        place.state_dir.display()
    ));
    if let Some(templates) = templates {
        let also = if options.wish.templates {
            format!(", and {would}put into {}", place.templates.display())
        } else {
            String::new()
        };
        line(format!(
            "the templates' files {would}kept in {}{also}",
            templates.display()
        ));
    }
    for volume in volumes_missing {
        line(format!(
            "the volume {} of the team {} ({}) has no file: put it back as {}",
            volume.name,
            volume.team,
            volume.id,
            place.volumes.path(volume.id).display(),
        ));
    }
    for (image, bytes) in manifest.images_in_it() {
        line(format!(
            "the image {image} ({bytes} bytes) is in it, and {would}loaded when casemated starts"
        ));
    }
    let inside = manifest.images_in_it().count();
    let outside = manifest.images.len().saturating_sub(inside);
    if outside > 0 {
        line(format!(
            "podman had {} images then; {outside} of them are not in the backup",
            manifest.images.len()
        ));
    }
    if options.wish.dry_run {
        line("nothing was changed".to_owned());
    } else {
        line("start casemated now: sessions whose sandboxes are gone will be ended, and sandboxes that nobody owns removed".to_owned());
    }
    text
}

impl From<BackupError> for Refusal {
    fn from(error: BackupError) -> Self {
        let exit = match &error {
            BackupError::StateThere(_)
            | BackupError::Sealed
            | BackupError::WrongIdentity
            | BackupError::BadIdentity(_) => Exit::Refused,
            BackupError::Foreign(_)
            | BackupError::NewerFormat { .. }
            | BackupError::Damaged(_)
            | BackupError::BrokenRecord(_)
            | BackupError::BadDatabase(
                StoreError::Damaged { .. } | StoreError::Newer { .. } | StoreError::NotOurs { .. },
            ) => Exit::Damaged,
            BackupError::NoRoom { .. } => Exit::CantCreate,
            BackupError::Image { .. } => Exit::Unavailable,
            _ => Exit::IoError,
        };
        Self::new(exit, Chain(&error).to_string())
    }
}

/// Loads the images that came with a restored state.
pub(super) async fn load_images(
    house: &House,
    config: &Config,
    notifier: Notifier,
) -> Result<(), Refusal> {
    if images::waiting(&config.state_dir).is_empty() {
        return Ok(());
    }
    let begins = |image| {
        let status = format!("loading the image {image} of the backup");
        notifier.starting(&status, config.runtime.load_deadline);
    };
    images::load(
        house.runtime.as_ref(),
        &house.audit,
        &config.state_dir,
        begins,
    )
    .await?;
    check_images(house.runtime.as_ref(), &config.templates, &[]).await
}

/// Takes up what a restore left that was cut short; what the state was restored from, when nobody has taken it up yet.
pub(super) fn settle(config: &Config) -> Result<Option<swap::Mark>, Refusal> {
    swap::settle(&config.state_dir, &VolumeFiles::new(&config.volumes.dir))?;
    Ok(swap::mark(&config.state_dir)?)
}
