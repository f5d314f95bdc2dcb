//! The agent as a program of its own, for its tests: they run it as PID 1 of a namespace.

use sandbox_protocol::{REPO_STATE_VERB, RepoQuestion, unescape_bytes};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some(REPO_STATE_VERB) {
        return sandbox_agent::run();
    }
    let question: RepoQuestion = serde_json::from_reader(std::io::stdin()).expect("a question in JSON");
    let path = PathBuf::from(std::ffi::OsString::from_vec(unescape_bytes(&question.path)));
    match sandbox_agent::repo_state(&path, &question.granted) {
        Ok(state) => {
            println!("{}", serde_json::to_string(&state).expect("a state is JSON"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
