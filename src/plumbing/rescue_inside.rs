//! `__rescue-inside`: a commit of what is not committed in one repository. Reads a question, prints the
//! answer; runs inside as an ordinary session, without any privilege.

use crate::error::CliError;
use sandbox_agent::rescue;
use sandbox_protocol::RescueQuestion;
use std::io::{self, Read, Write};

/// Bytes of a question at most.
const MAX_QUESTION: u64 = 16 << 20;

pub fn run() -> Result<(), CliError> {
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_QUESTION).read_to_end(&mut text).map_err(CliError::io("read the question"))?;
    let question: RescueQuestion = serde_json::from_slice(&text)
        .map_err(|error| CliError::new("the question is not readable").cause(error.to_string()))?;
    let answer = rescue(&question).map_err(|error| CliError::chain(&error))?;
    let answer = serde_json::to_vec(&answer)
        .map_err(|error| CliError::new("cannot write the answer").cause(error.to_string()))?;
    io::stdout().lock().write_all(&answer).map_err(CliError::io("write the answer"))
}
