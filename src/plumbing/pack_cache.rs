//! The role that git calls by the name `git-sandbox-pack-cache` in place of `git pack-objects`: asks the mirror
//! that runs for the pack (`sandbox_mirror::cache`).

use sandbox_mirror::cache::{REPO_VAR, SOCKET_VAR, hook};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

pub fn run(argv: &[OsString]) -> ExitCode {
    let socket = std::env::var_os(SOCKET_VAR).map(PathBuf::from).unwrap_or_default();
    let repo = std::env::var(REPO_VAR).unwrap_or_default();
    match hook::run(&socket, &repo, argv) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: cannot run `git pack-objects`: {error}");
            ExitCode::from(128)
        }
    }
}
