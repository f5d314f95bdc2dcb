//! `__commit-back DIR`: brings a running sandbox's commits home. Standard input is a connection to
//! its supervisor; each ref that moved is a line on standard output.

use super::{argument, supervise::open};
use crate::error::CliError;
use crate::verbs::fetch::told;
use sandbox_core::commit_back::commit_back;
use sandbox_core::connection::Connection;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::read_json;
use sandbox_git::{Git, HostEnv};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(CliError::io("take over the connection"))?;
    let null = std::fs::File::open("/dev/null").map_err(CliError::io("open '/dev/null'"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| CliError::io("close standard input")(e.into()))?;
    let (store, dir) = open(Path::new(argument(args, 0, "the sandbox's directory")?))?;
    let record = read_json(&dir.record())?.ok_or_else(|| CliError::new("the sandbox is half-made"))?;
    let sandbox = Sandbox { dir, record };
    let git = Git::new(HostEnv::from_vars(std::env::vars_os()))?;
    let mut connection = Connection::new(UnixStream::from(socket))?;
    let brought = commit_back(&mut connection, &git, &store, &sandbox)?;
    print!("{}", told(&brought)?);
    Ok(())
}
