//! The helper that does one rename, and the loop's side of it: which one runs, what if it is killed.

use super::{Notifier, Place, exchange, work};
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use sandbox_protocol::ExitStatus;
use sandbox_sys::fork::fork;
use sandbox_sys::notify::{Answer, Listener, Notification};
use sandbox_sys::{caps, signals};
use std::path::PathBuf;
use std::sync::Arc;

/// A helper's status when it has done its work and the caller was interrupted, or is gone.
const UNHEARD: u8 = 2;

/// One rename to be done.
#[derive(Debug)]
pub struct Job {
    id: u64,
    pid: u32,
    listener: Arc<Listener>,
    top: PathBuf,
    from: Place,
    to: Place,
    flags: RenameFlags,
}

impl Job {
    pub(super) fn new(
        call: &Notification,
        listener: Arc<Listener>,
        top: PathBuf,
        from: Place,
        to: Place,
        flags: RenameFlags,
    ) -> Self {
        Self { id: call.id, pid: call.pid, listener, top, from, to, flags }
    }

    /// The helper's life: does the work, answers the caller itself, and ends.
    fn work(&self) -> u8 {
        signals::block_all();
        if caps::drop_all().is_err() {
            return 1;
        }
        let noreplace = self.flags.contains(RenameFlags::NOREPLACE);
        let places = work::Places {
            top: &self.top,
            old_parent: &self.from.parent,
            old_name: trimmed(self.from.name.to_bytes()),
            new_parent: &self.to.parent,
            new_name: trimmed(self.to.name.to_bytes()),
        };
        let done = match self.flags.contains(RenameFlags::EXCHANGE) {
            true => exchange::exchange(&places),
            false => work::rename_directory(&places, noreplace),
        };
        let answer = match done {
            Ok(()) => Answer::Return(0),
            Err(error) => Answer::Error(error.raw_os_error()),
        };
        if answer == Answer::Return(0) && !self.listener.is_valid(self.id) {
            return UNHEARD;
        }
        u8::from(self.listener.answer(self.id, answer).is_err())
    }

    /// Tells the caller that it was not done.
    pub(super) fn refuse(&self) {
        let _ = self.listener.answer(self.id, Answer::Error(Errno::IO.raw_os_error()));
    }
}

fn trimmed(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    &name[..end]
}

#[derive(Debug)]
enum Task {
    Rename(Job),
    /// A helper was killed at its work: what it left is put back.
    Recover(PathBuf),
}

/// The one helper that may run.
#[derive(Debug, Default)]
pub struct Worker {
    running: Option<(Pid, Task)>,
    recover: Option<PathBuf>,
}

impl Worker {
    /// The helper that runs.
    pub fn pid(&self) -> Option<Pid> {
        self.running.as_ref().map(|(pid, _)| *pid)
    }

    /// Starts the next helper if none runs and there is work.
    pub fn next(&mut self, notifier: &Notifier) {
        while self.running.is_none() {
            let task = match self.recover.take() {
                Some(top) => Task::Recover(top),
                None => match notifier.take_job() {
                    Some(job) if notifier.was_done(job.pid, &job.from, &job.to) => {
                        let _ = job.listener.answer(job.id, Answer::Return(0));
                        continue;
                    }
                    Some(job) => Task::Rename(job),
                    None => return,
                },
            };
            let started = fork(|| match &task {
                Task::Rename(job) => job.work(),
                Task::Recover(top) => {
                    signals::block_all();
                    u8::from(caps::drop_all().is_err() || work::recover(top).is_err())
                }
            });
            match (started, task) {
                (Ok(pid), task) => self.running = Some((pid, task)),
                (Err(_), Task::Rename(job)) => job.refuse(),
                // It is tried again by the next rename in that tree, and by the next start.
                (Err(_), Task::Recover(_)) => {}
            }
        }
    }

    /// A child was reaped; true when it was the helper.
    pub fn ended(&mut self, pid: Pid, status: ExitStatus, notifier: &Notifier) -> bool {
        match self.running.take() {
            Some((helper, task)) if helper == pid => {
                match (task, status) {
                    (Task::Rename(job), ExitStatus::Code(code)) if code == i32::from(UNHEARD) => {
                        if let (Ok(from), Ok(to)) = (job.from.id(), job.to.id()) {
                            notifier.remember(job.pid, from, to);
                        }
                    }
                    (_, ExitStatus::Code(0)) | (Task::Recover(_), _) => {}
                    (Task::Rename(job), _) => {
                        job.refuse();
                        self.recover = Some(job.top);
                    }
                }
                true
            }
            other => {
                self.running = other;
                false
            }
        }
    }
}
