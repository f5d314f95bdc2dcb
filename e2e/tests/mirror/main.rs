//! The mirror as those who run it and those who clone from it see it: the real program, real upstreams on loopback,
//! several kinds of clients.
//!
//! ```text
//! client      clones from a mirror, and without it whatever is wrong with it
//! clients     of other makes: each checks out what git does
//! load        many at once under force-pushes and repacking; killed at random
//! operate     health, numbers, the page, the end
//! packaging   the unit, the manifests and the image recipe are what their readers take
//! scratch     what a session pushed is its own, is not lost, and is saved, fetched, promoted and dropped
//! ssh         an upstream that is asked with a key, by a host that shows the right one
//! way         registered, cloned, refreshed after a force-push, served without its upstream, started again
//! ```

mod client;
mod clients;
mod load;
mod operate;
mod packaging;
mod scratch;
mod ssh;
mod stand;
mod tools;
mod way;
