//! The network of a check, where the user's settings or the copied sandbox have rules for one: the same proxy and the
//! same policy file as of any other sandbox, as a child of the process that runs the check.
//!
//! ```text
//!   loopback inside ──► listening socket ──► __proxy ──► the world
//!                                              │ a line for each decision
//!                                              ▼
//!                                        what was refused ends up under the check's output
//! ```

use sandbox_protocol::event::{Event, Happened, Network, Verdict};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Bytes of one line of the proxy's; it cuts names well below.
const MAX_LINE: usize = 16 * 1024;
/// Refusals that are told of.
const TOLD: usize = 8;

/// A proxy. Dropped, it ends.
#[derive(Debug)]
pub struct Egress {
    proxy: Child,
    /// Its standard output, not blocking; `None` after its end.
    lines: Option<File>,
    partial: Vec<u8>,
    refused: BTreeSet<(String, u16)>,
    /// More of them than are told.
    more: bool,
    /// It ended while it was needed.
    gone: bool,
}

impl Egress {
    /// Starts one over `listener`, for the policy file `policy` and the sandbox whose first process is `init`.
    pub fn start(program: &Path, listener: OwnedFd, policy: &Path, init: u32) -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        rustix::io::ioctl_fionbio(&read, true)?;
        let mut command = Command::new(program);
        command.arg("__proxy").arg(policy).args(["--init", &init.to_string()]).current_dir("/");
        let proxy = command.stdin(listener).stdout(write).stderr(Stdio::null()).spawn()?;
        let lines = Some(File::from(OwnedFd::from(read)));
        Ok(Self { proxy, lines, partial: Vec::new(), refused: BTreeSet::new(), more: false, gone: false })
    }

    /// What to wait for.
    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.lines.as_ref().map(|lines| lines.as_fd())
    }

    /// Takes what it has said.
    pub fn read(&mut self) {
        let mut bytes = [0u8; 16 * 1024];
        while let Some(lines) = &mut self.lines {
            match lines.read(&mut bytes) {
                Ok(0) => (self.lines, self.gone) = (None, true),
                Ok(n) => self.take(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => (self.lines, self.gone) = (None, true),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                if let Ok(Event { what: Happened::Network(network), .. }) = serde_json::from_slice(&line)
                    && network.verdict == Verdict::Refused
                {
                    self.add(network);
                }
            } else if self.partial.len() > MAX_LINE {
                self.partial.clear();
            }
        }
    }

    fn add(&mut self, network: Network) {
        let refused = (network.host, network.port);
        match self.refused.len() < TOLD {
            true => drop(self.refused.insert(refused)),
            false => self.more |= !self.refused.contains(&refused),
        }
    }

    /// What is said under the check's output; nothing where nothing was refused.
    pub fn words(&self) -> String {
        let mut text = String::new();
        for (host, port) in &self.refused {
            let shown = if matches!(port, 0 | 443) { host.clone() } else { format!("{host}:{port}") };
            text.push_str(&format!("[not let out: {shown}]\n"));
        }
        if self.more {
            text.push_str("[and others]\n");
        }
        if self.gone {
            text.push_str("[the network of this check ended before it did: its proxy is gone]\n");
        }
        text
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress() -> Egress {
        let proxy = Command::new("true").spawn().unwrap();
        Egress { proxy, lines: None, partial: Vec::new(), refused: BTreeSet::new(), more: false, gone: false }
    }

    fn line(verdict: Verdict, host: &str, port: u16) -> Vec<u8> {
        let network = Network { verdict, host: host.into(), port, ..Network::default() };
        let mut line = serde_json::to_vec(&Event { at: 1, what: Happened::Network(network) }).unwrap();
        line.push(b'\n');
        line
    }

    #[test]
    fn each_refusal_is_told_once() {
        let mut egress = egress();
        assert_eq!(egress.words(), "");
        let lines = [
            line(Verdict::Refused, "b.example", 443),
            line(Verdict::Allowed, "fine.example", 443),
            b"no line\n".to_vec(),
            line(Verdict::Refused, "a.example", 8443),
            line(Verdict::Refused, "b.example", 443),
        ];
        // In pieces, as a pipe gives them.
        lines.concat().chunks(7).for_each(|bytes| egress.take(bytes));
        assert_eq!(egress.words(), "[not let out: a.example:8443]\n[not let out: b.example]\n");
        (0..20).for_each(|n| egress.take(&line(Verdict::Refused, &format!("{n}.example"), 443)));
        assert_eq!(egress.words().lines().count(), TOLD + 1);
        assert!(egress.words().ends_with("[and others]\n"));
        egress.take(&vec![b'x'; 2 * MAX_LINE]);
        assert!(egress.partial.is_empty());
    }
}
