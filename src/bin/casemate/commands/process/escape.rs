//! The way out of a terminal whose every key goes to the program: `~.` at the beginning of a line, as
//! in ssh. Pure.

/// Begins an escape, after a line's end.
const ESCAPE: u8 = b'~';

/// What was typed, looked at for escapes.
#[derive(Debug)]
pub struct Escapes {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the beginning of a line.
    Start,
    /// After the escape character there, which is kept back.
    Escape,
    /// Elsewhere.
    Within,
}

/// What to do with what was typed.
#[derive(Debug, PartialEq, Eq)]
pub struct Typed {
    /// For the program.
    pub bytes: Vec<u8>,
    /// Whether to hang up after it.
    pub hangs_up: bool,
}

impl Escapes {
    pub const fn new() -> Self {
        Self {
            state: State::Start,
        }
    }

    /// Looks at the next bytes.
    pub fn read(&mut self, typed: &[u8]) -> Typed {
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (self.state, byte) {
                (State::Start, ESCAPE) => {
                    self.state = State::Escape;
                    continue;
                }
                (State::Escape, b'.') => {
                    return Typed {
                        bytes,
                        hangs_up: true,
                    };
                }
                // Twice is once.
                (State::Escape, ESCAPE) | (State::Start | State::Within, _) => {}
                (State::Escape, _) => bytes.push(ESCAPE),
            }
            bytes.push(byte);
            self.state = match byte {
                b'\r' | b'\n' => State::Start,
                _ => State::Within,
            };
        }
        Typed {
            bytes,
            hangs_up: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(typed: &[u8], step: usize) -> Typed {
        let mut escapes = Escapes::new();
        let mut bytes = Vec::new();
        for piece in typed.chunks(step) {
            let typed = escapes.read(piece);
            bytes.extend(typed.bytes);
            if typed.hangs_up {
                return Typed {
                    bytes,
                    hangs_up: true,
                };
            }
        }
        Typed {
            bytes,
            hangs_up: false,
        }
    }

    #[test]
    fn only_at_the_beginning_of_a_line_it_hangs_up() {
        for (typed, sent, hangs_up) in [
            (&b"~."[..], &b""[..], true),
            (b"ls\r~.x", b"ls\r", true),
            (b"ls ~.", b"ls ~.", false),
            (b"~~.", b"~.", false),
            (b"\r~~~", b"\r~~", false),
            (b"~\r~.", b"~\r", true),
            (b"~a\x03\x04\x1a", b"~a\x03\x04\x1a", false),
        ] {
            for step in 1..=typed.len() {
                let bytes = sent.to_vec();
                assert_eq!(read(typed, step), Typed { bytes, hangs_up }, "{typed:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn everything_else_goes_through(typed in "[^~]*", step in 1_usize..9) {
            let bytes = typed.into_bytes();
            prop_assert_eq!(read(&bytes, step).bytes, bytes);
        }
    }
}
