//! What a process says, shown as it comes: its bytes as they are, or every event as a line of JSON.

use casemate::base::exit::Exit;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::ending::{Ending, encode};
use crate::failure::Failure;
use crate::output::{Pipe, json_line, tell};
use crate::screen::size;

/// One of a process's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

impl Output {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where it is shown.
pub struct Show {
    stdout: Pipe,
    stderr: Pipe,
    is_json: bool,
}

impl Show {
    pub fn new(is_json: bool) -> Result<Self, Failure> {
        Ok(Self {
            stdout: Pipe::stdout()?,
            stderr: Pipe::stderr()?,
            is_json,
        })
    }

    /// Shows output. False when nobody reads any more.
    pub async fn output(&mut self, output: Output, bytes: &[u8]) -> Result<bool, Failure> {
        if self.is_json {
            let (data, encoding) = encode(bytes);
            let event = json!({"event": output.as_str(), "data": data, "encoding": encoding});
            return self.event(&event).await;
        }
        match output {
            Output::Stdout => self.stdout.write(bytes).await,
            Output::Stderr => {
                // Who closed only this one reads the other still.
                self.stderr.write(bytes).await?;
                Ok(true)
            }
        }
    }

    /// Says how much of an output is not there any more.
    pub async fn lost(&mut self, output: Output, bytes: u64) -> Result<bool, Failure> {
        if bytes == 0 {
            return Ok(true);
        }
        if self.is_json {
            let event = json!({"event": "lost", "output": output.as_str(), "bytes": bytes});
            return self.event(&event).await;
        }
        tell(&format!(
            "{} of {} are lost: they were not read in time, or before they gave way to later ones",
            size(bytes),
            output.as_str()
        ));
        Ok(true)
    }

    /// Says how it ended, to programs only.
    pub async fn ended(&mut self, ending: &Ending) -> Result<bool, Failure> {
        if !self.is_json {
            return Ok(true);
        }
        let mut event = serde_json::to_value(ending).map_err(defect)?;
        if let Value::Object(fields) = &mut event {
            fields.insert("event".to_owned(), "exit".into());
        }
        self.event(&event).await
    }

    /// Says its pid, to programs only.
    pub async fn started(&mut self, pid: u32) -> Result<bool, Failure> {
        if !self.is_json {
            return Ok(true);
        }
        self.event(&json!({"event": "started", "pid": pid})).await
    }

    async fn event(&mut self, event: &impl Serialize) -> Result<bool, Failure> {
        self.stdout.write(&json_line(event)?).await
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err calls"
)]
fn defect(error: serde_json::Error) -> Failure {
    Failure::new(Exit::Software, format!("cannot write JSON: {error}"))
}
