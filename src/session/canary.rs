//! A sandbox that is made to be looked into: what its kernel says, which interfaces it has, and whether its limits hold when it
//! tries to exceed them. It is made, vouched for and removed as any other, is nobody's session, and needs of its image no more
//! than `/bin/sh`.

use std::time::Duration;

use bytes::Bytes;
use casemate_link::ProcessSpec;
use casemate_link::daemon::{Link, LinkError, Process};
use casemate_link::file::{Place, WriteRequest};
use casemate_link::refusal::code;
use tokio::time::Instant;

use super::launch::{self, Door, End, Remains, Traces};
use super::manager::{House, Sessions};
use super::run;
use crate::base::chain::Chain;
use crate::base::id::SessionId;
use crate::model::sandbox::{GIB, Limits, SandboxId, Warmth};
use crate::model::session::Reason;
use crate::model::template::TemplateSpec;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(25);

/// How long a slow disk is tried.
const DISK_PATIENCE: Duration = Duration::from_secs(16);

/// How long the end of a sandbox without memory may take to be known.
const END_PATIENCE: Duration = Duration::from_secs(8);

/// As little as a sandbox of any image needs to come up, so that exceeding it costs the machine little.
const MEMORY_BYTES: u64 = 128 << 20;
const PIDS: u32 = 16;
/// More processes than that, all of one user.
const TOO_MANY: usize = 24;
/// A tenth more than the disk's limit, which is counted in whole GiB.
const TOO_MUCH_BYTES: u64 = GIB + GIB / 10;
/// Less than that, and it was not the sandbox's limit that was met.
const NEARLY_BYTES: u64 = GIB / 2;
/// What is written at once.
const PIECE_BYTES: usize = 1 << 20;
/// Most that is read of what a program says.
const WORDS_BYTES: u64 = 16 << 10;

/// The kernel's version, and its network interfaces.
const SHOW: &str = "read -r version </proc/version; echo \"$version\"; while read -r line; do echo \"$line\"; done </proc/net/dev";

/// Waits for a word, then takes 256 MiB, if it is let.
const HOG: &str = "read -r go; x=0123456789abcdef; i=0; while [ $i -lt 24 ]; do x=$x$x; i=$((i+1)); done; echo all";

/// Waits for ever.
const WAITER: &str = "read -r go";

/// Who is asked, among the teams that take turns.
const TEAM: &str = "canary";

/// How a limit met who tried to exceed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measured {
    /// It held: how.
    Held(String),
    /// It did not: what went past it.
    Exceeded(String),
    /// Nobody can say: why.
    Not(String),
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// What its kernel says that it is.
    pub kernel: String,
    /// Its network interfaces.
    pub interfaces: Vec<String>,
    /// Its limits, by their names.
    pub limits: [(&'static str, Measured); 3],
}

/// Why nothing was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoCanary {
    /// It could not be made, or not be asked. That says nothing about others.
    NotMade(String),
    /// What was made is not the sandbox that was asked for.
    NotAsAsked(String),
}

/// What to make, and what to try.
#[derive(Clone, Debug)]
pub struct CanaryPlan {
    /// Of whose image.
    pub template: TemplateSpec,
    /// Whether the machine says that it bounds memory.
    pub with_memory: bool,
    /// Whether to fill its disk, which writes a GiB.
    pub with_disk: bool,
}

impl From<End> for NoCanary {
    fn from(end: End) -> Self {
        let message = end.message.unwrap_or_default();
        // Seen in the message, since an end says no more than that a launch failed.
        if message.starts_with(NOT_AS_ASKED) {
            Self::NotAsAsked(message)
        } else {
            Self::NotMade(message)
        }
    }
}

/// How [`crate::runtime::RuntimeError::NotAsAsked`] begins.
const NOT_AS_ASKED: &str = "sandbox is not as asked";

impl From<LinkError> for NoCanary {
    fn from(error: LinkError) -> Self {
        Self::NotMade(Chain(&error).to_string())
    }
}

impl Sessions {
    /// Makes a sandbox, looks into it, and removes it. One that nobody waits for to its end is left to the next look for what
    /// nobody owns.
    ///
    /// # Errors
    /// [`NoCanary`].
    pub async fn canary(&self, plan: CanaryPlan) -> Result<Canary, NoCanary> {
        let house: &House = &self.house;
        let id = SessionId::generate(house.clock.now())
            .map_err(|error| NoCanary::NotMade(error.to_string()))?;
        let identity = self.pool.reserve(id);
        let mut remains = Remains {
            sandbox: Traces::None,
            door: true,
        };
        let seen = tokio::time::timeout(PATIENCE, watch(house, id, plan, &mut remains)).await;
        remains.clear_unowned(house, id).await;
        drop(identity);
        seen.unwrap_or_else(|_| {
            let late = format!("it took more than {} s", PATIENCE.as_secs());
            Err(NoCanary::NotMade(late))
        })
    }
}

async fn watch(
    house: &House,
    id: SessionId,
    plan: CanaryPlan,
    remains: &mut Remains,
) -> Result<Canary, NoCanary> {
    let mut template = plan.template;
    template.allow_root = false;
    template.limits = Limits {
        memory_bytes: MEMORY_BYTES,
        cpus: 1.0,
        pids: PIDS,
        disk_bytes: GIB,
        ..Limits::default()
    };
    let team = TEAM
        .parse()
        .map_err(|_| NoCanary::NotMade("a defect: its team has no name".to_owned()))?;
    let Ok(turn) = house.launches.enter(&team, PATIENCE).await else {
        return Err(NoCanary::NotMade(
            "too many sandboxes are being made".to_owned(),
        ));
    };
    let mut door = Door::build(&house.link_root, id, template.limits)
        .await
        .map_err(|error| launch::failed(&error))?;
    let directory = door.directory.clone();
    let spec = launch::unowned(house, id, &template, directory, Warmth::None);
    let sandbox = launch::create(house, spec, &mut remains.sandbox).await?;
    let link = launch::start(house, &sandbox, &mut door).await?;
    drop(turn);
    let outcome = run::gather(&mut link.start(program(SHOW)).await?, WORDS_BYTES)
        .await
        .map_err(|error| NoCanary::NotMade(Chain(&error).to_string()))?;
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let (kernel, table) = text.split_once('\n').unwrap_or_default();
    // Before its processes are all taken.
    let hog = link.start(program(HOG)).await?;
    let disk = if plan.with_disk {
        fill(&link).await
    } else {
        Measured::Not("left to casemate doctor".to_owned())
    };
    let (processes, _waiters) = fork(&link).await?;
    let memory = if plan.with_memory {
        eat(house, &sandbox, hog).await
    } else {
        Measured::Not("this machine does not enforce it".to_owned())
    };
    Ok(Canary {
        kernel: kernel.to_owned(),
        interfaces: interfaces(table),
        limits: [("memory", memory), ("processes", processes), ("disk", disk)],
    })
}

fn program(script: &str) -> ProcessSpec {
    ProcessSpec::new(["/bin/sh", "-c", script])
}

/// The names in a table like `/proc/net/dev` (proc(5)): two lines of heads, then `name: numbers`.
fn interfaces(table: &str) -> Vec<String> {
    let names = table.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// Starts more processes than there may be; those that were started.
async fn fork(link: &Link) -> Result<(Measured, Vec<Process>), NoCanary> {
    let mut started = Vec::new();
    while started.len() < TOO_MANY {
        match link.start(program(WAITER)).await {
            Ok(process) => started.push(process),
            Err(LinkError::Refused { code, .. }) if code == code::TOO_MANY_PROCESSES => {
                let said = format!("one more than {} was refused", started.len());
                return Ok((Measured::Held(said), started));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let said = format!("{} processes run where {PIDS} may", started.len());
    Ok((Measured::Exceeded(said), started))
}

/// Writes more than there may be on its disk. It leaves nothing: what was not put in its place is removed.
async fn fill(link: &Link) -> Measured {
    let request = WriteRequest {
        place: Place {
            path: "/var/tmp/canary".to_owned(),
            user: None,
        },
        mode: None,
        append: false,
        create_parents: false,
        sync: false,
        only_if: None,
        metadata: None,
    };
    let mut writer = match link.write(&request, None).await {
        Ok(writer) => writer,
        Err(error) => return Measured::Not(Chain(&error).to_string()),
    };
    let began = Instant::now();
    let piece = Bytes::from(vec![0; PIECE_BYTES]);
    let mut written = 0;
    while written < TOO_MUCH_BYTES {
        if began.elapsed() > DISK_PATIENCE {
            let so_far = written >> 20;
            return Measured::Not(format!(
                "its disk took {so_far} MiB in {} s",
                DISK_PATIENCE.as_secs()
            ));
        }
        match writer.write(piece.clone()).await {
            Ok(()) => written += PIECE_BYTES as u64,
            Err(error) => return refused_at(&error, written),
        }
    }
    match writer.commit().await {
        Ok(_) => Measured::Exceeded(format!("a file of {} MiB where 1024 may be", written >> 20)),
        Err(error) => refused_at(&error, written),
    }
}

fn refused_at(error: &LinkError, written: u64) -> Measured {
    let is_full = matches!(error, LinkError::Refused { code, .. } if code == code::DISK_FULL);
    let so_far = written >> 20;
    if is_full && written >= NEARLY_BYTES {
        Measured::Held(format!("full at about {so_far} MiB"))
    } else {
        // The machine's own disk was full before, or it is something else.
        Measured::Not(format!("{} after {so_far} MiB", Chain(error)))
    }
}

/// Takes more memory than there may be; the sandbox is over then.
async fn eat(house: &House, sandbox: &SandboxId, mut hog: Process) -> Measured {
    if hog.input.write(Bytes::from_static(b"go\n")).await.is_err() {
        return Measured::Not("the program was gone before".to_owned());
    }
    if let Ok(outcome) = run::gather(&mut hog, WORDS_BYTES).await {
        return if outcome.stdout.starts_with(b"all") {
            Measured::Exceeded("a program took 256 MiB where 128 may be".to_owned())
        } else {
            Measured::Held("a program was refused memory".to_owned())
        };
    }
    match tokio::time::timeout(END_PATIENCE, launch::death_of(house, sandbox)).await {
        Ok(end) if end.reason == Reason::LimitMemory => {
            Measured::Held("ended for lack of memory".to_owned())
        }
        Ok(end) => Measured::Exceeded(format!(
            "it ended, but not of its limit: {}",
            end.message.unwrap_or_default()
        )),
        Err(_) => Measured::Not("its link was lost, and it did not end".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::RuntimeError;

    #[test]
    fn the_names_of_interfaces_are_read() {
        let table = "Inter-|   Receive     |  Transmit\n face |bytes    packets|bytes\n    lo:  10 1 0\n  eth0: 0 0 0\n";
        assert_eq!(interfaces(table), ["lo", "eth0"]);
        assert_eq!(interfaces(""), [""; 0]);
    }

    #[test]
    fn what_is_not_as_asked_is_told_apart_from_what_could_not_be_made() {
        let error = RuntimeError::NotAsAsked {
            field: "kernel of the sandbox",
            found: "Linux".to_owned(),
            wanted: "gVisor".to_owned(),
        };
        let weak = NoCanary::from(launch::refused(&error));
        assert!(matches!(weak, NoCanary::NotAsAsked(_)), "{weak:?}");
        let error = RuntimeError::Failed {
            doing: "create a container",
            message: "no space left".to_owned(),
        };
        let absent = NoCanary::from(launch::refused(&error));
        assert!(matches!(absent, NoCanary::NotMade(_)), "{absent:?}");
    }

    #[test]
    fn a_disk_that_is_full_too_early_is_no_limit_that_held() {
        let full = LinkError::Refused {
            code: code::DISK_FULL.to_owned(),
            message: String::new(),
        };
        assert!(matches!(refused_at(&full, GIB - 1), Measured::Held(_)));
        assert!(matches!(refused_at(&full, 1 << 20), Measured::Not(_)));
        assert!(matches!(
            refused_at(&LinkError::Gone, GIB),
            Measured::Not(_)
        ));
    }
}
