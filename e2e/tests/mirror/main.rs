//! The mirror as those who run it and those who clone from it see it: the real program, real upstreams on loopback,
//! several kinds of clients.
//!
//! ```text
//! packaging   the unit, the manifests and the image recipe are what their readers take
//! ```

mod packaging;
mod tools;
