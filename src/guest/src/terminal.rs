//! What is particular about a process's terminal: its size, and the end of its input.
//!
//! A terminal's input does not end, whatever is written to it. What stands for an end is a character (`VEOF`, Ctrl-D as a
//! rule), at which the terminal hands whoever reads a line what there is of it; nothing at all is what programs take for
//! the end of a file (termios(3), canonical mode).
//!
//! gVisor tells nobody of a new size, nobody when the leader of a terminal's session is gone, and not which group is in
//! the foreground either. What Linux does there is done here, for every group of the session.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;

use casemate_link::process::PtySize;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};

use crate::{kernel, sys};

/// The character that switches a special character off (`_POSIX_VDISABLE`).
const DISABLED: u8 = 0;

/// Ctrl-D, for a terminal that does not say.
const CTRL_D: u8 = 4;

/// A size as the kernel takes it.
pub(crate) fn window(size: PtySize) -> libc::winsize {
    libc::winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Gives the terminal of a session another size, and tells its programs where the kernel does not. Those that do not want to
/// know are not disturbed (signal(7), SIGWINCH).
pub(crate) fn resize(master: impl AsFd, session: i32, size: PtySize) -> io::Result<()> {
    sys::set_terminal_size(master.as_fd(), &window(size))?;
    if kernel::is_gvisor() {
        signal_session(session, libc::SIGWINCH);
    }
    Ok(())
}

/// Signals every process group of a session: an interactive shell has one for each job.
pub(crate) fn signal_session(session: i32, signum: i32) {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let groups: BTreeSet<i32> = stats
        .filter_map(|stat| group_and_session(&stat))
        .filter_map(|(group, of)| (of == session).then_some(group))
        .collect();
    for group in groups {
        // One that is gone meanwhile need not hear it.
        let _ = sys::signal_group(group, signum);
    }
}

/// The process group and the session of a process (proc(5), /proc/pid/stat, fields 5 and 6).
fn group_and_session(stat: &str) -> Option<(i32, i32)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// What to write for the end of the input. Once is enough for a program that waits at the beginning of a line, or that
/// takes characters as they come. With a part of a line before it, the first only hands that part over, and the second,
/// with nothing before it, is the end; one too many would end the program that reads next.
pub(crate) fn end_of_input(master: impl AsFd, at_line_start: bool) -> Vec<u8> {
    let settings = tcgetattr(master).ok();
    let by_lines = settings
        .as_ref()
        .is_some_and(|settings| settings.local_flags.contains(LocalFlags::ICANON));
    let character = settings.map_or(CTRL_D, |settings| {
        let all = settings.control_chars;
        let end = all.get(SpecialCharacterIndices::VEOF as usize);
        end.copied().unwrap_or(CTRL_D)
    });
    match character {
        DISABLED => Vec::new(),
        end if by_lines && !at_line_start => vec![end; 2],
        end => vec![end],
    }
}

/// Whether a line begins after these bytes, which are not none.
pub(crate) fn ends_line(data: &[u8]) -> bool {
    matches!(data.last(), Some(b'\n' | b'\r' | &CTRL_D))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_sessions_are_found_whatever_the_program_is_called() {
        assert_eq!(
            group_and_session("7 (a) b) R 1 12 11 0 0 0"),
            Some((12, 11))
        );
        assert_eq!(group_and_session("7 (a R 1"), None);
    }

    #[test]
    fn a_line_ends_where_a_reader_gets_it() {
        assert!(ends_line(b"words\n") && ends_line(b"\r") && ends_line(b"words\x04"));
        assert!(!ends_line(b"words") && !ends_line(b"\nw"));
    }
}
