//! Roles of this program that users never type: processes that the supervisor, git or the
//! agent start. Each reads its connection from standard input.

pub mod bring;
mod check;
mod device;
pub mod mirror;
pub mod pack_cache;
mod picture_inside;
mod proxy;
pub mod remote;
mod rescue;
mod rescue_inside;
pub mod serve;
mod state;
mod supervise;
pub mod sync;
mod vm_fs;
mod vm_vsock;
pub mod watch;

use crate::error::CliError;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs a role by its name.
pub fn run(role: &str, args: &[OsString]) -> ExitCode {
    let outcome = match role {
        "__supervise" => supervise::run(args),
        "__check" => check::run(args),
        "__commit-back" => bring::run(args),
        "__sync" => sync::run(args),
        "__rescue" => rescue::run(args),
        "__serve-host" => serve::run(args),
        "__mirror" => mirror::run(args),
        "__proxy" => proxy::run(args),
        "__vm-fs" => vm_fs::run(args),
        "__vm-vsock" => vm_vsock::run(args),
        "__watch" => watch::run(args),
        watch::HOOK => return watch::hook(args),
        "__probe" => crate::probe::role(args),
        sandbox_protocol::REPO_STATE_VERB => state::run(),
        sandbox_protocol::RESCUE_VERB => rescue_inside::run(),
        sandbox_protocol::PICTURE_VERB => picture_inside::run(),
        other => Err(CliError::usage(format!("unknown role '{}'", crate::text::escape(other)))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            ExitCode::from(error.status)
        }
    }
}

/// The argument at `n`, or wrong usage.
fn argument<'a>(args: &'a [OsString], n: usize, what: &str) -> Result<&'a OsString, CliError> {
    args.get(n).ok_or_else(|| CliError::usage(format!("{what} is missing")))
}
