//! The host process that owns one running sandbox: it launches the driver, holds the
//! sandbox's lock, relays between clients and the agent, keeps the main session's log, and
//! starts commit-back when a ref moved inside. There is no central daemon.
//!
//! ```text
//!  client ──ctl──┐                               ┌── session (pty or pipes)
//!  client ──ctl──┤ supervisor ──control channel──┤── session
//!  commit-back ──┘   │  │                        └── tool inside (`git push host`)
//!  proxy ──events──┘ │  └ log/main.log, log/events.jsonl (rings)
//!                    └ status.json
//!
//!  launching ─► running ─► bringing home ─► shutting down ─► dying ─► gone
//!               (relay)    (last            (TERM, grace)    (KILL)
//!                           commit-back)
//! ```
//!
//! It is one thread and one poll loop, and knows neither git nor the terminal: commit-back
//! runs in a child process that is an ordinary client, so that its memory is returned and
//! its crash harms nobody. The driver is handed in.
#![forbid(unsafe_code)]

mod agent;
mod attached;
mod bring;
mod children;
mod clients;
mod count;
mod disk;
mod ending;
mod events;
mod freeze;
mod log;
mod main_session;
mod memory;
mod peer;
mod rescue;
mod screen;
mod serve;
mod supervise;

pub use log::RingLog;
pub use screen::Screen;
pub use supervise::{Config, SuperviseError, supervise};
