//! What the device processes of a virtual machine have in common: a plan as argument, sockets as standard
//! input and output.

use crate::error::CliError;
use serde::de::DeserializeOwned;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// Reads a plan.
pub fn plan<T: DeserializeOwned>(text: &OsStr) -> Result<T, CliError> {
    let text = text.to_str().ok_or_else(|| CliError::usage("the plan of a device is no UTF-8"))?;
    serde_json::from_str(text).map_err(|error| CliError::usage(format!("the plan of a device is wrong: {error}")))
}

/// Takes the two sockets off the standard descriptors and closes everything else that was inherited.
pub fn take_over() -> Result<[OwnedFd; 2], CliError> {
    let take = || -> io::Result<[OwnedFd; 2]> {
        sandbox_sys::fork::close_from(3, None)?;
        let sockets =
            [rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?, rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?];
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(sockets)
    };
    take().map_err(CliError::io("take over the sockets of a device"))
}
