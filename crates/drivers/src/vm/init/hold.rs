//! Lets the disk stand still while the host copies it.
//!
//! ```text
//!   host → guest   Ask as JSON, one a line, on a port of its own
//!   guest → host   Answer as JSON, one a line
//!
//!   Hold ─► no git command at work, or two seconds ─► the file system is frozen ─► Held
//!   Release, the host gone, the end ─► it goes on
//!   the disk is written out and unmounted ─► Off
//! ```
//! Programs go on too, until they write. What is on the disk then is of one instant, and needs no recovery.

use super::{Failure, locks};
use crate::vm::guest::{Answer, Ask, DISK, GuestSpec};
use sandbox_protocol::GIT_LOCKS;
use sandbox_sys::freeze;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a git command may take, before its lock is copied with everything.
const LOCKED: Duration = Duration::from_secs(2);

/// A line of the host is short.
const LONGEST_LINE: u64 = 4096;

/// What the disk does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    GoesOn,
    StandsStill,
    /// It goes on for good: nobody would be there to release it.
    Ending,
}

/// Whether the disk stands still; whoever has the lock changes it.
#[derive(Clone, Debug, Default)]
pub struct Hold {
    state: Arc<Mutex<State>>,
    /// The host's other end, which only one can open.
    port: Arc<OnceLock<File>>,
}

impl Hold {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers what the host asks on `port`, in a thread of its own.
    pub fn serve(&self, port: File, spec: &GuestSpec) -> Result<(), Failure> {
        if !spec.disk {
            return Ok(());
        }
        let other = port.try_clone().map_err(super::during("answer the host"))?;
        let _ = self.port.set(other);
        let (hold, trees) = (self.clone(), trees(spec));
        let run = move || while hold.answer(&port, &trees).unwrap_or(false) {};
        thread::Builder::new().name("hold".into()).spawn(run).map_err(super::during("answer the host"))?;
        Ok(())
    }

    /// From here on nothing stands still any more.
    pub fn end(&self) {
        let mut state = self.state();
        let _ = release(&mut state);
        *state = State::Ending;
    }

    /// Tells the host that everything is written out: the last word.
    pub fn off(&self) {
        // What it is about has happened, whether somebody hears it or not.
        if let (Some(mut port), Ok(mut said)) = (self.port.get(), serde_json::to_vec(&Answer::Off)) {
            said.push(b'\n');
            let _ = port.write_all(&said);
        }
    }

    /// One question; false at the end.
    fn answer(&self, port: &File, trees: &[(PathBuf, String)]) -> io::Result<bool> {
        let mut line = String::new();
        if BufReader::with_capacity(1, port).take(LONGEST_LINE).read_line(&mut line)? == 0 {
            // Nobody has the other end, for now.
            thread::sleep(Duration::from_millis(50));
            return Ok(true);
        }
        let done = match serde_json::from_str(&line)? {
            Ask::Hold => self.hold(trees).map(|locked| Answer::Held { locked }),
            Ask::Release => release(&mut self.state()).map(|()| Answer::Released),
        };
        let answer = done.unwrap_or_else(|error| Answer::Failed(error.to_string()));
        let mut said = serde_json::to_vec(&answer)?;
        said.push(b'\n');
        (&mut &*port).write_all(&said)?;
        Ok(true)
    }

    /// Between two git commands, or after a while in the middle of one, whose lock is returned.
    fn hold(&self, trees: &[(PathBuf, String)]) -> io::Result<Option<String>> {
        let until = Instant::now() + LOCKED;
        loop {
            while at_work(trees).is_some() && Instant::now() < until {
                thread::sleep(Duration::from_millis(20));
            }
            let mut state = self.state();
            match *state {
                State::GoesOn => {
                    // A copy is not what a killed machine leaves.
                    locks::end();
                    if let Err(error) = freeze::freeze(File::open(DISK)?) {
                        let _ = locks::begin();
                        return Err(error);
                    }
                }
                State::StandsStill => {}
                State::Ending => return Err(io::Error::other("the guest is ending")),
            }
            *state = State::StandsStill;
            // One may have begun meanwhile.
            let locked = at_work(trees);
            if locked.is_none() || Instant::now() >= until {
                return Ok(locked);
            }
            release(&mut state)?;
        }
    }
}

fn release(state: &mut State) -> io::Result<()> {
    if *state == State::StandsStill {
        freeze::thaw(File::open(DISK)?)?;
        *state = State::GoesOn;
        locks::begin()?;
    }
    Ok(())
}

/// The git directories on the disk, with what is said of each.
fn trees(spec: &GuestSpec) -> Vec<(PathBuf, String)> {
    let written = spec.trees.iter().zip(&spec.launch.trees).enumerate();
    let shown = |n: usize, at: &Path| match n {
        0 => ".git".to_owned(),
        _ => at.join(".git").to_string_lossy().into_owned(),
    };
    written
        .filter_map(|(n, (tree, launched))| {
            let (upper, _) = tree.writable.as_ref()?;
            Some((upper.join(".git"), shown(n, &launched.at)))
        })
        .collect()
}

/// The lock of a git command that has not ended.
fn at_work(trees: &[(PathBuf, String)]) -> Option<String> {
    trees.iter().find_map(|(git, shown)| {
        let lock = GIT_LOCKS.iter().find(|name| fs::symlink_metadata(git.join(name)).is_ok())?;
        Some(format!("{shown}/{lock}"))
    })
}
