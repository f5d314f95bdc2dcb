//! `__vm-fs PLAN`: serves directories to a virtual machine, read-only. Standard input is the listening socket
//! for the VMM; the plan is JSON ([`sandbox_vhost::fs::Plan`]).

use super::{argument, device};
use crate::error::CliError;
use std::ffi::OsString;

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let plan: sandbox_vhost::fs::Plan = device::plan(argument(args, 0, "the plan")?)?;
    let (vmm, _) = device::take_over()?;
    sandbox_vhost::fs::run(vmm.into(), &plan).map_err(|error| CliError::chain(&error))
}
