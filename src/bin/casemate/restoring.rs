//! What a restore can be told, on both command lines: `casemate admin restore` hands it on to `casemated restore`. It is a part
//! of either program and names nothing of the house.

use std::path::PathBuf;

use clap::Args;

/// A backup, and what is wanted of it.
#[derive(Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub struct Restoring {
    /// The backup; - reads standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// File of the age identity that it is encrypted for; casemated's user must be able to read it
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Put a state that is there aside, whole, and this one in its place
    #[arg(long)]
    pub replace: bool,
    /// Put the templates' files in the places of those with the same names
    #[arg(long)]
    pub templates: bool,
    /// Take it although its record is not what was written; casemate audit verify says what is wrong
    #[arg(long)]
    pub broken_record: bool,
    /// Only check the backup, and say what would be done
    #[arg(long)]
    pub dry_run: bool,
}
