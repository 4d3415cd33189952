//! What is particular about a process's terminal: its size, and the end of its input.
//!
//! A terminal's input does not end, whatever is written to it. What stands for an end is a character (`VEOF`, Ctrl-D as a
//! rule), at which the terminal hands whoever reads a line what there is of it; nothing at all is what programs take for
//! the end of a file (termios(3), canonical mode).

use std::io;
use std::os::fd::AsFd;

use casemate_link::process::PtySize;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};

use crate::sys;

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

/// Gives a terminal another size, of which its foreground programs hear.
pub(crate) fn resize(master: impl AsFd, size: PtySize) -> io::Result<()> {
    sys::set_terminal_size(master.as_fd(), &window(size))
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
