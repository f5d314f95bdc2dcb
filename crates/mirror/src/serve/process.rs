//! A git process that serves one request: a process group of its own that does not outlive who asked.

use bytes::{Bytes, BytesMut};
use rustix::process::{Pid, Signal, kill_process_group};
use sandbox_git::GitCommand;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Bytes of standard error that are kept of one process.
const STDERR: usize = 64 << 10;
/// Bytes that are read at once.
pub const CHUNK: usize = 64 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// Starts processes from one thread that lives as long as the service: the kernel kills what was
/// started by a thread when that thread ends, and the runtime's own come and go.
#[derive(Clone, Debug)]
pub struct Spawner(mpsc::Sender<Job>);

impl Spawner {
    /// Starts the thread; needs a runtime.
    pub fn start() -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let runtime = Handle::current();
        std::thread::Builder::new().name("mirror-spawn".into()).spawn(move || {
            let _inside = runtime.enter();
            jobs.into_iter().for_each(|job| job());
        })?;
        Ok(Self(sender))
    }

    /// Starts a command with piped streams.
    pub async fn git(&self, command: GitCommand) -> io::Result<GitProcess> {
        let (sender, started) = oneshot::channel();
        let job = move || {
            // Who asked may be gone; then the process is ended as it is dropped.
            let _ = sender.send(GitProcess::spawn(command));
        };
        let ended = || io::Error::other("the service is ending");
        self.0.send(Box::new(job)).map_err(|_| ended())?;
        started.await.map_err(|_| ended())?
    }
}

/// A git process that runs. Dropped before [`GitProcess::wait`], it is killed with all that it started.
#[derive(Debug)]
pub struct GitProcess {
    child: Child,
    group: Option<Pid>,
    /// Its standard input.
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: Option<ChildStdout>,
    stderr: JoinHandle<Vec<u8>>,
}

impl GitProcess {
    fn spawn(command: GitCommand) -> io::Result<Self> {
        let mut command = command.into_command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        sandbox_sys::child::die_with_us(&mut command);
        let mut child = Command::from(command).spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let mut errors = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let stderr = tokio::spawn(async move { tail(&mut errors).await });
        Ok(Self { stdin: child.stdin.take(), stdout: child.stdout.take(), child, group, stderr })
    }

    /// Ends it with all that it started.
    pub fn kill(&self) {
        if let Some(group) = self.group {
            // Its leader has not been waited for: the number is still its own.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Waits for its end; returns its status and the last of what it wrote to standard error.
    pub async fn wait(mut self) -> io::Result<(ExitStatus, Vec<u8>)> {
        drop((self.stdin.take(), self.stdout.take()));
        let status = self.child.wait().await?;
        self.group = None;
        // A helper that was left behind may hold the pipe.
        let said = tokio::time::timeout(std::time::Duration::from_secs(1), &mut self.stderr).await;
        Ok((status, said.ok().and_then(Result::ok).unwrap_or_default()))
    }
}

impl Drop for GitProcess {
    fn drop(&mut self) {
        self.kill();
        self.stderr.abort();
    }
}

async fn tail(pipe: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let (mut kept, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = pipe.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..n]);
        if kept.len() > 2 * STDERR {
            kept.drain(..kept.len() - STDERR);
        }
    }
    kept
}

/// Reads what there is, at most [`CHUNK`]; `None` at the end.
pub async fn chunk(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    match from.read_buf(&mut buffer).await? {
        0 => Ok(None),
        _ => Ok(Some(buffer.freeze())),
    }
}

/// The telling line of what git wrote to standard error, safe to print; empty if there is none.
pub fn telling(stderr: &[u8]) -> String {
    let lines = || stderr.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let telling = lines().find(|line| line.starts_with(b"fatal: ") || line.starts_with(b"error: "));
    telling.or(lines().next_back()).map(sandbox_git::printable).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_git::{Git, HostEnv};
    use std::path::Path;
    use std::time::Duration;

    /// A program in place of git: `Git` takes any.
    fn script(dir: &Path, text: &str) -> Git {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("git");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Git::with_program(path, HostEnv { path: "/usr/bin:/bin".into(), ..Default::default() })
    }

    #[tokio::test]
    async fn what_is_dropped_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let git = script(dir.path(), "sleep 600 & echo $!; wait");
        let spawner = Spawner::start().unwrap();
        let mut process = spawner.git(git.anywhere().arg("x")).await.unwrap();
        let line = chunk(process.stdout.as_mut().unwrap()).await.unwrap().unwrap();
        let helper: u32 = std::str::from_utf8(&line).unwrap().trim().parse().unwrap();
        assert!(Path::new(&format!("/proc/{helper}")).exists());
        drop(process);
        for _ in 0..1000 {
            if !matches!(sandbox_sys::process::state(helper), Ok(state) if state != 'Z') {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{helper} runs on");
    }

    #[tokio::test]
    async fn the_last_of_standard_error_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let git = script(dir.path(), "echo noise >&2; echo 'fatal: no \u{7}' >&2; exit 3");
        let spawner = Spawner::start().unwrap();
        let process = spawner.git(git.anywhere().arg("x")).await.unwrap();
        let (status, said) = process.wait().await.unwrap();
        assert_eq!((status.code(), telling(&said).as_str()), (Some(3), "fatal: no \\u{7}"));
        assert_eq!(telling(b""), "");
        assert_eq!(telling(b"one\ntwo\n"), "two");
    }
}
