//! The client's side: clones from a mirror, and without it whatever is wrong with it.
//!
//! What a fallback costs is counted in requests to the upstream: the same ones as a direct clone makes, and none more.

mod cloning;
mod inside;
mod kit;
mod source;
