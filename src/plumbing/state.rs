//! `__repo-state`: what git inside has to say about one repository. Reads a question, prints the
//! answer; runs inside as an ordinary session, without any privilege.

use crate::error::CliError;
use sandbox_agent::repo_state;
use sandbox_protocol::{RepoQuestion, unescape_bytes};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Bytes of a question at most: the ids of 100 000 granted refs.
const MAX_QUESTION: u64 = 16 << 20;

pub fn run() -> Result<(), CliError> {
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_QUESTION).read_to_end(&mut text).map_err(CliError::io("read the question"))?;
    let question: RepoQuestion = serde_json::from_slice(&text)
        .map_err(|error| CliError::new("the question is not readable").cause(error.to_string()))?;
    let path = PathBuf::from(OsString::from_vec(unescape_bytes(&question.path)));
    let state = repo_state(&path, &question.granted).map_err(|error| CliError::chain(&error))?;
    let answer = serde_json::to_vec(&state)
        .map_err(|error| CliError::new("cannot write the answer").cause(error.to_string()))?;
    io::stdout().lock().write_all(&answer).map_err(CliError::io("write the answer"))
}
