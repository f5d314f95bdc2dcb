//! A forward proxy for programs that are not trusted: lets out what a policy names, refuses the
//! rest, and writes each decision down before it takes effect. Knows nothing of sandboxes.
//!
//! ```text
//!   listener ──► head (strict) ──► decide (policy) ──► record ──► resolve ──► dial what was checked
//!                    │                                                            │
//!                    │ CONNECT: the first bytes must be a ClientHello             │
//!                    │          whose server name is the host      ◄──────────────┤ tunnel
//!                    └ absolute form: Host must be the target      ◄──────────────┘ one request
//! ```
//!
//! Both ways in go through [`policy::Policy::decide`]. What is ours is the policy and the strictness
//! of what comes from inside; HTTP messages, names and ClientHellos are read by kept libraries.
//!
//! Termination of TLS for single hosts will be put between "decided" and "tunnel": see `tunnel.rs`.
#![forbid(unsafe_code)]

pub mod address;
pub mod head;
pub mod hello;
mod plain;
pub mod policy;
mod record;
mod resolve;
pub mod rule;
mod serve;
mod stream;
mod tunnel;

pub use serve::{Advice, Config, Limits, ServeError, Who, serve};
