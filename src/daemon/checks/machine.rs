//! How the state and the machine are now.

use std::time::Duration;

use super::{Check, Found, Look};
use crate::base::chain::Chain;
use crate::base::clock::Timestamp;
use crate::host::{disk, memory};
use crate::model::query::AuditFilter;

/// No clock is right that shows an earlier time: 2026-01-01.
const NOT_BEFORE: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// How far behind its newest record a clock may be.
const BEHIND: Duration = Duration::from_secs(24 * 3600);

/// Room on the disk below which an operator should look.
const ROOM_BYTES: u64 = 1 << 30;

/// It takes what is written.
pub(super) const DATABASE: Check = Check {
    name: "database",
    rule: "The database is whole as far as is known, and takes what is written.",
    mend: "free room on its disk; of a damaged one make a state by casemated restore and a backup",
    // A full disk must not keep those out who want to read, stop or save.
    is_advice: true,
    look: Look::Asked(|scene| {
        Box::pin(async {
            let found = scene
                .store
                .check_room()
                .and(scene.store.check_writable().await);
            found.map_err(|error| Chain(&error).to_string())?;
            Ok("it takes what is written".to_owned())
        })
    }),
};

/// What was recorded is what was written.
pub(super) const RECORD: Check = Check {
    name: "record",
    rule: "The record is what was written, as far as the start looked.",
    mend: "casemate audit verify says what is wrong; keep the database and a backup for whoever looks into it",
    // Whoever edited it must not also be able to stop what is recorded of them.
    is_advice: true,
    look: Look::Here(|scene| {
        scene
            .audit
            .alarm()
            .map_or_else(|| Ok("no alarm".to_owned()), |alarm| Err(alarm.to_owned()))
    }),
};

/// The newest one went well.
pub(super) const LAST_BACKUP: Check = Check {
    name: "last_backup",
    rule: "The newest backup is there and not older than it should be.",
    mend: "casemate admin backup says why none can be made",
    is_advice: true,
    look: Look::Here(
        |scene| match (scene.backups.problem(), scene.backups.known().last) {
            (Some(problem), _) => Err(problem),
            (None, Some(at)) => Ok(at.to_string()),
            (None, None) => Ok("none yet".to_owned()),
        },
    ),
};

/// Deadlines, signatures and the order of the record hang on it.
pub(super) const CLOCK: Check = Check {
    name: "clock",
    rule: "The clock is not before 2026, and not a day behind the newest record.",
    mend: "set the clock: timedatectl set-ntp true, or set-time",
    is_advice: false,
    look: Look::Asked(|scene| {
        Box::pin(async {
            let failed = |error| Chain(&error).to_string();
            let (head, _) = scene.store.audit_head().await.map_err(failed)?;
            let filter = AuditFilter {
                after: head.saturating_sub(1),
                limit: 1,
                ..AuditFilter::default()
            };
            let newest = scene.store.audit(filter).await.map_err(failed)?;
            clock(
                scene.clock.now(),
                newest.last().map(|(_, record)| record.at),
            )
        })
    }),
};

fn clock(now: Timestamp, newest: Option<Timestamp>) -> Found {
    if now < NOT_BEFORE {
        return Err(now.to_string());
    }
    match newest {
        Some(newest) if newest.since(now) > BEHIND => {
            Err(format!("{now}, and the newest record is of {newest}"))
        }
        _ => Ok(now.to_string()),
    }
}

/// For the database and what is kept on its way.
pub(super) const DISK: Check = Check {
    name: "disk",
    rule: "The disk of the state has a gigabyte to spare.",
    mend: "free room, or move state_dir to a larger disk; at none new work is refused until there is some",
    is_advice: true,
    look: Look::Here(|scene| {
        let free =
            disk::free_bytes(&scene.config().state_dir).map_err(|error| error.to_string())?;
        at_least("free", free, ROOM_BYTES)
    }),
};

/// For the next session.
pub(super) const MEMORY: Check = Check {
    name: "memory",
    rule: "The machine has more memory available than sessions must leave (sessions.reserve_bytes).",
    mend: "end what takes it; until then new sessions wait and are refused",
    is_advice: true,
    look: Look::Here(|scene| {
        at_least(
            "available",
            memory::available_bytes(),
            scene.config().sessions.reserve_bytes,
        )
    }),
};

fn at_least(what: &str, found: u64, wanted: u64) -> Found {
    let said = format!("{} MiB {what}", found >> 20);
    if found >= wanted { Ok(said) } else { Err(said) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_cannot_be_right_fails() {
        let day = 24 * 3600 * 1000;
        let now = Timestamp::from_millis(NOT_BEFORE.as_millis() + 10 * day);
        let days_on = |days: i64| Some(Timestamp::from_millis(now.as_millis() + days * day));
        assert!(clock(now, None).is_ok());
        assert!(clock(now, days_on(-9)).is_ok());
        assert!(clock(now, days_on(1)).is_ok());
        assert!(clock(now, days_on(2)).is_err());
        assert!(clock(Timestamp::from_millis(0), None).is_err());
    }

    #[test]
    fn little_is_too_little() {
        assert_eq!(
            at_least("free", 3 << 20, 3 << 20),
            Ok("3 MiB free".to_owned())
        );
        assert!(at_least("free", 2, 3).is_err());
    }
}
