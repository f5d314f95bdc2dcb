//! Full disks: what is refused before it is begun, what is frozen, and that nothing is lost, left over or half done
//! however a disk fails; and what fills a machine on purpose.
//!
//! ```text
//! early    a disk with too little room: refused before anything is made, and made when there is room
//! frozen   the reserve of the host, inodes, the limit of one sandbox: frozen, told, and how it goes on
//! story    a day of commands, each of which first meets a broken disk: no block, no inode, no quota, read-only,
//!          and an EIO at the n-th write to it
//! bombs    processes, memory, output: the host goes on, the sandbox can be stopped
//! ```
//!
//! File systems are real ones, in files, which only root can mount; what needs none runs as any user.

mod bombs;
mod early;
mod frozen;
mod kit;
mod story;
