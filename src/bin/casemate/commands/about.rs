//! What casemate says about itself: its version, completions for shells, manual pages.

use std::path::Path;

use casemate::admin::protocol;
use casemate::base::exit::Exit;
use clap_complete::Shell;
use serde_json::json;

use super::Context;
use crate::args;
use crate::failure::Failure;
use crate::output;

pub fn version(context: &Context) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if context.json {
        let about = json!({"version": version, "admin_protocol": protocol::VERSION});
        output::json(&about)
    } else {
        output::line(&format!("casemate {version}"))
    }
}

pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "casemate", &mut script);
    output::text(&script)
}

/// One page for each command, as packages want them in `share/man/man1`.
pub fn man(directory: &Path) -> Result<(), Failure> {
    if !directory.is_dir() {
        return Err(Failure::new(
            Exit::CantCreate,
            format!("{} is not a directory; make it first", directory.display()),
        ));
    }
    clap_mangen::generate_to(args::command(), directory).map_err(|error| {
        let doing = format!("write manual pages to {}", directory.display());
        Failure::io(doing, &error)
    })
}
