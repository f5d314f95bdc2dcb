//! `git-remote-sandbox`: what git looks for when it meets `sandbox::NAME`. Becomes the
//! `git-sandbox` beside it, which knows the rest.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let beside =
        std::env::current_exe().ok().map(|path| path.with_file_name("git-sandbox")).filter(|path| path.exists());
    let program = beside.unwrap_or_else(|| "git-sandbox".into());
    let error = Command::new(&program).arg0("git-remote-sandbox").args(std::env::args_os().skip(1)).exec();
    eprintln!("error: cannot run '{}'\ncaused by: {error}", program.display());
    eprintln!("hint: `cargo install --path .` installs both programs");
    ExitCode::from(128)
}
