//! Child processes of the supervisor: commit-back, the service of the remote `host`, the proxy.
//! Each has one socket pair with us on its descriptor 0 (and 1), and a pidfd.

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A running child of ours.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

impl Helper {
    /// Starts `argv` with `input` as standard input and `output` as standard output;
    /// standard error goes to `error` when given, else nowhere.
    pub fn start(argv: &[String], input: OwnedFd, output: OwnedFd, error: Option<OwnedFd>) -> io::Result<Self> {
        let (program, args) = argv.split_first().expect("helpers have a program");
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .stderr(error.map_or_else(Stdio::null, Stdio::from))
            .spawn()?;
        let pid = Pid::from_raw(child.id() as i32).expect("a child's pid is not 0");
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// Reaps it and returns how it ended. Blocks until it has ended.
    pub fn status(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Reaps it; true when it ended with status 0. Blocks until it has ended.
    pub fn finish(&mut self) -> io::Result<bool> {
        Ok(self.child.wait()?.success())
    }

    /// Ends it. One that hangs in the kernel is not waited for: it ends when it can, and is reaped with us.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        if sandbox_sys::process::wait_gone(&self.pidfd, Some(Duration::from_secs(1))).unwrap_or(true) {
            let _ = self.child.wait();
        }
    }
}

/// A socket pair: (ours, for the child).
pub fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, theirs.into()))
}
