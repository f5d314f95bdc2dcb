//! `__picture-inside`: what one tree has that was not captured. Reads a question, prints a picture; runs inside as an
//! ordinary session, without any privilege.

use crate::error::CliError;
use sandbox_protocol::PictureQuestion;
use std::io::{self, BufWriter, Read, Write};

/// Bytes of a question at most.
const MAX_QUESTION: u64 = 16 << 20;

pub fn run() -> Result<(), CliError> {
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_QUESTION).read_to_end(&mut text).map_err(CliError::io("read the question"))?;
    let question: PictureQuestion = serde_json::from_slice(&text)
        .map_err(|error| CliError::new("the question is not readable").cause(error.to_string()))?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    sandbox_agent::picture(&question, &mut out).map_err(|error| CliError::chain(&error))?;
    out.flush().map_err(CliError::io("write the picture"))
}
