//! The agent as a program of its own, for its tests: they run it as PID 1 of a namespace.

use sandbox_protocol::{REPO_STATE_VERB, RESCUE_VERB, RepoQuestion, RescueQuestion, unescape_bytes};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(REPO_STATE_VERB) => {}
        Some(RESCUE_VERB) => return rescue(),
        _ => return sandbox_agent::run(),
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

fn rescue() -> ExitCode {
    let question: RescueQuestion = serde_json::from_reader(std::io::stdin()).expect("a question in JSON");
    match sandbox_agent::rescue(&question) {
        Ok(answer) => {
            println!("{}", serde_json::to_string(&answer).expect("an answer is JSON"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
