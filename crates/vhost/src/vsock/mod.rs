//! A vsock device whose other end are Unix sockets of the host ("hybrid vsock", as Firecracker and Cloud
//! Hypervisor have it): the host's kernel needs no vsock of its own.
//!
//! ```text
//!   host: connect SOCKET, "CONNECT 1024\n" ──► guest: accept on port 1024      host reads "OK <port>\n"
//!   guest: connect to context 2, port 5000 ──► host: accept on SOCKET_5000
//! ```
//! A port of the guest on which nobody listens, and a socket of the host that is not there, are the same to
//! the other end: the connection is closed without a word.
//!
//! | file | what |
//! |---|---|
//! | `wire.rs` | the packets' header |
//! | `connection.rs` | one connection: credit, half closes |
//! | `mux.rs` | all of them, and how many there may be |
//! | `device.rs` | the vhost-user side |

mod connection;
mod device;
mod mux;
#[cfg(test)]
mod tests;
mod wire;

use crate::{ServeError, wall};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// What a vsock process is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The guest's context id: 3 or higher. Of no meaning outside of this one virtual machine.
    pub cid: u64,
    /// Programs of the host may connect to the guest.
    pub incoming: bool,
    /// Where connections of the guest go: to the socket `<this>_<port>`. `None`: it can make none.
    pub outgoing: Option<PathBuf>,
    /// Run by root: the uid and gid that it becomes.
    pub user: Option<(u32, u32)>,
    /// The pid of the process that starts it and that it must not outlive.
    pub parent: u32,
}

/// Serves the one VMM that connects to `vmm`, until it closes the connection. Programs of the host connect
/// to `host`, if there is one.
///
/// # Errors
///
/// A listener that cannot be watched, a VMM that breaks the protocol.
pub fn serve(
    vmm: UnixListener,
    host: Option<UnixListener>,
    cid: u64,
    outgoing: Option<PathBuf>,
) -> Result<(), ServeError> {
    device::serve(vmm, cid, mux::Mux::new(cid, host, outgoing)?)
}

/// Puts a wall around this process and serves a plan: the whole of the role. The process must have one thread. `host`
/// is of use only to a plan with [`Plan::incoming`].
///
/// # Errors
///
/// Those of [`serve`], a directory of sockets that cannot be opened, a wall that cannot be built.
pub fn run(vmm: UnixListener, host: OwnedFd, plan: &Plan) -> Result<(), ServeError> {
    let split = |path: &PathBuf| Some((path.parent()?.to_owned(), path.file_name()?.to_owned()));
    let outgoing = plan.outgoing.as_ref().and_then(split);
    let dirs: Vec<_> = outgoing.iter().map(|(dir, _)| ("outgoing", dir.as_path())).collect();
    wall::enter(&dirs, plan.user, plan.parent, wall::SOCKETS)?;
    // The only directory that is left.
    let outgoing = outgoing.map(|(_, name)| PathBuf::from("/0").join(name));
    serve(vmm, plan.incoming.then(|| host.into()), plan.cid, outgoing)
}
