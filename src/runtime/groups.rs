//! The control groups that bound a sandbox from outside: where they are made, what they must hold, and whether they do.
//!
//! The OCI runtime's wrapper makes them (`packaging/libexec/casemate-runsc`): it is there that a sandbox's first process is
//! started, and podman's user owns them. It says where, in its version, and which limits it has seen to hold there by
//! trying. That is believed until the first sandbox: each is looked at again by us, when its guest comes in.

use std::path::{Path, PathBuf};

use super::RuntimeError;
use crate::host::cgroup::{self, Group};
use crate::host::peer::command_line;
use crate::model::sandbox::{Limits, SandboxId};

/// What begins each line of the wrapper's version that names a place for groups.
const LINE: &str = "cgroup: ";

/// How gVisor's kernel names its process.
const SANDBOX: &str = "runsc-sandbox";

/// Period over which processor time is counted, in microseconds: the kernel's default, and what the wrapper writes.
pub(super) const CPU_PERIOD_US: u64 = 100_000;

/// Memory of gVisor's own in each sandbox: an idle one was seen to take 19 MiB beside its programs' (12 of the sentry and the
/// gofer, 2.4 of the kernel for them, the rest pages of files that it can give back), one with 1 GiB in use 3 MiB more for
/// page tables, which each further process that shares it needs again.
const OWN_BYTES: u64 = 64 << 20;

/// Memory of gVisor's own for each process: 335 KiB were seen with platform ptrace (400 processes: 90 MiB of page tables and
/// stacks in the kernel, 44 MiB in the sentry and the processes that run the programs' instructions), 267 KiB with systrap.
const OWN_BYTES_PER_PROCESS: u64 = 384 << 10;

/// To what the kernel rounds a bound on memory: the largest page of any machine.
const PAGE_BYTES: u64 = 64 << 10;

/// Threads of gVisor's own. One more than there may be is refused to gVisor, not to a program, and ends the sandbox: so
/// there must always be room. 28 to 50 were seen in an idle sandbox, 100 with a hundred threads at work in it.
const OWN_THREADS: u64 = 512;

/// Threads on the host for each process. Processes that wait need 5.6 to 6.2 with platform ptrace (50 to 400 of them), 2.1 with
/// systrap. But gVisor keeps what it once made, and a fork bomb of 64 processes was seen to have 1,000 after 4 s, 2,500 after
/// 14 s, and no end of it: so this is what a bomb may do for half a minute before it ends its own sandbox. Each thread costs
/// 22 KiB of the kernel's memory, which counts as the sandbox's.
const THREADS_PER_PROCESS: u64 = 64;

/// Which limits this machine enforces from outside the sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enforced {
    /// `memory`: the whole sandbox's memory, without swap.
    pub memory: bool,
    /// `cpu`: its share of processor time.
    pub cpu: bool,
    /// `pids`: its threads on the host.
    pub pids: bool,
}

impl Enforced {
    /// The names of the limits that are not enforced.
    #[must_use]
    pub fn missing(self) -> Vec<&'static str> {
        [
            ("memory", self.memory),
            ("cpu", self.cpu),
            ("pids", self.pids),
        ]
        .into_iter()
        .filter_map(|(name, enforced)| (!enforced).then_some(name))
        .collect()
    }
}

/// What a sandbox's groups must hold, gVisor's own part included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) memory_bytes: u64,
    pub(super) cpu_quota_us: u64,
    pub(super) pids: u64,
}

impl Bounds {
    pub(super) fn of(limits: &Limits) -> Self {
        let processes = u64::from(limits.pids);
        let own = OWN_BYTES + OWN_BYTES_PER_PROCESS * processes;
        Self {
            memory_bytes: (limits.memory_bytes + own).next_multiple_of(PAGE_BYTES),
            cpu_quota_us: cpu_quota_us(limits.cpus),
            pids: OWN_THREADS + THREADS_PER_PROCESS * processes,
        }
    }
}

/// Processor time in each period; not below the millisecond that the kernel demands.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "`Limits::validate` keeps it between 0.01 and 1024, and the cast saturates"
)]
fn cpu_quota_us(cpus: f64) -> u64 {
    ((cpus * CPU_PERIOD_US as f64).round() as u64).max(1_000)
}

/// What the kernel did to keep a sandbox within its bounds, counted from its start. Nothing where nothing is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strain {
    /// Processes of it that were killed for lack of memory; the sandbox is over then.
    pub memory_kills: u64,
    /// Periods of a tenth of a second in which it ran.
    pub cpu_periods: u64,
    /// Those of them in which it had used its processor time and waited.
    pub cpu_waits: u64,
    /// Threads that it was refused; gVisor is over then.
    pub pids_refused: u64,
}

/// The places where groups are made, one for each controller or one for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups(Vec<Place>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    directory: PathBuf,
    enforced: Enforced,
}

impl Groups {
    /// Reads what the wrapper says beside its version.
    pub(super) fn read(version: &str) -> Self {
        let lines = version.lines().filter_map(|line| line.strip_prefix(LINE));
        let places = lines.filter_map(|line| {
            let (directory, limits) = line.split_once(' ')?;
            let has = |name| limits.split(' ').any(|limit| limit == name);
            Some(Place {
                directory: Path::new(directory).to_owned(),
                enforced: Enforced {
                    memory: has("memory"),
                    cpu: has("cpu"),
                    pids: has("pids"),
                },
            })
        });
        // What is no file system of the kernel's bounds nothing.
        Self(
            places
                .filter(|place| cgroup::is_real(&place.directory))
                .collect(),
        )
    }

    pub(super) fn enforced(&self) -> Enforced {
        self.0.iter().fold(Enforced::default(), |sum, place| {
            let own = place.enforced;
            Enforced {
                memory: sum.memory || own.memory,
                cpu: sum.cpu || own.cpu,
                pids: sum.pids || own.pids,
            }
        })
    }

    fn of<'a>(&'a self, id: &'a SandboxId) -> impl Iterator<Item = (Group, Enforced)> + 'a {
        self.0.iter().map(|place| {
            let group = Group::at(place.directory.join(id.as_str()));
            (group, place.enforced)
        })
    }

    /// Whether a sandbox runs in groups of its own with these bounds: both of gVisor's processes are there, of which `gofer`
    /// is one, and each bound is what it must be.
    pub(super) fn check(
        &self,
        id: &SandboxId,
        gofer: i32,
        bounds: &Bounds,
    ) -> Result<(), RuntimeError> {
        self.of(id).try_for_each(|(group, enforced)| {
            let members = group.processes();
            let is_sandbox = |pid: &i32| {
                let arguments = command_line(*pid).unwrap_or_default();
                arguments.first().is_some_and(|name| name == SANDBOX)
            };
            same("control group's gofer", &members.contains(&gofer), &true)?;
            same(
                "control group's sandbox",
                &members.iter().filter(|pid| is_sandbox(pid)).count(),
                &1,
            )?;
            judge(&group, enforced, bounds)
        })
    }

    pub(super) fn strain(&self, id: &SandboxId) -> Strain {
        let mut sum = Strain::default();
        for (group, enforced) in self.of(id) {
            if enforced.memory {
                sum.memory_kills = group.memory_kills();
            }
            if enforced.cpu {
                (sum.cpu_periods, sum.cpu_waits) = group.cpu_periods();
            }
            if enforced.pids {
                sum.pids_refused = group.pids_refused();
            }
        }
        sum
    }
}

fn judge(group: &Group, enforced: Enforced, bounds: &Bounds) -> Result<(), RuntimeError> {
    if enforced.memory {
        same(
            "memory bound",
            &group.memory_max(),
            &Some(bounds.memory_bytes),
        )?;
        same("use of swap", &group.may_swap(), &false)?;
    }
    if enforced.cpu {
        let wanted = Some((bounds.cpu_quota_us, CPU_PERIOD_US));
        same("processor bound", &group.cpu_max(), &wanted)?;
    }
    if enforced.pids {
        same("thread bound", &group.pids_max(), &Some(bounds.pids))?;
    }
    Ok(())
}

fn same<T: Copy + PartialEq + std::fmt::Debug>(
    field: &'static str,
    found: &T,
    wanted: &T,
) -> Result<(), RuntimeError> {
    if found == wanted {
        return Ok(());
    }
    Err(RuntimeError::NotAsAsked {
        field,
        found: format!("{found:?}"),
        wanted: format!("{wanted:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sandbox::GIB;

    const ALL: Enforced = Enforced {
        memory: true,
        cpu: true,
        pids: true,
    };

    fn bounds() -> Bounds {
        Bounds::of(&Limits {
            memory_bytes: GIB,
            cpus: 0.5,
            pids: 100,
            ..Limits::default()
        })
    }

    #[test]
    fn gvisors_own_part_comes_on_top() {
        let own = (64 << 20) + 100 * (384 << 10);
        assert_eq!(
            bounds(),
            Bounds {
                memory_bytes: GIB + own,
                cpu_quota_us: 50_000,
                pids: 512 + 6400,
            }
        );
        let odd = Limits {
            memory_bytes: GIB + 1,
            ..Limits::default()
        };
        assert_eq!(Bounds::of(&odd).memory_bytes % PAGE_BYTES, 0);
    }

    #[test]
    fn a_little_processor_time_is_not_none() {
        assert_eq!(cpu_quota_us(0.5), 50_000);
        assert_eq!(cpu_quota_us(0.001), 1_000);
        assert_eq!(cpu_quota_us(f64::NAN), 1_000);
    }

    #[test]
    fn a_version_without_groups_or_with_made_up_ones_enforces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for version in [
            "runsc version 0.0~20240729.0".to_owned(),
            "cgroup: \ncgroup: /nowhere memory cpu pids".to_owned(),
            format!("cgroup: {} memory cpu pids", dir.path().display()),
        ] {
            let groups = Groups::read(&version);
            assert_eq!(groups.enforced().missing(), ["memory", "cpu", "pids"]);
            assert_eq!(groups.strain(&id()), Strain::default());
        }
    }

    fn id() -> SandboxId {
        SandboxId::try_from("a".repeat(64)).unwrap()
    }

    #[test]
    fn each_bound_that_differs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            std::fs::write(dir.path().join(name), text).unwrap();
        };
        let group = Group::at(dir.path().to_owned());
        let good = || {
            write("memory.max", bounds().memory_bytes.to_string());
            write("memory.swap.max", "0".to_owned());
            write("cpu.max", "50000 100000".to_owned());
            write("pids.max", "6912".to_owned());
        };
        good();
        judge(&group, ALL, &bounds()).unwrap();
        for (file, text, field) in [
            ("memory.max", "max", "memory bound"),
            ("memory.max", "1", "memory bound"),
            ("memory.swap.max", "max", "use of swap"),
            ("cpu.max", "max 100000", "processor bound"),
            ("cpu.max", "50000 1000", "processor bound"),
            ("pids.max", "max", "thread bound"),
        ] {
            good();
            write(file, text.to_owned());
            match judge(&group, ALL, &bounds()) {
                Err(RuntimeError::NotAsAsked { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{file} {text}: {other:?}"),
            }
            // What is not enforced there is not looked for there.
            judge(&group, Enforced::default(), &bounds()).unwrap();
        }
    }

    #[test]
    fn a_sandbox_that_is_not_in_its_group_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let groups = Groups(vec![Place {
            directory: dir.path().to_owned(),
            enforced: Enforced::default(),
        }]);
        let group = dir.path().join(id().as_str());
        std::fs::create_dir(&group).unwrap();
        let field = |gofer| match groups.check(&id(), gofer, &bounds()) {
            Err(RuntimeError::NotAsAsked { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let me = std::process::id();
        assert_eq!(field(me.cast_signed()), "control group's gofer");
        std::fs::write(group.join("cgroup.procs"), format!("{me}\n")).unwrap();
        assert_eq!(field(me.cast_signed()), "control group's sandbox");
    }
}
