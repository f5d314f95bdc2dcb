//! Being inside a sandbox: knowing it, and speaking to the agent.

use crate::error::CliError;
use sandbox_core::connection::Connection;
use sandbox_core::launch::INSIDE;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The name of the sandbox that this process is in.
pub fn name() -> Option<String> {
    if !agent_socket().exists() {
        return None;
    }
    Some(std::env::var("GIT_SANDBOX").unwrap_or_else(|_| "unknown".into()))
}

/// Where PID 1 listens.
pub fn agent_socket() -> PathBuf {
    Path::new(INSIDE).join("agent.sock")
}

/// Connects to PID 1.
pub fn connect() -> Result<Connection, CliError> {
    let socket = agent_socket();
    let stream = UnixStream::connect(&socket)
        .map_err(|error| CliError::new("cannot reach the sandbox's first process").cause(error.to_string()))?;
    Ok(Connection::new(stream)?)
}

/// Refuses a verb that belongs on the host.
pub fn refuse(verb: &str) -> Result<(), CliError> {
    match name() {
        Some(name) => Err(CliError::new(format!("already inside sandbox '{}'", crate::text::escape(&name))).hint(
            format!("`git sandbox {verb}` is for the host; inside there are `git sandbox push` and `git fetch host`"),
        )),
        None => Ok(()),
    }
}
