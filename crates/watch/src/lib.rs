//! What changed in a directory tree since a token: one process per tree, asked over a socket.
//!
//! ```text
//!  tree ──inotify──► Watcher ── log of marks ──► answer(token) = marks since, new token
//!                      │ queue lost, limit, mount, moved …         or: doubt, why
//!                      └──────────────────────────────────────────────────▲
//! ```
//!
//! The kernel queues an event before the call that caused it returns; so a question that is answered after
//! the queue was read to its end knows everything that had returned before the question. What the kernel
//! says nothing about (writes through shared mappings) is looked up in `/proc` with each question. A token
//! is a random instance and a number: another watcher never answers for it. What nothing tells is found by
//! looking at all files from time to time.
//!
//! Knows neither sandboxes nor git.
//!
//! | module | is for |
//! |---|---|
//! | `wire` | tokens, questions and answers, as bytes |
//! | `log` | marks in the order in which they came |
//! | `dirs` | which watch stands for which directory |
//! | `watcher` | events become marks; answers; a look at all files from time to time |
//! | `mapped` | files that may be written through a mapping |
//! | `serve` | the process: sockets, idle end |
//! | `ask` | the client |

#![forbid(unsafe_code)]

mod ask;
mod dirs;
mod log;
mod mapped;
mod serve;
mod watcher;
mod wire;

pub use ask::{ask, status, stop};
pub use log::{Kind, Mark};
pub use serve::{Serve, serve};
pub use watcher::{Config, Sweeps, WatchError, Watcher, is_local, limits};
pub use wire::{Answer, Root, Status, Token};
