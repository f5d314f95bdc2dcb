//! `__serve-host DIR REPO [PROTOCOL]`: serves the granted refs of the host to `git fetch host` inside.
//! Standard input and output speak with the git inside. Never from the host repository itself:
//! from a repository made of the view and the granted refs.

use super::{argument, supervise::open};
use crate::error::CliError;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::served;
use sandbox_core::store::read_json;
use sandbox_git::{Git, HostEnv};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let (store, dir) = open(Path::new(argument(args, 0, "the sandbox's directory")?))?;
    let record = read_json(&dir.record())?.ok_or_else(|| CliError::new("the sandbox is half-made"))?;
    let sandbox = Sandbox { dir, record };
    let git = Git::new(HostEnv::from_vars(std::env::vars_os()))?;
    let served = served::for_inside(&git, &store, &sandbox)?;
    let mut command = Command::new(git.program());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    if let Some(protocol) = args.get(2) {
        command.env("GIT_PROTOCOL", protocol);
    }
    let status = command
        .args(["-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "upload-pack", "--strict"])
        .arg(served.path())
        .status()
        .map_err(CliError::io("run `git upload-pack`"))?;
    if status.success() { Ok(()) } else { Err(CliError::new(format!("`git upload-pack` ended with {status}"))) }
}
