//! What the host asks of a guest's first process while its agent is at work.

use crate::vm::guest::{Answer, Ask};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long an answer may take: an emulated guest may first have to write much out.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest answer, in bytes.
const LONGEST: u64 = 16 << 10;

/// A connection to the port.
#[derive(Debug)]
pub struct Own {
    stream: UnixStream,
    patience: Duration,
}

impl Own {
    /// Takes the connection; nothing is said yet.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, patience: PATIENCE })
    }

    /// Asks, and waits for the answer. What is not one is an error, whatever else the guest says or does not.
    pub fn ask(&mut self, ask: &Ask) -> io::Result<Answer> {
        self.forget()?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        self.stream.write_all(&line)?;
        let mut said = Vec::new();
        let until = Instant::now() + self.patience;
        while !said.ends_with(b"\n") {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the guest does not answer"));
            }
            self.stream.set_read_timeout(Some(left))?;
            let room = LONGEST.saturating_sub(said.len() as u64);
            match BufReader::with_capacity(4096, (&self.stream).take(room)).read_until(b'\n', &mut said) {
                Ok(0) if room == 0 => return Err(io::Error::other("the guest says too much")),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        serde_json::from_slice(&said).map_err(|_| io::Error::other("the guest says something else"))
    }

    /// Whether the last word of a guest that has ended was that everything is written out.
    pub fn last_word(&mut self) -> io::Result<bool> {
        self.stream.set_nonblocking(true)?;
        let mut said = Vec::new();
        match (&self.stream).take(LONGEST).read_to_end(&mut said) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        let last = said.strip_suffix(b"\n").and_then(|said| said.rsplit(|byte| *byte == b'\n').next());
        Ok(last.is_some_and(|line| matches!(serde_json::from_slice(line), Ok(Answer::Off))))
    }

    /// What came too late for an earlier question is no answer to this one.
    fn forget(&mut self) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let mut read = 0;
        while read < LONGEST {
            match self.stream.read(&mut [0u8; 4096]) {
                Ok(0) => break,
                Ok(length) => read += length as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.stream.set_nonblocking(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest that says this is taken to answer.
    fn answered(before: &[u8], says: &'static [u8]) -> Result<Answer, String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(before).unwrap();
        let mut own = Own { patience: Duration::from_millis(300), ..Own::new(ours).unwrap() };
        let guest = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(&theirs).read_line(&mut line).unwrap();
            // It may have been hung up on in the middle of it.
            let _ = (&theirs).write_all(says);
            (line, theirs)
        });
        let answer = own.ask(&Ask::Hold).map_err(|error| error.to_string());
        drop(own);
        assert_eq!(guest.join().unwrap().0, "\"hold\"\n");
        answer
    }

    #[test]
    fn one_line_is_the_answer() {
        assert_eq!(answered(b"", b"{\"held\":{\"locked\":null}}\n"), Ok(Answer::Held { locked: None }));
        assert_eq!(answered(b"\"released\"\n", b"{\"failed\":\"no\"}\n"), Ok(Answer::Failed("no".into())));
    }

    #[test]
    fn only_the_last_word_is_one() {
        let last = |says: &[u8]| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut own = Own::new(ours).unwrap();
            (&theirs).write_all(says).unwrap();
            drop(theirs);
            own.last_word().unwrap()
        };
        assert!(last(b"\"off\"\n") && last(b"\"released\"\n\"off\"\n"));
        assert!(!last(b"") && !last(b"\"off\"") && !last(b"\"off\"\n\"released\"\n") && !last(b"off\n"));
        assert!(!last(&[b'x'; 32 << 10]));
    }

    #[test]
    fn a_guest_that_says_something_else_is_not_believed() {
        static ENDLESS: [u8; 64 << 10] = [b'x'; 64 << 10];
        assert_eq!(answered(b"", b""), Err("the guest does not answer".into()));
        assert_eq!(answered(b"", b"{\"held\":{\"lock"), Err("the guest does not answer".into()));
        assert_eq!(answered(b"", b"hello\n"), Err("the guest says something else".into()));
        assert_eq!(answered(b"", &ENDLESS), Err("the guest says too much".into()));
    }
}
