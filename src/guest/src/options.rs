//! The command line.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

/// Where the daemon mounts the link's directory.
const LINK_DIR: &str = "/run/casemate/link";

/// What the guest is told to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Be the guest.
    Run(Options),
    /// Print the version.
    Version,
    /// Print what a hello would say of the kernel.
    KernelBanner,
}

/// How the guest runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The directory with `link.sock` and `token`.
    pub(crate) link_dir: PathBuf,
    /// Whether processes may run as root, with all that the sandbox grants, and as whoever may open the link. Without the
    /// token, which is gone from there when the first process runs, that opens nothing.
    pub(crate) allow_root: bool,
    /// How many files each process may have open, unless it is the guest.
    pub(crate) open_files: u64,
    /// How many processes are started, in all.
    pub(crate) max_started: u64,
    /// On which port of the loopback programs find the way out; `None`: on none.
    pub(crate) egress_port: Option<u16>,
}

/// The command line makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "usage: casemate-guest [--link-dir DIR] [--allow-root] [--open-files N] [--max-started N] [--egress-port N] | --version | --kernel-banner (at {0:?})"
)]
pub(crate) struct BadUsage(OsString);

pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, BadUsage> {
    let mut options = Options {
        link_dir: PathBuf::from(LINK_DIR),
        allow_root: false,
        open_files: u64::MAX,
        max_started: u64::MAX,
        egress_port: None,
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--version") => return Ok(Command::Version),
            Some("--kernel-banner") => return Ok(Command::KernelBanner),
            Some("--allow-root") => options.allow_root = true,
            Some("--open-files") => options.open_files = number(word, words.next().as_deref())?,
            Some("--max-started") => options.max_started = number(word, words.next().as_deref())?,
            Some("--egress-port") => {
                options.egress_port = Some(number(word, words.next().as_deref())?);
            }
            Some("--link-dir") => options.link_dir = words.next().ok_or(BadUsage(word))?.into(),
            _ => return Err(BadUsage(word)),
        }
    }
    Ok(Command::Run(options))
}

/// What follows a word that wants a number.
fn number<T: FromStr>(word: OsString, number: Option<&OsStr>) -> Result<T, BadUsage> {
    number
        .and_then(OsStr::to_str)
        .and_then(|number| number.parse().ok())
        .ok_or(BadUsage(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, BadUsage> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn without_words_it_runs_with_the_mounted_directory() {
        let options = Options {
            link_dir: LINK_DIR.into(),
            allow_root: false,
            open_files: u64::MAX,
            max_started: u64::MAX,
            egress_port: None,
        };
        assert_eq!(parsed(&[]), Ok(Command::Run(options)));
    }

    #[test]
    fn words_are_heard_and_others_refused() {
        let options = Options {
            link_dir: "/x".into(),
            allow_root: true,
            open_files: 100,
            max_started: 7,
            egress_port: Some(3128),
        };
        let words =
            "--link-dir /x --open-files 100 --max-started 7 --egress-port 3128 --allow-root";
        let words: Vec<&str> = words.split(' ').collect();
        assert_eq!(parsed(&words), Ok(Command::Run(options)));
        let bad = parsed(&["--open-files", "many"]);
        assert_eq!(bad, Err(BadUsage("--open-files".into())));
        let bad = parsed(&["--egress-port", "65536"]);
        assert_eq!(bad, Err(BadUsage("--egress-port".into())));
        assert_eq!(parsed(&["--version"]), Ok(Command::Version));
        assert_eq!(parsed(&["--kernel-banner"]), Ok(Command::KernelBanner));
        assert_eq!(parsed(&["--link-dir"]), Err(BadUsage("--link-dir".into())));
        assert_eq!(parsed(&["--frob"]), Err(BadUsage("--frob".into())));
    }
}
