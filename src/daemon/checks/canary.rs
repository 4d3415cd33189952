//! What was seen in a sandbox that was made to be looked into.

use super::{Check, Found, Look, Seen};
use crate::session::canary::{Measured, NoCanary};

/// What follows of one that could not be made: nothing, as [`CANARY`] says.
const NOT_SEEN: &str = "not measured: there was no canary";

/// It can be made at all.
pub(super) const CANARY: Check = Check {
    name: "canary",
    rule: "A sandbox can be made of a template's image, and its guest answers.",
    mend: "what was found says what is in the way: podman, the image, memory or room on podman's disk",
    // Whoever fills a disk must not keep those out who want to read, stop or save.
    is_advice: true,
    look: Look::Canary(|seen| match seen {
        Ok(_) => Ok("made, asked and removed".to_owned()),
        Err(NoCanary::NotMade(why) | NoCanary::NotAsAsked(why)) => Err(why.clone()),
    }),
};

/// Its kernel is not the machine's.
pub(super) const KERNEL: Check = Check {
    name: "canary_kernel",
    rule: "A sandbox that was made for it runs on a kernel of its own, gVisor's, by the word of its log and of the kernel that it was dialled from.",
    mend: "start podman's service with Casemate's wrapper of gVisor's runsc and nothing in its place; no session comes up otherwise",
    is_advice: false,
    look: Look::Canary(|seen| {
        let version = std::fs::read_to_string("/proc/version").unwrap_or_default();
        kernel(seen, version.trim())
    }),
};

/// It reaches nothing.
pub(super) const NETWORK: Check = Check {
    name: "canary_network",
    rule: "A sandbox that was made for it has no network interface but its own loopback.",
    mend: "run the wrapper of runsc as it was shipped: --network=none, and no --allow-flag-override",
    is_advice: false,
    look: Look::Canary(|seen| match seen {
        Ok(seen) if seen.interfaces.iter().all(|name| name == "lo") => Ok("loopback".to_owned()),
        Ok(seen) => Err(seen.interfaces.join(", ")),
        Err(_) => Ok(NOT_SEEN.to_owned()),
    }),
};

/// It has no more than it may.
pub(super) const LIMITS: Check = Check {
    name: "canary_limits",
    rule: "A sandbox that was made for it cannot exceed its memory, its processes, and, when the doctor asks, its disk.",
    mend: "run the wrapper of runsc as it was shipped, in control groups that are delegated to podman's unit (Delegate=yes)",
    is_advice: false,
    look: Look::Canary(limits),
};

fn kernel(seen: &Seen, of_the_machine: &str) -> Found {
    match seen {
        Ok(seen) if seen.kernel.is_empty() => Err("it says nothing of itself".to_owned()),
        Ok(seen) if seen.kernel == of_the_machine => {
            Err(format!("the machine's own: {of_the_machine}"))
        }
        Ok(seen) => Ok(seen.kernel.clone()),
        Err(NoCanary::NotAsAsked(why)) => Err(why.clone()),
        Err(NoCanary::NotMade(_)) => Ok(NOT_SEEN.to_owned()),
    }
}

fn limits(seen: &Seen) -> Found {
    let Ok(seen) = seen else {
        return Ok(NOT_SEEN.to_owned());
    };
    let mut is_held = true;
    let said = seen.limits.iter().map(|(name, measured)| match measured {
        Measured::Held(how) => format!("{name}: {how}"),
        Measured::Exceeded(what) => {
            is_held = false;
            format!("{name} exceeded: {what}")
        }
        Measured::Not(why) => format!("{name} not measured: {why}"),
    });
    let said = said.collect::<Vec<_>>().join("; ");
    if is_held { Ok(said) } else { Err(said) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::canary::Canary;

    fn good() -> Canary {
        let held = || Measured::Held("refused".to_owned());
        Canary {
            kernel: "Linux version 4.4.0".to_owned(),
            interfaces: vec!["lo".to_owned()],
            limits: [("memory", held()), ("processes", held()), ("disk", held())],
        }
    }

    fn judged(check: &Check, seen: &Seen) -> Found {
        match check.look {
            Look::Canary(judge) => judge(seen),
            _ => panic!("{} looks elsewhere", check.name),
        }
    }

    #[test]
    fn each_check_fails_of_what_it_is_about_and_of_nothing_else() {
        let all = [&CANARY, &KERNEL, &NETWORK, &LIMITS];
        let failing = |seen: &Seen| -> Vec<&str> {
            let failed = all.iter().filter(|check| judged(check, seen).is_err());
            failed.map(|check| check.name).collect()
        };
        assert_eq!(failing(&Ok(good())), [""; 0]);
        let of_the_machine = std::fs::read_to_string("/proc/version").unwrap();
        for kernel in [of_the_machine.trim(), ""] {
            let kernel = kernel.to_owned();
            assert_eq!(failing(&Ok(Canary { kernel, ..good() })), ["canary_kernel"]);
        }
        let interfaces = vec!["lo".to_owned(), "eth0".to_owned()];
        let open = Canary {
            interfaces,
            ..good()
        };
        assert_eq!(failing(&Ok(open)), ["canary_network"]);
        for limit in 0..3 {
            let mut weak = good();
            weak.limits[limit].1 = Measured::Exceeded("more".to_owned());
            let name = weak.limits[limit].0;
            let found = judged(&LIMITS, &Ok(weak.clone())).unwrap_err();
            assert!(found.contains(&format!("{name} exceeded: more")), "{found}");
            assert_eq!(failing(&Ok(weak)), ["canary_limits"]);
        }
        let mut unmeasured = good();
        unmeasured.limits[0].1 = Measured::Not("no groups".to_owned());
        let found = judged(&LIMITS, &Ok(unmeasured)).unwrap();
        assert!(found.contains("memory not measured: no groups"), "{found}");
        let none = Err(NoCanary::NotMade("no room".to_owned()));
        assert_eq!(failing(&none), ["canary"], "it says nothing about others");
        let weak = Err(NoCanary::NotAsAsked("no gVisor".to_owned()));
        assert_eq!(failing(&weak), ["canary", "canary_kernel"]);
    }
}
