//! The client's side of the mirror: is it there, what has it, how is a clone made from it, and what git needs to know.
//!
//! ```text
//! admin      what its administrator asks of it
//! endpoint   where it is: http://HOST:PORT or unix:/PATH
//! request    one HTTP exchange with a deadline, whatever hangs
//! probe      healthy? what has it of this repository?
//! plan       from what is asked and offered to a clone, as a value
//! clone      applies a plan; falls back to the upstream
//! settings   git's configuration of who uses a mirror
//! session    asks the mirror's administrator for one
//! front      a listener of ours that leads to it: for git, which speaks HTTP over TCP only, and for sandboxes
//! ```
//!
//! Nothing here needs the mirror to be up: whatever is wrong with it is an answer (`Why`), and the caller goes direct.

pub mod admin;
pub mod clone;
pub mod endpoint;
pub mod front;
pub mod plan;
pub mod probe;
pub(crate) mod request;
pub mod session;
pub mod settings;

pub use endpoint::Endpoint;
pub use probe::{Asker, Offer, Why, offer, probe};
