//! From the start of a machine to the agent's first word: the host's half of the guest's `init::channel`.

use super::console::Console;
use super::guest::{GuestSpec, Word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sandbox_core::driver::DriverError;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a guest may take to boot and to build what it was told. Emulated, on a busy machine, it is slow.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A line of a guest is short; what it says is not trusted.
const LONGEST_LINE: usize = 64 * 1024;
/// Lines before it is ready.
const MOST_LINES: usize = 1000;

fn not_ready(source: io::Error) -> DriverError {
    DriverError::NotReady { source }
}

/// Tells the guest what to be, once it asks for it, and waits until its agent has the channel. Returns its notes.
///
/// On an error the machine still runs: whoever has started it ends it.
pub fn hand_over(
    control: &UnixStream,
    console: &mut Console,
    process: BorrowedFd<'_>,
    spec: &GuestSpec,
) -> Result<Vec<String>, DriverError> {
    let text = serde_json::to_vec(spec).map_err(|error| not_ready(error.into()))?;
    let length = u32::try_from(text.len()).map_err(|_| not_ready(io::ErrorKind::FileTooLarge.into()))?;
    let mut out = length.to_le_bytes().to_vec();
    out.extend(text);
    control.set_nonblocking(true).map_err(not_ready)?;
    let talk = Talk { control, console, process, out, line: Vec::new(), until: Instant::now() + PATIENCE };
    let notes = talk.run();
    control.set_nonblocking(false).map_err(not_ready)?;
    notes
}

struct Talk<'a> {
    control: &'a UnixStream,
    console: &'a mut Console,
    process: BorrowedFd<'a>,
    out: Vec<u8>,
    line: Vec<u8>,
    until: Instant,
}

impl Talk<'_> {
    fn run(mut self) -> Result<Vec<String>, DriverError> {
        let mut notes = Vec::new();
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.ended("it is silent"));
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let wanted = if self.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let ready = {
                let mut fds = [
                    PollFd::new(self.control, wanted),
                    PollFd::new(self.console.stream(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.process, PollFlags::IN),
                ];
                match poll(&mut fds, Some(&timeout)) {
                    Ok(_) => {}
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(not_ready(error.into())),
                }
                fds.each_ref().map(|fd| fd.revents())
            };
            if !ready[1].is_empty() {
                let _ = self.console.read();
            }
            if ready[0].contains(PollFlags::OUT) {
                self.write().map_err(not_ready)?;
            }
            if ready[0].intersects(PollFlags::IN | PollFlags::HUP) {
                while let Some(line) = self.read_line()? {
                    match serde_json::from_slice(&line) {
                        Ok(Word::Ready) => return Ok(notes),
                        Ok(Word::Note(note)) if notes.len() < MOST_LINES => notes.push(plain(&note)),
                        Ok(Word::Failed(causes)) => {
                            let causes: Vec<String> = causes.iter().take(10).map(|cause| plain(cause)).collect();
                            return Err(not_ready(io::Error::other(causes.join(": "))));
                        }
                        _ => return Err(not_ready(io::Error::other("the guest says what it should not"))),
                    }
                }
            }
            if !ready[2].is_empty() {
                return Err(self.ended("it ended"));
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        match (&mut &*self.control).write(&self.out) {
            Ok(length) => drop(self.out.drain(..length)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.out.clear(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// One line, and not a byte more: what follows the last one is for somebody else.
    fn read_line(&mut self) -> Result<Option<Vec<u8>>, DriverError> {
        loop {
            let mut byte = [0u8; 1];
            match (&mut &*self.control).read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) if byte == *b"\n" => return Ok(Some(std::mem::take(&mut self.line))),
                Ok(_) if self.line.len() < LONGEST_LINE => self.line.push(byte[0]),
                Ok(_) => return Err(not_ready(io::Error::other("the guest says too much"))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(not_ready(error)),
            }
        }
    }

    /// Why there is no guest, with what was last printed.
    fn ended(&mut self, what: &str) -> DriverError {
        let _ = self.console.stream().set_nonblocking(true);
        while self.console.read().unwrap_or(false) {}
        let _ = self.console.stream().set_nonblocking(false);
        let last = self.console.last_line().map(|line| format!(": {line}")).unwrap_or_default();
        not_ready(io::Error::other(format!("{what}{last}")))
    }
}

/// What a guest says, as one line of text.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::plan::tests::spec;
    use crate::namespace::view::Host;
    use crate::vm::guest::guest;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::{Command, Stdio};

    /// Starts "a guest" that says this once it was told what to be, and goes on or ends. What `hand_over` says, and
    /// what of the guest's words it left to the agent's reader.
    fn handed_over(says: Vec<u8>, ends: bool) -> (Result<Vec<String>, String>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr")).unwrap();
        let told = guest(&spec(), &Host::at(dir.path()), false, "qemu").unwrap().spec;
        let (control, theirs) = UnixStream::pair().unwrap();
        let (console, printed) = UnixStream::pair().unwrap();
        (&printed).write_all(b"last words\r\n").unwrap();
        let mut console = Console::new(console, &dir.path().join("console.log")).unwrap();
        // It lives as long as its input is open.
        let mut machine = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let alive = machine.stdin.take();
        let pidfd = pidfd_open(Pid::from_child(&machine), PidfdFlags::empty()).unwrap();
        let peer = std::thread::spawn(move || {
            let mut length = [0u8; 4];
            (&theirs).read_exact(&mut length).unwrap();
            let mut text = vec![0u8; u32::from_le_bytes(length) as usize];
            (&theirs).read_exact(&mut text).unwrap();
            // It may be hung up on in the middle of it.
            let _ = (&theirs).write_all(&says);
            if ends {
                drop((alive, printed));
            } else {
                // Until the host is done with it.
                let _ = (&theirs).read(&mut [0u8; 1]);
            }
        });
        use std::os::fd::AsFd;
        let result = hand_over(&control, &mut console, pidfd.as_fd(), &told);
        let mut rest = Vec::new();
        if result.is_ok() {
            control.shutdown(std::net::Shutdown::Write).unwrap();
            (&control).read_to_end(&mut rest).unwrap();
        }
        drop(control);
        peer.join().unwrap();
        machine.wait().unwrap();
        let causes = |error: DriverError| match error {
            DriverError::NotReady { source } => source.to_string(),
            other => other.to_string(),
        };
        (result.map_err(causes), rest)
    }

    fn refused(says: impl Into<Vec<u8>>) -> String {
        handed_over(says.into(), false).0.unwrap_err()
    }

    #[test]
    fn what_follows_the_last_word_is_the_agents() {
        let (notes, rest) =
            handed_over(b"{\"note\":\"no \\u001b[2J cgroup\"}\n\"ready\"\nagent\nbytes".to_vec(), false);
        assert_eq!(notes, Ok(vec!["no ?[2J cgroup".to_owned()]));
        assert_eq!(rest, b"agent\nbytes");
    }

    #[test]
    fn a_guest_that_means_harm_is_refused_in_words_and_in_bounded_memory() {
        let (wrong, much) = ("the guest says what it should not", "the guest says too much");
        assert_eq!(refused("hello\n"), wrong);
        assert_eq!(refused("\n"), wrong);
        assert_eq!(refused("{\"note\":7}\n"), wrong);
        assert_eq!(refused(vec![0xff; LONGEST_LINE + 1]), much);
        assert_eq!(refused(vec![b'['; 2 << 20]), much);
        assert_eq!(refused("{\"note\":\"n\"}\n".repeat(MOST_LINES + 1)), wrong);
        let failed = format!("{{\"failed\":[{}\"\\u001b]0;x\\u0007\"]}}\n", "\"a\",".repeat(2));
        assert_eq!(refused(failed), "a: a: ?]0;x?");
        let long = format!("{{\"failed\":[\"{}\"]}}\n", "a".repeat(40_000));
        assert_eq!(refused(long).len(), 1000);
    }

    #[test]
    fn a_guest_that_ends_has_its_last_line_told() {
        let (said, _) = handed_over(b"{\"note\":\"n\"}\n{\"no".to_vec(), true);
        assert_eq!(said, Err("it ended: last words".to_owned()));
    }
}
