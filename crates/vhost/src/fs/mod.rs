//! A virtio-fs device that serves directories of the host, strictly read-only.
//!
//! ```text
//!   /                      made up, holds the exports
//!   ├── <name> ──► directory of the host     layers: nothing ever changes, believed for ever
//!   └── <name> ──► directory of the host     system: looked at again after a second
//! ```
//! | file | what |
//! |---|---|
//! | `wire.rs` | the protocol's layouts |
//! | `node.rs` | the inodes that the guest knows, without a descriptor each |
//! | `server.rs` | a request in, a reply out: everything but the queue |
//! | `device.rs` | the vhost-user side |

mod cache;
mod device;
mod list;
mod node;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use crate::{ServeError, wall};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

pub use node::Owners;
pub use server::Limits;

/// How long the guest may believe what it was told of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// For ever: nothing in it changes as long as the guest lives, and what is not there never appears.
    Always,
    /// One second, then it asks again.
    Auto,
}

/// A directory that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its name below the root: one path component.
    pub name: String,
    /// The directory on the host.
    pub dir: PathBuf,
    /// How long the guest may believe.
    pub cache: Cache,
}

/// What a file server process is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The exports.
    pub shares: Vec<Share>,
    /// Whether the guest sees extended attributes (`user.*`, access control lists, file capabilities).
    /// False saves one request for each file that an overlay in the guest looks up for the first time.
    pub xattrs: bool,
    /// Run by root: the uid and gid that it becomes, whose files and rights the guest gets.
    pub user: Option<(u32, u32)>,
    /// The pid of the process that starts it and that it must not outlive.
    pub parent: u32,
}

/// An opened export.
#[derive(Debug)]
pub struct Export {
    /// Its name below the root.
    pub name: String,
    /// The directory (`O_PATH` is enough).
    pub root: OwnedFd,
    /// How long the guest may believe.
    pub cache: Cache,
}

/// Serves exports to the one VMM that connects to `listener`, until it closes the connection.
///
/// # Errors
///
/// A name that is no name, a directory that cannot be looked at, a VMM that breaks the protocol.
pub fn serve(
    listener: UnixListener,
    exports: &[Export],
    owners: Owners,
    xattrs: bool,
    limits: Limits,
) -> Result<(), ServeError> {
    for (index, export) in exports.iter().enumerate() {
        let again = exports[..index].iter().any(|other| other.name == export.name);
        if again || !is_name(&export.name) {
            return Err(ServeError::Name(export.name.clone()));
        }
    }
    let server = server::Server::new(exports, owners, xattrs, limits).map_err(std::io::Error::from)?;
    device::serve(listener, server)
}

/// Puts a wall around this process and serves a plan's directories: the whole of the role.
/// The process must have one thread.
///
/// # Errors
///
/// Those of [`serve`], a directory that cannot be opened, a wall that cannot be built.
pub fn run(vmm: UnixListener, plan: &Plan) -> Result<(), ServeError> {
    let dirs: Vec<_> = plan.shares.iter().map(|share| (share.name.as_str(), share.dir.as_path())).collect();
    let inside = wall::enter(&dirs, plan.user, plan.parent, wall::FILES)?;
    let with_root = plan.shares.iter().zip(inside.roots);
    let exports: Vec<_> =
        with_root.map(|(share, root)| Export { name: share.name.clone(), root, cache: share.cache }).collect();
    let limits = Limits { nodes: MAX_NODES, files: inside.descriptors / 2 };
    serve(vmm, &exports, Owners { unknown: inside.unknown }, plan.xattrs, limits)
}

/// Inodes that a guest may know: about 100 bytes each.
const MAX_NODES: usize = 1 << 20;

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}
