//! Where the daemon's own files are, and what else it reads: what the kernel is told that it may reach.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::host::realm::Realm;
use crate::host::{HostError, directory};
use crate::model::issuer::KeySource;

/// Makes the directories that must be there before the daemon confines itself to them.
///
/// # Errors
/// [`HostError`]: the state's or the runtime's directory is not as it must be.
pub(super) fn make(config: &Config) -> Result<(), HostError> {
    directory::ensure(&config.state_dir, directory::STATE_MODE)?;
    directory::ensure(&config.runtime_dir, directory::RUNTIME_MODE)?;
    for path in others(config) {
        if !path.starts_with(&config.state_dir) {
            // Whoever needs it says what is wrong with it, and gives it the mode that it needs.
            let _ = DirBuilder::new().mode(directory::STATE_MODE).create(path);
        }
    }
    Ok(())
}

/// The daemon's.
pub(super) fn of_daemon(config: &Config, settings: &Path) -> Realm {
    let own = [&config.state_dir, &config.runtime_dir]
        .into_iter()
        .chain(others(config))
        .chain(&config.backup.elsewhere);
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let read = beside(settings).into_iter().chain(credentials);
    let named = named_in(config).into_iter().filter_map(Path::parent);
    Realm {
        own: own.cloned().collect(),
        read: read.chain(named.map(Path::to_owned)).collect(),
        ports: vec![config.http.listen.port()],
    }
}

/// The files that the settings name: of the door's certificate, of the keys of tokens, of the operator token, and of who verifies servers. They are read again, from the same
/// directories; a reload that names one elsewhere than in `/etc` or `/usr` needs a restart.
fn named_in(config: &Config) -> Vec<&Path> {
    let tls = config.http.tls.iter().flat_map(|tls| {
        let all = [
            Some(&tls.certificate),
            Some(&tls.key),
            tls.client_ca.as_ref(),
        ];
        all.into_iter().flatten().map(Path::new)
    });
    let keys = config.jwt.iter().filter_map(|issuer| match &issuer.keys {
        KeySource::Pem(path) | KeySource::Secret(path) | KeySource::JwksFile(path) => {
            Some(path.as_path())
        }
        KeySource::JwksUrl { ca_file, .. } => ca_file.as_deref(),
        KeySource::Credential(_) => None,
    });
    let operator = config.http.operator.iter();
    let operator = operator.map(|operator| Path::new(&operator.token));
    tls.chain(keys)
        .chain(operator)
        .chain([config.sessions.egress.ca.as_path()])
        .filter(|path| path.is_absolute())
        .collect()
}

/// That of a restore: a backup and its identity may lie anywhere.
pub(super) fn of_restore(config: &Config, settings: &Path, with_templates: bool) -> Realm {
    let mut own = vec![config.state_dir.clone(), config.volumes.dir.clone()];
    if with_templates {
        own.extend(beside(settings));
    }
    Realm {
        own,
        read: vec!["/".into()],
        ports: Vec::new(),
    }
}

/// Those that may lie anywhere, and that others have made where they do.
fn others(config: &Config) -> [&PathBuf; 3] {
    [
        &config.volumes.dir,
        &config.backup.directory,
        &config.audit.retention.archive_dir,
    ]
}

/// The directory of the settings, with drop-ins and templates: they are read again, whoever replaced them meanwhile. Where the main
/// file is a link, that of the file too.
fn beside(settings: &Path) -> Vec<PathBuf> {
    let real = settings.canonicalize();
    let all = [Some(settings.to_owned()), real.ok()];
    let directory = |path: &PathBuf| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(".".into()),
        parent => parent.map(Path::to_owned),
    };
    all.iter().flatten().filter_map(directory).collect()
}
