//! The agent as a program of its own, for its tests: they run it as PID 1 of a namespace.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox_agent::run()
}
