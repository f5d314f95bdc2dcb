//! Sandboxes as values and as state on disk. Knows no terminal, no `$HOME`, no driver.
//!
//! ```text
//! capture ─► stack ─► launch ─► work ─► commit-back ─► integrate ─► drop
//! ```
#![forbid(unsafe_code)]

pub mod connection;
pub mod driver;
pub mod host_view;
pub mod id;
pub mod launch;
pub mod record;
pub mod sandbox;
pub mod store;
