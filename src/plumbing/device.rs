//! What the device processes of a virtual machine have in common: a plan as argument, sockets as standard
//! input and output.

use super::proxy;
use crate::error::CliError;
use serde::de::DeserializeOwned;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;

/// Reads a plan.
pub fn plan<T: DeserializeOwned>(text: &OsStr) -> Result<T, CliError> {
    let text = text.to_str().ok_or_else(|| CliError::usage("the plan of a device is no UTF-8"))?;
    serde_json::from_str(text).map_err(|error| CliError::usage(format!("the plan of a device is wrong: {error}")))
}

/// Takes the two sockets off the standard descriptors and closes everything else that was inherited.
pub fn take_over() -> Result<(OwnedFd, OwnedFd), CliError> {
    proxy::take_over().map_err(CliError::io("take over the sockets of a device"))
}
