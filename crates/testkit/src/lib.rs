//! What tests stand on: a hermetic environment, repositories in every state that git knows,
//! a digest of a tree, a terminal, a web server under made-up names, the stand-in agent.
//!
//! ```text
//! TestEnv                      a temporary directory, removed with everything that runs in it
//!   home/                      $HOME: .gitconfig, src/<repository>…
//!   state/ cache/ config/      $XDG_*_HOME
//!   bin/                       git-sandbox, git-remote-sandbox: links to the program under test
//!   tmp/                       $TMPDIR
//! ```
//!
//! A test sees nothing of the machine but the programs on `PATH`. Which git comes first there is
//! chosen by `TESTKIT_GIT`, which program is tested by `GIT_SANDBOX_BIN`; without them it is
//! the first git of the machine and the program beside the test executable.
//!
//! A test that cannot run calls [`skip!`], which prints `SKIP: reason`; `cargo xtask test` counts
//! these lines. A test that ends a process ends it by its id, never by a name.
#![forbid(unsafe_code)]

mod agent;
mod corpus;
mod dice;
mod digest;
mod disk;
mod env;
mod filter;
mod gits;
mod guest;
mod output;
mod process;
mod pty;
mod repo;
mod states;
mod tls;
mod upstream;

pub use agent::StandIn;
pub use corpus::Corpus;
pub use dice::Dice;
pub use digest::{DIGEST_SCRIPT, tree_digest};
pub use disk::{Disk, Image};
pub use env::TestEnv;
pub use filter::Filters;
pub use gits::{Git, gits};
pub use guest::{guest_kernel, guest_kernel_below};
pub use output::Output;
pub use process::{Child, wait_until};
pub use pty::Pty;
pub use repo::{Repo, set_mtimes};
pub use states::State;
pub use tls::Origin;
pub use upstream::{Faults, GitDaemon, Upstream, begin, push_commit};

/// Ends the test as skipped: prints `SKIP: ` and the reason, and returns from the function.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("SKIP: {}", format_args!($($reason)*));
        return;
    }};
}

/// Returns where a program is, searching the standard directories and `PATH`.
pub fn which(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Into::into);
    std::env::split_paths(&path).chain(standard).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
