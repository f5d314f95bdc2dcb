//! `__rescue DIR SECONDS`: rescues what is not committed in a running sandbox. Standard input is a connection
//! to its supervisor; how it went is in the record of what is kept.

use super::{argument, supervise::open};
use crate::error::CliError;
use sandbox_core::connection::Connection;
use sandbox_core::rescue::{self, Effort};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, read_json};
use sandbox_core::{brought, commit_back, picture, work};
use sandbox_git::{Git, HostEnv};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Where nobody else was inside when it was seen what changed, what is brought home now is all that there will be:
/// after the end no helper need boot to ask again.
fn settle(connection: &mut Connection, git: &Git, store: &Store, sandbox: &Sandbox) -> Result<(), CliError> {
    if picture::seen_alone(sandbox) && work::git_changed(store, sandbox)? && !brought::is_home(git, store, sandbox) {
        commit_back::commit_back(connection, git, store, sandbox)?;
    }
    Ok(())
}

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(CliError::io("take over the connection"))?;
    let null = std::fs::File::open("/dev/null").map_err(CliError::io("open '/dev/null'"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| CliError::io("close standard input")(e.into()))?;
    let (store, dir) = open(Path::new(argument(args, 0, "the sandbox's directory")?))?;
    let seconds = argument(args, 1, "the time")?.to_str().and_then(|text| text.parse().ok());
    let seconds = seconds.ok_or_else(|| CliError::usage("the time is no number of seconds"))?;
    let record = read_json(&dir.record())?.ok_or_else(|| CliError::new("the sandbox is half-made"))?;
    let sandbox = Sandbox::new(dir, record);
    let git = Git::new(HostEnv::from_vars(std::env::vars_os()))?;
    let mut connection = Connection::new(UnixStream::from(socket))?;
    let effort = Effort::live(Duration::from_secs(seconds));
    let rescued = rescue::run_all(&mut connection, &git, &store, &sandbox, effort);
    if sandbox.record.guest_disk {
        settle(&mut connection, &git, &store, &sandbox)?;
    }
    rescued.map_err(|error| CliError::chain(&error))?;
    Ok(())
}
