//! The one room with `unsafe`: what the kernel offers and `rustix` does not, made safe.
//! Knows nothing of sandboxes, git or the protocol.

pub mod beneath;
pub mod caps;
pub mod child;
pub mod clock;
pub mod copy;
pub mod fault;
pub mod fork;
pub mod freeze;
pub mod heap;
pub mod landlock;
pub mod lock;
pub mod map;
pub mod mappings;
pub mod mount;
pub mod namespace;
pub mod notify;
pub mod probe;
pub mod process;
pub mod program;
pub mod pty;
pub mod seccomp;
pub mod signals;
pub mod socket;
pub mod vsock;
pub mod writeback;
