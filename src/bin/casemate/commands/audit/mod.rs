//! `casemate audit …`: what was recorded of a session, over the HTTP API; the whole record, over the admin socket; whether
//! an exported one is what was written, without either. And how a record is shown.

mod archives;
mod list;
mod verify;
mod whole;

use std::path::PathBuf;

use casemate::base::clock::Timestamp;
use clap::Subcommand;
use serde_json::Value;

use super::Context;
use crate::failure::Failure;
use crate::screen::or_absent;

/// What to do with the record.
#[derive(Subcommand)]
pub enum Command {
    /// List what was recorded, oldest first: of a session with an API key, of everything as an operator
    List(Box<list::List>),
    /// Show the end of the record, and what is added; for operators
    Tail {
        /// Go on as records are added
        #[arg(short, long)]
        follow: bool,
        /// Look at so many records, at most 10000
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000), value_name = "N")]
        last: u32,
        #[command(flatten)]
        only: Box<list::Only>,
    },
    /// Write the record to standard output, with a signed checkpoint; for operators
    Export {
        /// Only records after this position; 0 is the beginning of what is not archived
        #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(0..))]
        after: i64,
        /// Only records up to this position
        #[arg(long, value_name = "N")]
        until: Option<i64>,
        /// What can be verified, or events of the Open Cybersecurity Schema Framework, which cannot
        #[arg(long, default_value = "jsonl")]
        format: whole::Format,
    },
    /// Check that the record is what was written: the daemon's (for operators), or files of it
    Verify {
        /// Files that were exported or archived, each going on where the one before it ends; - is standard input
        #[arg(requires = "public_key", value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The public key, as `casemate audit key` prints it, from somewhere else than the files
        #[arg(long, requires = "files", value_name = "PEM")]
        public_key: Option<PathBuf>,
    },
    /// List the files that old records were moved to; for operators
    Archives,
    /// Move old records to files now; for operators
    Archive {
        /// Those that were made before this time: 2026-01-31T12:00:00Z; without it, what audit.retention says
        #[arg(long, value_name = "TIME", value_parser = list::time)]
        before: Option<Timestamp>,
    },
    /// Print the public key that the record is verified with; for operators
    Key,
}

/// The columns of [`row`].
const HEADINGS: [&str; 6] = ["AT", "STAGE", "PRINCIPAL", "SESSION", "KIND", "DETAILS"];

impl Command {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.execute(context).await,
            Self::Tail { follow, last, only } => {
                whole::tail(context, last, only.filter(), follow).await
            }
            Self::Export {
                after,
                until,
                format,
            } => whole::export(context, after, until, format).await,
            Self::Verify {
                files,
                public_key: Some(public_key),
            } => verify::files(context, &files, &public_key),
            Self::Verify { .. } => whole::verify(context).await,
            Self::Archives => archives::list(context).await,
            Self::Archive { before } => archives::make(context, before).await,
            Self::Key => whole::key(context).await,
        }
    }
}

/// A record in a table. Read as loose JSON, so that kinds of events that a newer daemon knows are
/// shown as well.
fn row(record: &Value) -> Vec<String> {
    let text = |name: &str| or_absent(record.get(name).and_then(Value::as_str));
    let event = record.get("event");
    let kind = event
        .and_then(|event| event.get("kind"))
        .and_then(Value::as_str);
    let mut details = Vec::new();
    describe(event, "kind", &mut details);
    describe(record.get("outcome"), "", &mut details);
    vec![
        text("at"),
        text("stage"),
        text("principal"),
        text("session"),
        or_absent(kind),
        details.join(" "),
    ]
}

/// The object's fields as `k=v`, without one of them.
fn describe(object: Option<&Value>, without: &str, details: &mut Vec<String>) {
    let fields = object.and_then(Value::as_object).into_iter().flatten();
    for (name, value) in fields.filter(|(name, _)| *name != without) {
        match value {
            Value::String(text) => details.push(format!("{name}={text}")),
            other => details.push(format!("{name}={other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_is_one_line_of_what_is_known() {
        let record = json!({
            "id": "evt_x", "at": "2026-01-01T00:00:00.000Z", "stage": "outcome",
            "principal": "key_x", "session": "ses_x",
            "event": {"kind": "session.run", "arguments": 2, "program": "ls"},
            "outcome": {"result": "ok", "detail": "exit code 0"},
        });
        let row = row(&record);
        assert_eq!(row.len(), HEADINGS.len());
        assert_eq!(row[4], "session.run");
        assert_eq!(
            row[5],
            "arguments=2 program=ls detail=exit code 0 result=ok"
        );
    }

    #[test]
    fn a_record_from_the_future_is_shown_as_far_as_it_goes() {
        assert_eq!(row(&json!({"event": 7}))[..5], ["-", "-", "-", "-", "-"]);
    }
}
