//! QEMU's control protocol (QMP, `docs/interop/qmp-spec` of QEMU): one JSON value a line, each command answered by
//! `return` or `error`, events in between.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take: QEMU may be writing the disk's last blocks.
const PATIENCE: Duration = Duration::from_secs(10);

/// More lines than this, or a longer one, is not an answer.
const MOST_LINES: usize = 10_000;
const LONGEST_LINE: u64 = 1 << 20;

/// A connection to the monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
    greeted: bool,
}

impl Monitor {
    /// Takes the connection; nothing is said yet.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), greeted: false })
    }

    /// Carries out a command without arguments (`stop`, `cont`, `quit`).
    pub fn execute(&mut self, command: &str) -> io::Result<Value> {
        if !self.greeted {
            self.read(|answer| answer.get("QMP").is_some())?;
            self.ask("qmp_capabilities")?;
            self.greeted = true;
        }
        self.ask(command)
    }

    fn ask(&mut self, command: &str) -> io::Result<Value> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream.get_mut().write_all(line.as_bytes())?;
        let answer = self.read(|answer| answer.get("return").is_some() || answer.get("error").is_some())?;
        match answer.get("error") {
            None => Ok(answer.get("return").cloned().unwrap_or_default()),
            Some(error) => {
                let said = error.get("desc").and_then(Value::as_str).unwrap_or("no reason");
                Err(io::Error::other(format!("QEMU cannot '{command}': {said}")))
            }
        }
    }

    fn read(&mut self, wanted: impl Fn(&Value) -> bool) -> io::Result<Value> {
        for _ in 0..MOST_LINES {
            let mut line = String::new();
            if self.stream.by_ref().take(LONGEST_LINE).read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let answer: Value = serde_json::from_str(&line)?;
            if wanted(&answer) {
                return Ok(answer);
            }
        }
        Err(io::Error::other("QEMU's monitor says other things"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(answers: &'static [&'static str]) -> (Monitor, std::thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            let mut heard = Vec::new();
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut theirs = theirs;
            theirs.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").unwrap();
            for answer in answers {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 {
                    break;
                }
                heard.push(line.trim().to_owned());
                theirs.write_all(answer.as_bytes()).unwrap();
            }
            heard
        });
        (Monitor::new(ours).unwrap(), peer)
    }

    #[test]
    fn events_come_in_between() {
        let (mut monitor, peer) =
            talk(&["{\"return\": {}}\r\n", "{\"event\": \"STOP\"}\r\n{\"return\": {\"x\": 1}}\r\n"]);
        assert_eq!(monitor.execute("stop").unwrap(), json!({"x": 1}));
        drop(monitor);
        assert_eq!(peer.join().unwrap(), ["{\"execute\":\"qmp_capabilities\"}", "{\"execute\":\"stop\"}"]);
    }

    #[test]
    fn a_refusal_and_an_end_are_errors() {
        let (mut monitor, peer) =
            talk(&["{\"return\": {}}\r\n", "{\"error\": {\"class\": \"X\", \"desc\": \"not now\"}}\r\n"]);
        assert_eq!(monitor.execute("cont").unwrap_err().to_string(), "QEMU cannot 'cont': not now");
        peer.join().unwrap();
        assert!(monitor.execute("cont").is_err());
    }
}
