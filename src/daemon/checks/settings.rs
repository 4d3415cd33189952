//! What the settings say.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::super::start::credentials;
use super::{Check, Found, Look, Scene};
use crate::api::tls::{Material, Validity};
use crate::base::clock::Timestamp;
use crate::model::settings::{ArgvRecord, Mode};
use crate::model::web::{HostPattern, OriginPattern};

/// Where everything here counts.
pub(super) const MODE: Check = Check {
    name: "mode",
    rule: "casemated runs in production mode, where a check that fails keeps it from starting.",
    mend: "set mode: production when this machine is to serve anybody",
    is_advice: true,
    look: Look::Here(|scene| {
        let mode = scene.config().mode;
        let said = mode.as_str().to_owned();
        if mode == Mode::Production {
            Ok(said)
        } else {
            Err(said)
        }
    }),
};

/// Keys are not sent in the clear.
pub(super) const LISTEN: Check = Check {
    name: "listen",
    rule: "Without TLS the HTTP door is open on loopback only: keys do not cross a network in the clear.",
    mend: "set http.tls, or set http.listen to 127.0.0.1 or [::1] and put a TLS proxy in front",
    is_advice: false,
    look: Look::Here(|scene| {
        let http = &scene.config().http;
        let listen = http.listen;
        if http.tls.is_some() {
            Ok(format!("{listen}, with TLS"))
        } else if listen.ip().is_loopback() {
            Ok(listen.to_string())
        } else {
            Err(listen.to_string())
        }
    }),
};

/// The files, not what the door shows: they are what the next reload or start takes.
pub(super) const CERTIFICATE: Check = Check {
    name: "certificate",
    rule: "The certificate of http.tls can be read, belongs to its key, which nobody else reads, and is valid now.",
    mend: "renew it, or put the key back that belongs to it, chmod 0600 that, and casemate admin reload",
    is_advice: false,
    look: Look::Here(|scene| certificate(scene, Validity::holds)),
};

/// What a name service says of others is no reason to answer.
pub(super) const HOSTS: Check = Check {
    name: "hosts",
    rule: "The HTTP door answers to its own names only: a page whose name leads here (DNS rebinding) gets nothing.",
    mend: "take * out of http.hosts and write the names that clients use",
    is_advice: false,
    look: Look::Here(|scene| {
        let config = scene.config();
        let hosts = &config.http.hosts;
        listed(hosts, |host| *host != HostPattern::Any)
    }),
};

/// Whoever is on the way changes a page that came in the clear.
pub(super) const ORIGINS: Check = Check {
    name: "origins",
    rule: "Pages that may call the HTTP door come by https, or from the machine that the browser runs on, and each is named.",
    mend: "take * and http:// (but that of localhost) out of http.origins and write https:// origins",
    is_advice: false,
    look: Look::Here(|scene| {
        let config = scene.config();
        let is_good = |origin: &OriginPattern| match origin {
            OriginPattern::Any => false,
            OriginPattern::One(one) => one.is_https || one.host.is_loopback(),
        };
        listed(&config.http.origins, is_good)
    }),
};

fn listed<T: Display>(entries: &[T], is_good: impl Fn(&T) -> bool) -> Found {
    let all = |entries: Vec<&T>| {
        let entries: Vec<_> = entries.into_iter().map(ToString::to_string).collect();
        entries.join(", ")
    };
    let bad: Vec<_> = entries.iter().filter(|entry| !is_good(entry)).collect();
    if !bad.is_empty() {
        return Err(all(bad));
    }
    if entries.is_empty() {
        return Ok("none".to_owned());
    }
    Ok(all(entries.iter().collect()))
}

/// Whoever notices on the last day is too late.
pub(super) const CERTIFICATE_LEFT: Check = Check {
    name: "certificate_left",
    rule: "The certificate of http.tls is valid for 14 more days.",
    mend: "renew it, put it where the old one is, and casemate admin reload",
    is_advice: true,
    look: Look::Here(|scene| certificate(scene, |validity, now| validity.until.since(now) >= LEFT)),
};

/// Time in which a certificate is renewed.
const LEFT: Duration = Duration::from_secs(14 * 24 * 3600);

fn certificate(scene: &Scene, is_good: fn(Validity, Timestamp) -> bool) -> Found {
    let config = scene.config();
    let Some(tls) = &config.http.tls else {
        return Ok("there is none".to_owned());
    };
    let read = Material::read(tls, credentials().as_deref());
    let validity = read.map_err(|error| error.to_string())?.validity;
    let said = format!("valid from {} to {}", validity.from, validity.until);
    if is_good(validity, scene.clock.now()) {
        Ok(said)
    } else {
        Err(said)
    }
}

/// gVisor keeps root in, and one layer less does.
pub(super) const ROOT_IN_TEMPLATES: Check = Check {
    name: "root_in_templates",
    rule: "No template lets programs be root in their sandbox: gVisor keeps root in too, but by one wall less.",
    mend: "take allow_root out of the templates that can do without, and out of sessions.team_templates",
    is_advice: true,
    look: Look::Here(|scene| {
        let config = scene.config();
        let rooted = config.templates.iter().filter(|(_, spec)| spec.allow_root);
        let mut said: Vec<_> = rooted.map(|(name, _)| name.to_string()).collect();
        if config.sessions.team_templates.allow_root {
            said.push("those of teams".to_owned());
        }
        if said.is_empty() {
            Ok("none".to_owned())
        } else {
            Err(said.join(", "))
        }
    }),
};

/// Clients put secrets there.
pub(super) const ARGV_IN_RECORD: Check = Check {
    name: "argv_in_record",
    rule: "Command lines are in the record by their digest, not in the clear: clients put secrets there.",
    mend: "set audit.argv to digest, unless command lines have to be read",
    is_advice: true,
    look: Look::Here(|scene| {
        let argv = scene.config().audit.argv;
        let said = argv.as_str().to_owned();
        if argv == ArgvRecord::Clear {
            Err(said)
        } else {
            Ok(said)
        }
    }),
};

/// By themselves.
pub(super) const BACKUPS: Check = Check {
    name: "backups",
    rule: "Backups are made by themselves.",
    mend: "set backup.every_s or backup.at",
    is_advice: false,
    look: Look::Here(|scene| {
        let config = scene.config();
        scheduled(config.backup.every, config.backup.at)
    }),
};

fn scheduled(every: Option<Duration>, at: Option<u32>) -> Found {
    match (every, at) {
        (_, Some(at)) => Ok(format!("each day at {:02}:{:02} UTC", at / 60, at % 60)),
        (Some(every), None) => Ok(format!("every {} s", every.as_secs())),
        (None, None) => Err("none by themselves".to_owned()),
    }
}

/// A disk that dies takes both.
pub(super) const BACKUP_DISK: Check = Check {
    name: "backup_disk",
    rule: "Backups are on another disk than the state: one that dies does not take both.",
    mend: "set backup.directory to a directory of another disk, or copy backups away",
    is_advice: true,
    look: Look::Here(|scene| {
        let config = scene.config();
        let device = |path: &Path| {
            // Of what is not there yet, where it will be.
            let found = path.ancestors().find_map(|path| path.metadata().ok());
            found.map(|found| found.dev())
        };
        apart(device(&config.state_dir), device(&config.backup.directory))
    }),
};

fn apart(state: Option<u64>, backups: Option<u64>) -> Found {
    if state.is_some() && state != backups {
        Ok("on another".to_owned())
    } else {
        Err("on the same".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_made_by_themselves_or_not() {
        assert_eq!(
            scheduled(None, Some(210)),
            Ok("each day at 03:30 UTC".to_owned())
        );
        assert!(scheduled(Some(Duration::from_secs(1)), None).is_ok());
        assert!(scheduled(None, None).is_err());
        assert!(apart(Some(1), Some(2)).is_ok());
        assert!(apart(Some(1), Some(1)).is_err());
    }
}
