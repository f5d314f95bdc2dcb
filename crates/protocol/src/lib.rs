//! What host and agent say to each other: framing, messages, version. No I/O.
//!
//! ```text
//! frame   = u32 length (of what follows, little endian, ≤ 64 KiB + 5)
//!           u8  type   (control, stdin, stdout, stderr)
//!           u32 stream (0 = the connection itself; host-made ids are even, agent-made ids odd)
//!           payload    (control: one JSON object; data: raw bytes, at most 64 KiB)
//! ```
//!
//! A connection starts with `Hello` from both sides. A *session* is one process tree
//! that the agent started (`Exec`), named by the stream that asked for it. Each of its
//! data directions has a credit window of [`WINDOW`] bytes: a sender stops when it has
//! sent that much more than was granted back by `Credit`. Control messages are JSON so that
//! an old peer can ignore fields that it does not know (no positional codec).
//!
//! The same protocol is spoken on three legs: client ⇄ supervisor (Unix socket `ctl`),
//! supervisor ⇄ agent (socketpair, or vsock of a VM), and tool inside ⇄ agent (Unix
//! socket `/run/git-sandbox/agent.sock`). The supervisor renumbers streams between legs.
#![forbid(unsafe_code)]

mod agent_config;
pub mod event;
mod frame;
mod inside;
mod message;
mod picture;

pub use agent_config::*;
pub use event::Event;
pub use frame::{
    Decoder, Frame, FrameError, FrameType, HEADER, MAX_PAYLOAD, encode, encode_control, try_encode_control,
};
pub use inside::*;
pub use message::*;
pub use picture::*;

/// The first and the last protocol version that this build speaks.
pub const VERSIONS: (u32, u32) = (1, 1);

/// Files of a git directory that say that a git command is at work.
pub const GIT_LOCKS: [&str; 4] = ["index.lock", "HEAD.lock", "packed-refs.lock", "config.lock"];

/// Bytes that may be under way in one direction of one stream without a `Credit`.
pub const WINDOW: u64 = 256 * 1024;
