//! `__serve-host DIR REPO [PROTOCOL]`: serves the granted refs of the host to `git fetch host` inside.
//! Standard input and output speak with the git inside. Never from the host repository itself:
//! from a repository made of the view and the granted refs.

use super::{argument, supervise::open};
use crate::error::CliError;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::served;
use sandbox_core::store::read_json;
use sandbox_core::view::serve_command;
use sandbox_git::{Git, HostEnv};
use std::ffi::OsString;
use std::path::Path;

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let (store, dir) = open(Path::new(argument(args, 0, "the sandbox's directory")?))?;
    let record = read_json(&dir.record())?.ok_or_else(|| CliError::new("the sandbox is half-made"))?;
    let sandbox = Sandbox::new(dir, record);
    let tree: usize = argument(args, 1, "the number of a tree")?.to_string_lossy().parse().unwrap_or(0);
    if tree >= sandbox.record.repos.len() || sandbox.at(tree).mount().directory {
        return Err(CliError::new("the sandbox has no such repository"));
    }
    let sandbox = sandbox.at(tree);
    let git = Git::new(HostEnv::from_vars(std::env::vars_os()))?;
    let served = served::for_inside(&git, &store, &sandbox)?;
    let mut command = serve_command(&git, served.path());
    if let Some(protocol) = args.get(2) {
        command = command.env("GIT_PROTOCOL", protocol);
    }
    Ok(command.pass_through()?)
}
