//! Our own terminal: its size, and the mode in which every key goes to the program.

use std::io::{self, IsTerminal};

use casemate::base::exit::Exit;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde::Serialize;

use crate::failure::Failure;

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    pub rows: u16,
    pub cols: u16,
}

/// What a terminal is taken for whose size nobody knows.
const USUAL: Size = Size { rows: 24, cols: 80 };

/// The size of the terminal that we stand in.
pub fn size() -> Size {
    let known = [
        tcgetwinsize(io::stdout()),
        tcgetwinsize(io::stdin()),
        tcgetwinsize(io::stderr()),
    ];
    let sizes = known.into_iter().flatten().map(|size| Size {
        rows: size.ws_row,
        cols: size.ws_col,
    });
    let mut sizes = sizes.filter(|size| size.rows > 0 && size.cols > 0);
    sizes.next().unwrap_or(USUAL)
}

/// The terminal at standard input in raw mode. Dropped, on whatever way out, it is as it was before.
pub struct Raw(Termios);

impl Raw {
    /// # Errors
    /// When standard input is no terminal.
    pub fn begin(otherwise: &str) -> Result<Self, Failure> {
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(format!(
                "standard input is no terminal; {otherwise}"
            )));
        }
        let failed = |error: rustix::io::Errno| {
            Failure::new(
                Exit::IoError,
                format!("cannot change the terminal's mode: {error}"),
            )
        };
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
