//! Prints an error with all its causes on one line, as it belongs in a log.

use std::error::Error;
use std::fmt;

/// Displays `error: cause: cause of the cause`.
///
/// Errors of this project say what they were doing and keep the cause in `source`, not in their
/// own text, so that each layer is printed exactly once.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("read the cellar key")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn prints_every_cause_once() {
        let error = Outer(std::io::Error::other("the door is shut"));
        assert_eq!(
            Chain(&error).to_string(),
            "read the cellar key: the door is shut"
        );
    }
}
