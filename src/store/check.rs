//! Whether the database is whole: a look at the start that is bounded in time, and a whole check beside the daemon's work.
//!
//! SQLite has no checksums: a check finds pages, cells, keys and indexes that contradict each other. A byte that was changed
//! inside a value is found by nobody here.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::{StoreError, beside};

/// What the look at the start may take at most: a part of the promised 300 ms.
const START_BUDGET: Duration = Duration::from_millis(60);

/// SQLite asks so often whether to go on: each some thousand steps of its machine, well below a millisecond.
const STEPS: i32 = 1_000;

/// Tables that only grow: to read them whole at the start would take the longer the longer an installation has been there.
const LARGE: [&str; 1] = ["audit"];

/// Most that is told of what a check found.
const MAX_TOLD: usize = 300;

/// What is wrong, if anything.
type Finding = Option<String>;

/// Looks at what every start needs. What does not fit into the budget is left to the whole check.
pub(super) fn at_start(db: &mut Connection, path: &Path) -> Result<Finding, StoreError> {
    if let Some(what) = cut_short(path) {
        return Ok(Some(what));
    }
    let began = Instant::now();
    interruptible(db, move || began.elapsed() > START_BUDGET)?;
    let mut found = None;
    for table in tables(db)? {
        if LARGE.contains(&table.as_str()) {
            continue;
        }
        match one(db, "quick_check", &table) {
            Ok(None) => {}
            Ok(what) => {
                found = what;
                break;
            }
            Err(error) if was_interrupted(&error) => break,
            Err(error) => return Err(error),
        }
    }
    db.progress_handler(0, None::<fn() -> bool>)
        .map_err(StoreError::sql("look at the database"))?;
    Ok(found)
}

/// Checks every table with its indexes, one after the other, each as it is at one moment: between two of them the log can be
/// folded into the file. `None` in place of a finding when it was asked to stop.
pub(super) fn whole(
    db: &mut Connection,
    stop: &Arc<AtomicBool>,
) -> Result<Option<Finding>, StoreError> {
    let asked = Arc::clone(stop);
    interruptible(db, move || asked.load(Ordering::Relaxed))?;
    for table in tables(db)? {
        match one(db, "integrity_check", &table) {
            Ok(None) => {}
            Ok(what) => return Ok(Some(what)),
            Err(error) if was_interrupted(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(None))
}

/// Checks a file that nobody else uses, all of it at once.
pub(super) fn copy(db: &Connection) -> Result<Finding, StoreError> {
    said(db, "PRAGMA integrity_check(1)")
}

fn tables(db: &Connection) -> Result<Vec<String>, StoreError> {
    let doing = "list the tables";
    let sql = StoreError::sql(doing);
    let mut statement = db
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        .map_err(&sql)?;
    let names = statement.query_map([], |row| row.get(0)).map_err(&sql)?;
    names.map(|name| name.map_err(&sql)).collect()
}

fn one(db: &Connection, pragma: &str, table: &str) -> Result<Finding, StoreError> {
    // Names of our own schema; a damaged one may hold anything.
    if !table.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
        return Ok(Some(format!("it has a table called {table:?}")));
    }
    said(db, &format!("PRAGMA {pragma}({table})"))
}

fn said(db: &Connection, pragma: &str) -> Result<Finding, StoreError> {
    let doing = "check the database";
    let word: String = db
        .query_row(pragma, [], |row| row.get(0))
        .map_err(StoreError::sql(doing))?;
    if word == "ok" {
        return Ok(None);
    }
    let line = word.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Some(line.chars().take(MAX_TOLD).collect()))
}

fn interruptible(
    db: &mut Connection,
    stop: impl FnMut() -> bool + Send + 'static,
) -> Result<(), StoreError> {
    db.progress_handler(STEPS, Some(stop))
        .map_err(StoreError::sql("look at the database"))
}

fn was_interrupted(error: &StoreError) -> bool {
    matches!(error, StoreError::Sql { source, .. }
        if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted))
}

/// A file that has fewer pages than its first one says, with no log that could hold them.
fn cut_short(path: &Path) -> Finding {
    if std::fs::metadata(beside(path, "-wal")).is_ok_and(|found| found.len() > 0) {
        return None;
    }
    // sqlite.org/fileformat2.html#the_database_header
    let mut header = [0_u8; 32];
    let mut file = File::open(path).ok()?;
    file.read_exact(&mut header).ok()?;
    let length = file.metadata().ok()?.len();
    let page = u64::from(u16::from_be_bytes([*header.get(16)?, *header.get(17)?]));
    let page = if page == 1 { 65_536 } else { page };
    let pages = header
        .get(28..32)?
        .try_into()
        .ok()
        .map(u32::from_be_bytes)?;
    let wanted = page * u64::from(pages);
    (length < wanted).then(|| format!("it has {length} of its {wanted} bytes"))
}
