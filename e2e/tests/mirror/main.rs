//! The mirror as those who run it and those who clone from it see it: the real program, real upstreams on loopback,
//! several kinds of clients.
//!
//! ```text
//! client      clones from a mirror, and without it whatever is wrong with it
//! packaging   the unit, the manifests and the image recipe are what their readers take
//! ```

mod client;
mod packaging;
mod tools;
