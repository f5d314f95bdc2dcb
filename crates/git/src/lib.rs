//! The `git` room: runs git hermetically, and reads the few formats of git that are cheaper to read
//! than to ask for. Knows ids, refs, configuration listings and the index; knows nothing of sandboxes.
//!
//! ```text
//! HostEnv ─► Git ─► GitCommand (one constructor, a reason per flag) ─► typed result | GitError
//!
//! Oid, RefName     values that were checked once
//! refs             the ref store: loose and packed files, else one `for-each-ref`
//! config           `config --list -z --show-scope --show-origin`, and writing such a file
//! pack             whether the files of packs are whole
//! keep             marks on packs that no ref names yet
//! ignored          which paths the ignore rules of a working tree hide
//! index            the index file v2 to v4: ids, and stat data that can be rewritten in place
//! ```
//!
//! Nothing here reads the environment or `$HOME`: what git may know of it is handed in as [`HostEnv`].
#![forbid(unsafe_code)]

mod command;
pub mod config;
mod environ;
mod escape;
mod hash;
mod ignored;
pub mod index;
pub mod keep;
mod oid;
pub mod pack;
mod refname;
pub mod refs;
mod version;

pub use command::{Git, GitCommand, GitError, Output, Running};
pub use environ::HostEnv;
pub use escape::{is_printable, printable};
pub use hash::{hash_file, hash_object};
pub use ignored::ignored;
pub use oid::{ObjectFormat, Oid};
pub use refname::RefName;
pub use version::{MINIMUM, Version};

/// Returns the SHA-256 of bytes: for keys and fingerprints, where no repository says which hash.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}
