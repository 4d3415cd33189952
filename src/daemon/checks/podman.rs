//! What sandboxes run on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Check, Facts, Found, Look, Scene};
use crate::base::chain::Chain;
use crate::host::users;
use crate::runtime::{RuntimeError, RuntimeFacts};

/// The oldest podman without a known hole that matters here.
const KNOWN_GOOD_PODMAN: (u32, u32, u32) = (5, 7, 1);

/// The oldest conmon that is not known to fail with gVisor.
const KNOWN_GOOD_CONMON: (u32, u32, u32) = (2, 1, 6);

/// Rootless, ours, gVisor.
pub(super) const RUNTIME: Check = Check {
    name: "runtime",
    rule: "podman answers, is rootless with 65536 sub-uids of its own, and its one OCI runtime is Casemate's wrapper of gVisor's runsc, not older than 20240729; nobody else may write the guest.",
    mend: "start casemate-podman.service as the package has it; what was found says more",
    is_advice: false,
    look: Look::Asked(|scene| {
        Box::pin(async {
            let facts = probed(scene, &scene.facts).await?;
            Ok(format!(
                "podman {}, {}",
                facts.podman_version, facts.runtime_version
            ))
        })
    }),
};

/// Not one with a known hole.
pub(super) const PODMAN_VERSION: Check = Check {
    name: "podman_version",
    rule: "podman is 5.7.1 or newer: an older one, unless its packager mended it, makes directories of its user's for an image whose working directory is a link (CVE-2026-55686). Casemate has every sandbox begin in /, and reads that back.",
    mend: "install podman 5.7.1 or newer, or see in its package's changelog that it is mended",
    is_advice: true,
    look: Look::Asked(|scene| {
        Box::pin(async { podman_version(&probed(scene, &scene.facts).await?.podman_version) })
    }),
};

/// Not one that is known to break.
pub(super) const CONMON_VERSION: Check = Check {
    name: "conmon_version",
    rule: "conmon is 2.1.6 or newer: older ones are known to fail with gVisor's sandboxes that run detached, as all of ours do.",
    mend: "install conmon 2.1.6 or newer and restart casemate-podman.service",
    is_advice: true,
    look: Look::Asked(|scene| {
        Box::pin(async { conmon_version(&probed(scene, &scene.facts).await?.conmon_version) })
    }),
};

fn podman_version(found: &str) -> Found {
    at_least(KNOWN_GOOD_PODMAN, found)
}

fn conmon_version(found: &str) -> Found {
    let numbers = found.strip_prefix("conmon version ").unwrap_or(found);
    let numbers = numbers.split(',').next().unwrap_or_default();
    at_least(KNOWN_GOOD_CONMON, numbers)
}

fn at_least(known_good: (u32, u32, u32), found: &str) -> Found {
    // A packager's addition, or that of a version before its release, stands behind the numbers.
    let numbers = found
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next();
    let mut parts = numbers
        .unwrap_or_default()
        .split('.')
        .map(str::parse::<u32>);
    let mut part = || parts.next().and_then(Result::ok);
    match (part(), part(), part()) {
        (Some(major), Some(minor), patch)
            if (major, minor, patch.unwrap_or_default()) >= known_good =>
        {
            Ok(found.to_owned())
        }
        (Some(_), ..) => Err(found.to_owned()),
        (None, ..) => Err(format!("{found:?} is no version")),
    }
}

/// No other user's sandboxes have the same ids on the host.
pub(super) const SUB_IDS: Check = Check {
    name: "sub_ids",
    rule: "The sub-uids and sub-gids of podman's user are no other user's (/etc/subuid, /etc/subgid).",
    mend: "give podman's user ranges of its own: usermod --add-subuids and --add-subgids, then podman system migrate",
    is_advice: false,
    look: Look::Here(|scene| {
        let socket = &scene.config().runtime.socket;
        let found = socket
            .metadata()
            .map_err(|error| format!("{}: {error}", socket.display()))?;
        let name = users::user_name(found.uid());
        let mut said = Vec::new();
        for file in ["/etc/subuid", "/etc/subgid"] {
            let text =
                fs::read_to_string(Path::new(file)).map_err(|error| format!("{file}: {error}"))?;
            said.push(ranges(file, &text, &name, found.uid())?);
        }
        Ok(said.join(", "))
    }),
};

/// By the kernel, from outside.
pub(super) const LIMITS: Check = Check {
    name: "limits",
    rule: "The kernel bounds memory, processors and processes of each sandbox by a control group of its own.",
    mend: "boot with cgroup v2, delegate cpu, memory and pids to podman's unit (Delegate=yes), and let it write its group's directory to casemate.cgroup in its XDG_RUNTIME_DIR",
    is_advice: false,
    look: Look::Asked(|scene| Box::pin(async { limits(&probed(scene, &scene.facts).await?) })),
};

fn limits(facts: &RuntimeFacts) -> Found {
    if facts.unenforced_limits.is_empty() {
        Ok("cpu, memory and pids are enforced".to_owned())
    } else {
        Err(format!(
            "not enforced: {}",
            facts.unenforced_limits.join(", ")
        ))
    }
}

/// There, by their digests.
pub(super) const IMAGES: Check = Check {
    name: "images",
    rule: "Every template names its image by digest, and podman has it.",
    mend: "load it (casemate admin image import ARCHIVE) or take the template out",
    is_advice: false,
    look: Look::Asked(|scene| {
        Box::pin(async {
            let images = scene
                .runtime
                .images()
                .await
                .map_err(|error| Chain(&error).to_string())?;
            let config = scene.config();
            let missing: Vec<_> = config
                .templates
                .iter()
                .filter(|(_, spec)| images.iter().all(|image| image.digest != spec.image))
                .map(|(name, spec)| format!("{name} needs {}", spec.image))
                .collect();
            if missing.is_empty() {
                Ok(format!(
                    "{} templates, {} images",
                    config.templates.len(),
                    images.len()
                ))
            } else {
                Err(missing.join(", "))
            }
        })
    }),
};

/// Where they can be had.
pub(super) const VOLUMES: Check = Check {
    name: "volumes",
    rule: "Volumes can be mounted (fuse2fs, /dev/fuse).",
    mend: "install fuse2fs and let podman's user open /dev/fuse; what was found says more",
    is_advice: true,
    look: Look::Asked(|scene| {
        Box::pin(async {
            probed(scene, &scene.facts)
                .await?
                .volumes_problem
                .map_or_else(|| Ok("they can".to_owned()), Err)
        })
    }),
};

/// Asks podman, once in a look.
pub(super) async fn probed(scene: &Scene, facts: &Facts) -> Result<RuntimeFacts, String> {
    let ask = async || {
        scene.runtime.probe().await.map_err(|error| match error {
            RuntimeError::Unfit { what, mend } => format!("{what}; {mend}"),
            error => Chain(&error).to_string(),
        })
    };
    facts.get_or_init(ask).await.clone()
}

/// The ranges of one user in a file like subuid(5), if nobody else has part of them.
fn ranges(file: &str, text: &str, name: &str, uid: u32) -> Found {
    let own_number = uid.to_string();
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut fields = line.trim().split(':');
        let (Some(whose), Some(start), Some(count)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (Ok(start), Ok(count)) = (start.parse::<u64>(), count.parse::<u64>()) else {
            return Err(format!("{file}: cannot be read: {line}"));
        };
        let range = start..start.saturating_add(count);
        if whose == name || whose == own_number {
            own.push(range);
        } else {
            others.push((whose, range));
        }
    }
    if own.is_empty() {
        return Err(format!("{file} has none of {name}"));
    }
    for range in &own {
        if let Some((whose, _)) = others
            .iter()
            .find(|(_, other)| other.start < range.end && range.start < other.end)
        {
            return Err(format!("{file}: {name} and {whose} share {}", range.start));
        }
        if range.contains(&0) {
            return Err(format!("{file}: {name} has root's"));
        }
    }
    let said: Vec<_> = own
        .iter()
        .map(|range| format!("{}-{}", range.start, range.end.saturating_sub(1)))
        .collect();
    Ok(format!("{file} {}", said.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_podman_with_a_known_hole_fails() {
        for good in ["5.7.1", "5.7.10-rhel", "5.8.0-dev", "5.8", "6.0.0"] {
            assert_eq!(podman_version(good), Ok(good.to_owned()));
        }
        for bad in ["4.3.1", "5.7.0", "5.6.9", "5", "", "v5.7.1", "x"] {
            assert!(podman_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_conmon_that_is_known_to_fail_does_so_here() {
        for good in [
            "conmon version 2.1.6, commit: unknown",
            "conmon version 2.1.13",
            "2.2.0",
        ] {
            assert!(conmon_version(good).is_ok(), "{good}");
        }
        for bad in [
            "conmon version 2.1.5, commit: x",
            "conmon version 2.0.29",
            "",
            "conmon",
        ] {
            assert!(conmon_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_that_another_has_fail() {
        let own = "casemate-sandbox:100000:65536\n";
        let good = [
            own.to_owned(),
            format!("# none\nother:165536:65536\n{own}root:1:99999"),
            "7:100000:65536".to_owned(),
        ];
        for text in &good {
            assert_eq!(
                ranges("f", text, "casemate-sandbox", 7),
                Ok("f 100000-165535".to_owned()),
                "{text}"
            );
        }
        let bad = [
            String::new(),
            "other:100000:65536".to_owned(),
            format!("{own}other:165535:1"),
            format!("other:1:100000\n{own}"),
            format!("{own}other:110000:x"),
            format!("{own}casemate-sandbox:0:1"),
        ];
        for text in &bad {
            assert!(ranges("f", text, "casemate-sandbox", 7).is_err(), "{text}");
        }
    }
}
