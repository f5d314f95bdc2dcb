//! What tests have git call in place of the program.

use sandbox_mirror::cache::{REPO_VAR, SOCKET_VAR, hook};
use std::process::ExitCode;

fn main() -> ExitCode {
    let socket = std::env::var_os(SOCKET_VAR).unwrap_or_default();
    let repo = std::env::var(REPO_VAR).unwrap_or_default();
    let argv: Vec<_> = std::env::args_os().skip(1).collect();
    hook::run(socket.as_ref(), &repo, &argv).map_or(ExitCode::from(128), ExitCode::from)
}
