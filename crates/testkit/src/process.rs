//! Processes that a test starts: each has a deadline and is ended by its id.

use crate::output::shell_status;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A running process that is killed when it goes out of scope.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    command: String,
}

impl Child {
    /// Starts a command as it is set up.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(command: &mut Command) -> Self {
        let text = words(command);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run `{text}`: {error}"));
        Self { child, command: text }
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end and returns its status as a shell shows it.
    ///
    /// # Panics
    /// If it still runs after `limit`; it is killed first.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return shell_status(status);
            }
            if start.elapsed() > limit {
                self.kill();
                panic!("`{}` still ran after {limit:?}", self.command);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its status as a shell shows it, if it has ended.
    pub fn try_ended(&mut self) -> Option<i32> {
        self.child.try_wait().expect("it is our child").map(shell_status)
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end, with input, and returns what it printed.
///
/// What it started in the background may hold the pipes open: output is collected until the
/// command has ended and the pipes are closed or silent for a moment.
///
/// # Panics
/// If it still runs after `limit`: with what it printed so far.
#[track_caller]
pub(crate) fn run(command: &mut Command, input: &[u8], limit: Duration) -> std::process::Output {
    use std::io::Write;
    let text = words(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run `{text}`: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    std::thread::spawn(move || {
        // A command that does not read its input closes it: that is its right.
        let _ = stdin.write_all(&input);
    });
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            break status;
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            let (out, err) = (stdout.take(), stderr.take());
            let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
            panic!("{text}\nstill ran after {limit:?}; until then it printed\n{out}{err}");
        }
        std::thread::sleep(Duration::from_micros(500));
    };
    std::process::Output { status, stdout: stdout.take(), stderr: stderr.take() }
}

/// Bytes of a pipe, read by a thread of their own.
struct Collected {
    bytes: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let bytes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let into = bytes.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            into.lock().expect("readers do not panic").extend_from_slice(&buffer[..n]);
        }
    });
    Collected { bytes, reader }
}

impl Collected {
    /// Returns all bytes up to the end of the pipe, or up to half a second after the command's
    /// end when something else still holds it.
    fn take(self) -> Vec<u8> {
        let start = Instant::now();
        while !self.reader.is_finished() && start.elapsed() < Duration::from_millis(500) {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::mem::take(&mut *self.bytes.lock().expect("readers do not panic"))
    }
}

/// The program and its arguments.
pub(crate) fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Waits until `done` returns true, looking every 10 ms.
///
/// # Panics
/// If that takes longer than `limit`; `what` says what was waited for.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "after {limit:?} still not: {what}");
        // Seldom once it takes long: what looks may be a command that the busy machine has to start.
        std::thread::sleep((start.elapsed() / 10).clamp(Duration::from_millis(10), Duration::from_millis(500)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_stays_does_not_hold_the_test() {
        let start = Instant::now();
        let output = run(Command::new("sh").args(["-c", "echo a; sleep 20 & echo $!"]), b"", Duration::from_secs(10));
        let text = String::from_utf8(output.stdout).unwrap();
        let pid = text.lines().nth(1).unwrap().parse().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(text.starts_with("a\n"));
    }

    #[test]
    #[should_panic(expected = "still ran after")]
    fn a_process_that_hangs_is_ended_with_what_it_said() {
        run(Command::new("sh").args(["-c", "echo before; exec sleep 60"]), b"", Duration::from_millis(300));
    }
}
