//! When what is not committed is rescued: after the main command's end, before the sandbox's end, and every few
//! minutes while something happens inside. Where nothing ran since, nothing is started and nothing is read; an
//! idle sandbox has no timer at all.
//!
//! ```text
//!   a session starts ─► due in `every` ─► did anything run since?  no ──► again, while there are processes
//!   the main command ends ─► due now  ─┘                           yes ─► helper `__rescue`, one at a time
//!   stop ─► the same question ─► its end is waited for, as long as for the last commit-back
//! ```
//!
//! What a machine writes to a disk of its own is seen by asking it only. One that nobody works in any more is asked
//! last of all, so that nobody has to boot a helper to ask again.

use crate::children::{Helper, pair};
use crate::supervise::{ClientId, Phase, Route, Supervisor, after};
use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags};
use sandbox_core::picture;
use sandbox_sys::beneath::open_beneath;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long one may take while nobody waits for it; the helper gives up before.
const TIME: Duration = Duration::from_secs(60);

/// The same at the sandbox's end.
const AT_THE_END: Duration = Duration::from_secs(5);

/// The same of a guest, emulated.
const AT_THE_END_OF_A_GUEST: Duration = Duration::from_secs(20);

/// The helper's own time to end after its time is over.
const EXTRA: Duration = Duration::from_secs(10);

/// Processes that are looked at.
const MOST: usize = 10_000;

/// What runs, and what is due.
#[derive(Debug)]
pub(crate) struct Rescue {
    command: Vec<String>,
    every: Option<Duration>,
    /// Where changes are, on the host.
    uppers: Vec<PathBuf>,
    /// What is written is not seen there.
    pub(crate) unseen: bool,
    /// They hold the whole tree; the file beside each is as old as the copy.
    whole: bool,
    pub(crate) running: Option<Run>,
    pub(crate) due: Option<Instant>,
    /// A session was started since.
    touched: bool,
    /// What had run when the last one was done.
    seen: Option<Ran>,
    /// When somebody last began to work in it, of a machine with a disk of its own (see [`picture::instant`]).
    worked: u64,
    /// The last look at such a machine was taken.
    looked: bool,
}

/// One helper.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) helper: Helper,
    pub(crate) client: ClientId,
    pub(crate) until: Instant,
}

/// How long the processes inside have been on a processor, in nanoseconds, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ran {
    nanoseconds: u64,
    processes: usize,
}

impl Rescue {
    pub(crate) fn new(command: Vec<String>, every: Option<Duration>, uppers: Vec<PathBuf>, whole: bool) -> Self {
        Self {
            command,
            every,
            uppers,
            unseen: false,
            whole,
            running: None,
            due: None,
            touched: false,
            seen: None,
            worked: picture::instant(),
            looked: false,
        }
    }

    /// Of a machine that has a disk of its own: something may be written there whenever anybody worked in it.
    pub(crate) fn unseen(self) -> Self {
        Self { unseen: true, ..self }
    }

    fn last_time(&self) -> Duration {
        if self.unseen { AT_THE_END_OF_A_GUEST } else { AT_THE_END }
    }

    /// Anything was written at all. Whoever is inside decides what is there: nothing is followed.
    fn anything(&self) -> bool {
        if self.unseen {
            return true;
        }
        if self.whole {
            return self.uppers.iter().any(|upper| changed_since(upper, &upper.with_file_name(MANIFEST)));
        }
        let any = |upper: &Path, below: &[u8], but: &[u8]| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let list = || -> rustix::io::Result<bool> {
                let root = rustix::fs::open(upper, flags, Mode::empty())?;
                let dir = open_beneath(root.as_fd(), below, flags)?;
                let other = |entry: &DirEntry| {
                    !matches!(entry.file_name().to_bytes(), b"." | b"..") && entry.file_name().to_bytes() != but
                };
                Ok(Dir::read_from(&dir)?.flatten().any(|entry| other(&entry)))
            };
            // What cannot be listed is looked at more closely.
            list().unwrap_or_else(|error| error != rustix::io::Errno::NOENT)
        };
        self.uppers.iter().any(|upper| any(upper, b"", b".git") || any(upper, b".git", b""))
    }
}

/// The file beside a whole copy.
const MANIFEST: &str = "manifest";

/// Entries of a copy that are looked at; in a larger one something has changed, as far as is known here.
const MOST_ENTRIES: usize = 100_000;

/// Anything in a copy of a tree was changed, made, moved or taken away after the file `made` was last written. The
/// kernel stamps what was done to a file or a directory itself, so nobody inside makes it older; a clock that was
/// set back meanwhile tells nothing.
fn changed_since(upper: &Path, made: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let look = || -> rustix::io::Result<bool> {
        let made = rustix::fs::lstat(made)?;
        let made = (made.st_mtime, made.st_mtime_nsec as i64);
        // Not the coarse clock: Linux since 6.13 stamps finer than its ticks.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        if (now.tv_sec, now.tv_nsec) < made {
            return Ok(true);
        }
        let root = rustix::fs::open(upper, flags, Mode::empty())?;
        let (mut waiting, mut seen) = (vec![Vec::new()], 0);
        while let Some(path) = waiting.pop() {
            let dir = open_beneath(root.as_fd(), &path, flags)?;
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                seen += 1;
                let stat = rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                if seen > MOST_ENTRIES || (stat.st_ctime, stat.st_ctime_nsec as i64) > made {
                    return Ok(true);
                }
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    let above = if path.is_empty() { Vec::new() } else { [&path[..], b"/"].concat() };
                    waiting.push([&above[..], name].concat());
                }
            }
        }
        Ok(false)
    };
    // What cannot be looked at is looked at more closely.
    look().unwrap_or(true)
}

/// What all descendants of a process have run. Descendants, because the first process itself runs when we ask it
/// something. `None` where the kernel does not tell.
fn ran(init: u32) -> Option<Ran> {
    let mut ran = Ran { nanoseconds: 0, processes: 0 };
    let mut waiting = children(init)?;
    while let Some(pid) = waiting.pop() {
        if ran.processes == MOST {
            return None;
        }
        ran.processes += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            ran.nanoseconds = ran.nanoseconds.wrapping_add(text.split(' ').next()?.parse().unwrap_or(0));
        }
        waiting.extend(children(pid).unwrap_or_default());
    }
    Some(ran)
}

/// All descendants of a process, at most [`MOST`]; none where the kernel does not tell.
pub(crate) fn descendants(init: u32) -> Vec<u32> {
    let mut all = children(init).unwrap_or_default();
    let mut next = 0;
    while next < all.len() && all.len() < MOST {
        all.extend(children(all[next]).unwrap_or_default());
        next += 1;
    }
    all
}

/// The children of a process; `None` where the kernel does not tell.
fn children(pid: u32) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = fs::read_to_string(task.path().join("children")).ok()?;
        all.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Some(all)
}

impl Supervisor {
    /// Somebody starts to work in it.
    pub(crate) fn rescue_touched(&mut self) {
        self.memory_touched();
        self.rescue.touched = true;
        if let Some(every) = self.rescue.every {
            self.rescue.due.get_or_insert_with(|| after(every));
        }
    }

    /// The main command has ended.
    pub(crate) fn rescue_soon(&mut self) {
        self.rescue.touched = true;
        self.rescue.due = Some(Instant::now());
    }

    /// A program is started for somebody: whatever it is may change something, but for what the helpers run that
    /// look at it.
    pub(crate) fn rescue_began(&mut self, from: ClientId) {
        let looks = self.rescue.running.as_ref().is_some_and(|run| run.client == from)
            || self.bring.running.as_ref().is_some_and(|run| run.client == from && !run.auto);
        if !looks {
            self.rescue.worked = picture::instant();
        }
    }

    /// What a machine's own disk holds is known, and stays so: nobody is inside who could change it.
    fn rescue_settled(&self) -> bool {
        !self.rescue.unseen || picture::is_last(&self.dir, self.rescue.worked)
    }

    /// The machine has ended; if in good order, what was seen last is what its disk has.
    pub(crate) fn rescue_settle(&mut self) {
        if self.rescue.unseen
            && self.machine.is_written_out()
            && let Err(error) = picture::settle(&self.dir, self.rescue.worked)
        {
            // Whoever asks boots a helper. This is `supervisor.log`.
            let _ = io::Write::write_all(&mut io::stderr(), format!("error: {error}\n").as_bytes());
        }
    }

    /// Commit-back and rescue are over at the end. Where the one was in the other's way, or somebody still ended,
    /// what a machine's own disk holds is looked at once more: now is a second, later it is another boot.
    pub(crate) fn went_home(&mut self, grace_ms: u64) {
        if !self.rescue.looked && !self.rescue_settled() {
            self.rescue.looked = true;
            self.rescue_start(self.rescue.last_time());
            if self.rescue.running.is_some() {
                return;
            }
        }
        self.shut_down(grace_ms);
    }

    /// Something may have changed since the last one. What the kernel does not tell may be.
    fn rescue_needed(&self) -> bool {
        if self.rescue.unseen {
            return !self.rescue_settled();
        }
        let quiet = || {
            let now = ran(self.machine.process().pid);
            now.is_some() && now == self.rescue.seen
        };
        (self.rescue.touched || !quiet()) && self.rescue.anything()
    }

    pub(crate) fn rescue_timer(&mut self, now: Instant) {
        if self.rescue.running.as_ref().is_some_and(|run| run.until <= now) {
            self.rescue_abandon();
            self.rescue_over();
        }
        if self.rescue.running.is_some() || self.phase != Phase::Running {
            return;
        }
        if self.rescue.due.is_some_and(|due| due <= now) {
            if self.rescue_needed() { self.rescue_start(TIME) } else { self.rescue_again() }
        }
    }

    /// When the timer is to be looked at.
    pub(crate) fn rescue_next(&self) -> Option<Instant> {
        match &self.rescue.running {
            Some(run) => Some(run.until),
            None => self.rescue.due.filter(|_| self.phase == Phase::Running),
        }
    }

    /// Starts one before the end if it is needed; false when there is none to be waited for.
    pub(crate) fn rescue_at_the_end(&mut self) -> bool {
        if self.rescue.running.is_none() && self.rescue_needed() {
            self.rescue_start(self.rescue.last_time());
        }
        self.rescue.running.is_some()
    }

    /// As [`Self::rescue_at_the_end`], beside a commit-back: what is seen by asking is asked after it.
    pub(crate) fn rescue_waits(&mut self) -> bool {
        if self.rescue.unseen { self.rescue.running.is_some() } else { self.rescue_at_the_end() }
    }

    fn rescue_start(&mut self, time: Duration) {
        self.rescue.due = None;
        self.rescue.touched = false;
        let mut command = self.rescue.command.clone();
        command.push(time.as_secs().to_string());
        let started = (|| -> io::Result<_> {
            let (client, client_fd) = pair()?;
            let nowhere = fs::OpenOptions::new().write(true).open("/dev/null")?;
            Ok((Helper::start(&command, client_fd, nowhere.into(), None)?, client))
        })();
        match started {
            Ok((helper, client)) => {
                let id = self.next_client;
                self.accept(client);
                self.fresh.remove(&id);
                self.rescue.running = Some(Run { helper, client: id, until: after(time + EXTRA) });
            }
            Err(error) => {
                // This is `supervisor.log`.
                let _ = io::Write::write_all(
                    &mut io::stderr(),
                    format!("error: cannot start rescue: {error}\n").as_bytes(),
                );
                self.rescue_again();
            }
        }
    }

    pub(crate) fn rescue_ended(&mut self) {
        if let Some(mut run) = self.rescue.running.take() {
            // How it went is in the record.
            let _ = run.helper.finish();
        }
        self.rescue_over();
    }

    /// Ends one for which there is no more time.
    pub(crate) fn rescue_abandon(&mut self) {
        if let Some(mut run) = self.rescue.running.take() {
            run.helper.kill();
        }
    }

    fn rescue_over(&mut self) {
        self.rescue.seen = ran(self.machine.process().pid);
        self.rescue_again();
        if let Phase::BringingHome { grace_ms, .. } = self.phase
            && self.bring.running.is_none()
        {
            self.went_home(grace_ms);
        }
    }

    /// The next time, as long as there is anything that may change something.
    fn rescue_again(&mut self) {
        let session = |route: &Route| match route {
            Route::Main => true,
            Route::Session(session) => !session.internal,
            Route::Question(_) | Route::Hold => false,
        };
        // The nursery is always there.
        let others = || ran(self.machine.process().pid).is_none_or(|ran| ran.processes > 1);
        let alive = self.rescue.touched || self.routes.values().any(session) || others();
        self.rescue.due = self.rescue.every.filter(|_| alive).map(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_runs_is_seen_and_a_child_that_sleeps_is_quiet() {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "read x; echo; read y"]);
        let mut child =
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let own = std::process::id();
        let Some(_) = children(own) else {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("this kernel does not tell a process's children");
        };
        // Until it waits for input.
        let stat = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        while !stat().contains(") S ") {
            std::thread::sleep(Duration::from_millis(2));
        }
        let time = |pid: u32| fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
        let (before, all) = (time(child.id()), ran(own).unwrap());
        assert!(all.processes >= 1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(time(child.id()), before, "nothing ran");
        io::Write::write_all(&mut child.stdin.as_ref().unwrap(), b"\n").unwrap();
        let mut said = child.stdout.take().unwrap();
        io::Read::read_exact(&mut said, &mut [0]).unwrap();
        assert_ne!(time(child.id()), before);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_upper_directory_with_nothing_in_it_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        let rescue = Rescue::new(Vec::new(), None, vec![upper.clone()], false);
        assert!(!rescue.anything());
        fs::create_dir_all(upper.join(".git")).unwrap();
        assert!(!rescue.anything());
        fs::write(upper.join(".git/index"), "x").unwrap();
        assert!(rescue.anything(), "something may be staged");
        fs::remove_dir_all(upper.join(".git")).unwrap();
        fs::write(upper.join("f"), "x").unwrap();
        assert!(rescue.anything());
    }

    #[test]
    fn of_a_copy_what_is_newer_than_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, made) = (dir.path().join("upper"), dir.path().join(MANIFEST));
        fs::create_dir_all(upper.join("a/b")).unwrap();
        fs::write(upper.join("a/b/f"), "x").unwrap();
        fs::write(&made, "").unwrap();
        let changed = || Rescue::new(Vec::new(), None, vec![upper.clone()], true).anything();
        let settle = || {
            std::thread::sleep(Duration::from_millis(20));
            rustix::fs::utimensat(rustix::fs::CWD, &made, &this_moment(), AtFlags::empty()).unwrap();
            assert!(!changed());
            std::thread::sleep(Duration::from_millis(20));
        };
        settle();
        fs::write(upper.join("a/b/f"), "y").unwrap();
        // Whatever its owner says about it.
        let old = fs::File::options().write(true).open(upper.join("a/b/f")).unwrap();
        old.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(changed());
        settle();
        fs::remove_file(upper.join("a/b/f")).unwrap();
        assert!(changed());
        settle();
        std::os::unix::fs::symlink("/", upper.join("a/l")).unwrap();
        assert!(changed());
        fs::remove_file(&made).unwrap();
        assert!(changed(), "nobody knows since when");
    }

    fn this_moment() -> rustix::fs::Timestamps {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        rustix::fs::Timestamps { last_access: now, last_modification: now }
    }
}
