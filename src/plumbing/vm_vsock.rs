//! `__vm-vsock PLAN`: connects ports of a virtual machine with Unix sockets of the host. Standard input is the
//! listening socket for the VMM, standard output that for programs of the host if the plan says `incoming`; the plan is JSON
//! ([`sandbox_vhost::vsock::Plan`]).

use super::{argument, device};
use crate::error::CliError;
use std::ffi::OsString;

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let plan: sandbox_vhost::vsock::Plan = device::plan(argument(args, 0, "the plan")?)?;
    let (vmm, host) = device::take_over()?;
    sandbox_vhost::vsock::run(vmm.into(), host, &plan).map_err(|error| CliError::chain(&error))
}
