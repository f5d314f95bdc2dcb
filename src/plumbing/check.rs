//! `__check DIR`: runs one command in a sandbox that is made for nothing else ([`sandbox_core::check`]), and ends with
//! it. Standard input is a pipe whose other end whoever waits holds: at its end nobody waits any more, and everything
//! goes at once. Standard output is the locked file.
//!
//! ```text
//! launch.json, task.json, result.pack ─► launch ─► the result is checked out ─► the command ─► outcome.json, output
//! ```

use super::argument;
use super::supervise::{close_standard, open, take};
use crate::check::egress::Egress;
use crate::check::task::{OUTCOME, OUTPUT, Outcome, PACK, TASK, Task};
use crate::error::CliError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_core::driver::{Driver, DriverError, Machine};
use sandbox_core::launch::{LaunchSpec, Network};
use sandbox_core::store::{read_json, write_json, write_whole};
use sandbox_protocol::{Channel, Exec, ExitStatus, FrameType, Message, escape_bytes};
use sandbox_sys::lock::FileLock;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How much of a command's output is kept: its end.
const KEPT: usize = 4 << 20;
/// How long preparing the tree may take.
const PREPARING: Duration = Duration::from_secs(600);

/// Checks out what is tested, in the tree that was captured: what is tracked is as it was committed, what is ignored
/// (dependencies, build products) stays, what is neither goes.
const PREPARE: &str = "set -e\n\
    git -c core.hooksPath=/dev/null checkout --quiet --force --detach \"$1\"\n\
    git clean --quiet --force -d\n";

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let dir = PathBuf::from(argument(args, 0, "the directory")?);
    let _ = rustix::process::setsid();
    sandbox_sys::fork::close_from(3, None).map_err(CliError::io("close inherited descriptors"))?;
    let (waiting, lock) = (take(io::stdin().as_fd())?, take(io::stdout().as_fd())?);
    let _lock = FileLock::adopt(lock);
    close_standard()?;
    let outcome = match check(&dir, &waiting) {
        Ok(Some(outcome)) => outcome,
        Ok(None) => {
            // Nobody waits for it, nor for what is left of it.
            let _ = sandbox_capture::remove_tree(&dir);
            return Ok(());
        }
        Err(error) => Outcome { error: serde_json::to_string(&error).ok(), ..Outcome::default() },
    };
    Ok(write_json(&dir.join(OUTCOME), &outcome, false)?)
}

/// `None`: nobody waits any more.
fn check(dir: &Path, waiting: &OwnedFd) -> Result<Option<Outcome>, CliError> {
    let missing = || CliError::new(format!("there is nothing to do in '{}'", dir.display()));
    let spec: LaunchSpec = read_json(&dir.join("launch.json"))?.ok_or_else(missing)?;
    let task: Task = read_json(&dir.join(TASK))?.ok_or_else(missing)?;
    let driver = crate::verbs::spawn::driver(&task.driver)?;
    let mut machine = driver.launch(&spec)?;
    let mut egress = match spec.network {
        Network::Allow => Some(way_out(driver, &spec, machine.as_mut(), dir)?),
        Network::None | Network::Host => None,
    };
    let done = converse(dir, &task, machine.as_ref(), egress.as_mut(), waiting);
    drop(egress);
    machine.kill().map_err(CliError::io("end the sandbox"))?;
    wait_gone(machine.as_ref());
    done
}

/// What lets it out. Without it nothing is let out, so the check is not run.
fn way_out(driver: &dyn Driver, spec: &LaunchSpec, machine: &mut dyn Machine, dir: &Path) -> Result<Egress, CliError> {
    let listener = machine.take_egress().ok_or_else(|| DriverError::Unsupported {
        driver: driver.name(),
        what: "have a network with a policy".to_owned(),
    })?;
    let (_, place) = open(dir)?;
    let started = Egress::start(&spec.program, listener, &place.network(), machine.process().pid);
    started.map_err(CliError::io("start the proxy"))
}

/// Nothing of it runs any more when its directory is deleted.
fn wait_gone(machine: &dyn Machine) {
    let wait = Timespec { tv_sec: 10, tv_nsec: 0 };
    let pidfd = machine.pidfd();
    while poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&wait)) == Err(rustix::io::Errno::INTR) {}
}

fn converse(
    dir: &Path,
    task: &Task,
    machine: &dyn Machine,
    mut egress: Option<&mut Egress>,
    waiting: &OwnedFd,
) -> Result<Option<Outcome>, CliError> {
    let control = machine.control().try_clone().map_err(CliError::io("use the control channel"))?;
    let mut connection = Connection::new(control)?;
    let cwd = escape_bytes(task.cwd.as_os_str().as_bytes());
    let words = |argv: &[&str]| argv.iter().map(|arg| escape_bytes(arg.as_bytes())).collect::<Vec<String>>();
    if let Some(commit) = &task.commit {
        let pack = dir.join(PACK);
        let bytes = std::fs::read(&pack).map_err(CliError::io(format!("read '{}'", pack.display())))?;
        let unpack = ["git", "-c", "core.fsync=none", "unpack-objects", "-q"];
        let prepare = ["sh", "-c", PREPARE, "sh", commit];
        for (argv, input) in [(&unpack[..], &bytes[..]), (&prepare[..], b"")] {
            let exec = Exec { argv: words(argv), cwd: cwd.clone(), internal: true, ..Exec::default() };
            let (status, _, err) = connection.run_within(exec, input, 1 << 20, PREPARING)?;
            if status.shell() != 0 {
                let said = String::from_utf8_lossy(&err);
                let said = said.lines().next().unwrap_or_default().trim_start_matches("fatal: ");
                return Err(CliError::new("cannot check out what would land").cause(crate::text::escape(said)));
            }
        }
    }
    let stream = connection.open();
    // One stream, so that the lines are in their order.
    let argv = words(&["sh", "-c", "exec 2>&1; eval \"$1\"", "sh", &task.command]);
    connection.send(stream, &Message::Exec(Exec { argv, cwd, ..Exec::default() }))?;
    connection.send(stream, &Message::CloseStdin)?;
    let begun = Instant::now();
    let until = task.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let mut kept = Tail::default();
    let ended = loop {
        match step(&mut connection, stream, &mut kept, egress.as_deref_mut(), waiting, until)? {
            Some(ended) => break ended,
            None => continue,
        }
    };
    let (status, timed_out) = match ended {
        Ended::Nobody => return Ok(None),
        Ended::Late => (None, true),
        Ended::Exited(status) => (Some(status.shell()), false),
    };
    if let Some(egress) = egress {
        egress.read();
        kept.add(egress.words().as_bytes());
    }
    write_whole(&dir.join(OUTPUT), &kept.bytes(), false)?;
    Ok(Some(Outcome { status, timed_out, seconds: begun.elapsed().as_secs_f64(), error: None }))
}

enum Ended {
    Exited(ExitStatus),
    Late,
    Nobody,
}

/// Waits for what comes next, and takes it.
fn step(
    connection: &mut Connection,
    stream: u32,
    kept: &mut Tail,
    mut egress: Option<&mut Egress>,
    waiting: &OwnedFd,
    until: Option<Instant>,
) -> Result<Option<Ended>, CliError> {
    while let Some(frame) = connection.buffered()? {
        if frame.stream != stream {
            continue;
        }
        match frame.kind {
            FrameType::Control => match frame.message().map_err(ConnectionError::Protocol)? {
                Message::Error(failure) => return Err(crate::start::refused(&failure)),
                Message::Exited(status) => return Ok(Some(Ended::Exited(status))),
                _ => {}
            },
            FrameType::Stdin => {}
            kind => {
                kept.add(&frame.payload);
                let channel = if kind == FrameType::Stdout { Channel::Stdout } else { Channel::Stderr };
                let bytes = frame.payload.len() as u64;
                connection.send(stream, &Message::Credit { channel, bytes })?;
            }
        }
    }
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    if left == Some(Duration::ZERO) {
        return Ok(Some(Ended::Late));
    }
    let left = left.map(|left| Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() });
    let mut fds = vec![PollFd::new(&*connection, PollFlags::IN), PollFd::new(waiting, PollFlags::IN)];
    if let Some(lines) = egress.as_ref().and_then(|egress| egress.readable()) {
        fds.push(PollFd::from_borrowed_fd(lines, PollFlags::IN));
    }
    match poll(&mut fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(CliError::io("wait for the command")(error.into())),
    }
    let (from_inside, nobody) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
    drop(fds);
    if nobody {
        return Ok(Some(Ended::Nobody));
    }
    if let Some(egress) = &mut egress {
        egress.read();
    }
    if from_inside && !connection.fill()? {
        return Err(ConnectionError::Closed.into());
    }
    Ok(None)
}

/// The end of an output.
#[derive(Default)]
struct Tail {
    bytes: VecDeque<u8>,
    left_out: u64,
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let over = self.bytes.len().saturating_sub(KEPT);
        self.left_out += over as u64;
        self.bytes.drain(..over);
    }

    fn bytes(self) -> Vec<u8> {
        let mut all = match self.left_out {
            0 => Vec::new(),
            n => format!("[{} before this left out]\n", crate::text::size(n)).into_bytes(),
        };
        all.extend(self.bytes);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_output_is_kept() {
        let mut tail = Tail::default();
        tail.add(b"first\n");
        for _ in 0..KEPT / 1024 {
            tail.add(&[b'x'; 1024]);
        }
        tail.add(b"last\n");
        let bytes = tail.bytes();
        assert!(bytes.starts_with(b"[11 B before this left out]\nxxx"), "{:?}", String::from_utf8_lossy(&bytes[..40]));
        assert!(bytes.ends_with(b"xlast\n"));
        let mut tail = Tail::default();
        tail.add(b"short\n");
        assert_eq!(tail.bytes(), b"short\n");
    }
}
