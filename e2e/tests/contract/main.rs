//! The contract of a sandbox, asked of every driver through the command line.
//!
//! ```text
//! states   a working tree in every state that git knows: inside is what was outside
//! ordinary what people do in a working tree works inside
//! wall     what must not be possible inside is not
//! probes   the same as one table, each line with a control that shows that it can fail
//! ci       results copied out, a report, what must stand
//! tools    what people work with still works inside
//! life     spawn, detach, exec, logs, wait, stop, start, crash, drop
//! guest    a virtual machine is killed and goes on
//! landing  commits come back, and nothing else of the host changes
//! merging  onto a host tree with uncommitted work
//! leaving  the conversation at the end of an interactive shell
//! agents   command-line agents at work, shown by the stand-in
//! egress   what a sandbox with an allowed network reaches, and what not
//! agents_verbs  what tells about many at work: logs of several, events, list, wait
//! filesystem the merged tree is an ordinary file system
//! checks   a command that has to pass before a merge lands, or tells which attempt is best
//! checkpoints  states that a sandbox goes back to, several forks of one moment
//! fork     one more sandbox from the state of another
//! auto_commit  what an agent leaves uncommitted
//! views    an overlay or a full copy: which, where, and what differs
//! rescue   what is not committed, and what only the sandbox has, survives every way of ending
//! together several sandboxes at once: what collides, merging many, picking
//! review   what deserves a look is told before it is landed, and nothing of it runs
//! undo     what verbs did to the host is taken back exactly, or refused
//! supervision  who dies, hangs up, is suspended or stands still, and what goes on
//! hostile  random repositories that mean harm change nothing of the host
//! host_life    what happens to the host's repository, state and clock meanwhile
//! instant  files, index and branch of one instant, while git is at work
//! with     further repositories and directories that come along
//! errors   one text per bad input
//! ```
//!
//! A new driver is one line in [`over_drivers`] and [`over_views`]. What it cannot do it must refuse by name.
//! A driver that has an overlay is asked a second time with a full copy in its place (`sandbox.view = copy`): what
//! a tree and its repository are, always; the rest with `cargo xtask test --all`. A working tree's states are asked
//! a third time with a watcher (`sandbox.watch = always`) and after a change: some always, the rest with `--all`.

use sandbox_testkit::{Output, Repo, State, TestEnv};
use std::path::Path;

/// Makes a module of tests for every driver out of functions that take a [`Subject`].
macro_rules! over_drivers {
    ($($test:ident),* $(,)?) => {
        over_drivers!(@way namespace, Subject::new("namespace"), $($test),*);
        mod qemu_at_length {
            $(
                #[test]
                #[ignore = "boots guests: `cargo xtask test --all`"]
                fn $test() { $crate::with_guest(super::$test) }
            )*
        }
    };
    (@way $module:ident, $subject:expr, $($test:ident),*) => {
        mod $module {
            use $crate::Subject;
            $(#[test] fn $test() { super::$test(&$subject) })*
        }
    };
}

/// Of what is asked of every driver, what boots guests by default too.
macro_rules! over_guests {
    ($($test:ident),* $(,)?) => {
        mod qemu {
            $(#[test] fn $test() { $crate::with_guest(super::$test) })*
        }
    };
}

/// What only guests are asked, and only with `--all`.
macro_rules! over_guests_at_length {
    ($($test:ident),* $(,)?) => {
        mod qemu_at_length {
            $(
                #[test]
                #[ignore = "boots guests: `cargo xtask test --all`"]
                fn $test() { $crate::with_guest(super::$test) }
            )*
        }
    };
}

/// With a watcher; all but some only with `--all`.
macro_rules! over_watched_at_length {
    ($($test:ident),*; always $($always:ident),*) => {
        over_drivers!(@way namespace_watched, Subject::watched("namespace"), $($always),*);
        mod namespace_watched_at_length {
            $(
                #[test]
                #[ignore = "with a watcher: `cargo xtask test --all`"]
                fn $test() { super::$test(&$crate::Subject::watched("namespace")) }
            )*
        }
    };
}

/// The same, with each view of a driver that has two.
macro_rules! over_views {
    ($($test:ident),* $(,)?) => {
        over_drivers!($($test),*);
        over_drivers!(@way namespace_copy, Subject::with_copies("namespace"), $($test),*);
    };
}

/// The same; the full copy only with `--all`.
macro_rules! over_views_at_length {
    ($($test:ident),* $(,)?) => {
        over_drivers!($($test),*);
        mod namespace_copy {
            $(
                #[test]
                #[ignore = "with a full copy instead of an overlay: `cargo xtask test --all`"]
                fn $test() { super::$test(&$crate::Subject::with_copies("namespace")) }
            )*
        }
    };
}

mod agents;
mod agents_verbs;
mod auto_commit;
mod checkpoints;
mod checks;
mod ci;
mod egress;
mod errors;
mod filesystem;
mod fork;
mod guest;
mod host_life;
mod hostile;
mod instant;
mod landing;
mod leaving;
mod life;
mod merging;
mod ordinary;
mod probes;
mod rescue;
mod resolving;
mod review;
mod secrecy;
mod states;
mod supervision;
mod together;
mod tools;
mod undo;
mod views;
mod wall;
mod with;

/// A driver under test, in an environment of its own.
pub struct Subject {
    env: TestEnv,
    driver: &'static str,
    watched: bool,
    copied: bool,
}

/// Runs a test with the QEMU driver and emulated guests, or says why it cannot.
fn with_guest(test: fn(&Subject)) {
    let kernel = match sandbox_testkit::guest_kernel() {
        Ok(kernel) => kernel,
        Err(why) => sandbox_testkit::skip!("a guest: {why}"),
    };
    // One guest at a time: each is as busy as the machine allows.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let subject = Subject::new("qemu");
    subject.set(&format!(
        "driver = qemu\n[sandbox \"vm\"]\n\tkernel = {}\n\taccel = tcg\n\tmemory = 768m",
        kernel.display()
    ));
    test(&subject);
}

impl Subject {
    fn new(driver: &'static str) -> Self {
        Self { env: TestEnv::new(), driver, watched: false, copied: false }
    }

    /// As [`Subject::new`]; every sandbox has a full copy and no overlay.
    fn with_copies(driver: &'static str) -> Self {
        let subject = Self { copied: true, ..Self::new(driver) };
        subject.set("view = copy");
        subject
    }

    /// As [`Subject::new`]; each spawn starts a watcher, if there is none.
    fn watched(driver: &'static str) -> Self {
        let subject = Self { watched: true, ..Self::new(driver) };
        subject.set("watch = always");
        subject
    }

    fn set(&self, line: &str) {
        let config = self.env.home().join(".gitconfig");
        let text = std::fs::read_to_string(&config).expect("it was just made");
        std::fs::write(&config, format!("{text}[sandbox]\n\t{line}\n")).expect("it was just made");
    }

    /// A repository in a state, at `home/src/repo`.
    #[track_caller]
    fn repo(&self, state: State) -> Repo<'_> {
        state.build(&self.env, "repo")
    }

    /// `git sandbox spawn <args> -- sh -c <script>`.
    #[track_caller]
    fn spawn(&self, repo: &Repo, args: &[&str], script: &str) -> Output {
        self.spawn_in(repo.dir(), args, script)
    }

    /// The same in another directory.
    #[track_caller]
    fn spawn_in(&self, dir: &Path, args: &[&str], script: &str) -> Output {
        let head = ["spawn", "--driver", self.driver];
        self.env.sandbox(dir, &[&head, args, &["--", "sh", "-c", script]].concat())
    }

    /// An idle sandbox in the background.
    #[track_caller]
    fn idle(&self, repo: &Repo, name: &str) {
        repo.sandbox(&["spawn", "--driver", self.driver, "-d", name]).ok();
    }

    /// A shell script in a sandbox that exists.
    #[track_caller]
    fn exec(&self, repo: &Repo, name: &str, script: &str) -> Output {
        repo.sandbox(&["exec", name, "--", "sh", "-c", script])
    }
}
