//! `logs`: output of the main command, from the log on disk: it needs no running sandbox.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::escape_lines;
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_supervisor::RingLog;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

pub fn run(context: &Context, args: &cli::Logs) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let path = sandbox.dir.log();
    let mut follower = args.follow.then(|| Follower::at_end(&sandbox));
    let past = RingLog::tail(&path, u64::MAX / 2).map_err(CliError::io(format!("read '{}'", path.display())))?;
    print(last_lines(&past, args.lines), args.raw)?;
    let Some(follower) = &mut follower else { return Ok(0) };
    loop {
        // Asked before reading: what was written before its end is read after it.
        let running = sandbox.state()? == State::Running && sandbox.status()?.exited.is_none();
        let new = follower.read().map_err(CliError::io(format!("read '{}'", path.display())))?;
        print(&new, args.raw)?;
        if !running {
            return Ok(0);
        }
        if new.is_empty() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn print(bytes: &[u8], raw: bool) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = if raw {
        out.write_all(bytes)
    } else {
        // Carriage returns of a terminal's line ends say nothing here.
        let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
        out.write_all(escape_lines(&text).as_bytes())
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::io("write to standard output")(error)),
        _ => Ok(()),
    }
}

fn last_lines(bytes: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return bytes };
    let end = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let start = end
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, b)| **b == b'\n')
        .nth(lines.saturating_sub(1))
        .map_or(0, |(i, _)| i + 1);
    if lines == 0 { &[] } else { &bytes[start..] }
}

/// Reads what is appended, also over the change to a new file.
struct Follower {
    path: std::path::PathBuf,
    file: Option<File>,
}

impl Follower {
    fn at_end(sandbox: &Sandbox) -> Self {
        let path = sandbox.dir.log();
        let mut file = File::open(&path).ok();
        if let Some(file) = &mut file {
            let _ = file.seek(SeekFrom::End(0));
        }
        Self { path, file }
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut new = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut new)?;
        }
        let current = std::fs::metadata(&self.path).ok().map(|meta| meta.ino());
        let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|meta| meta.ino());
        if current != ours {
            self.file = File::open(&self.path).ok();
            if let Some(file) = &mut self.file {
                file.read_to_end(&mut new)?;
            }
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_are_the_last_lines() {
        assert_eq!(last_lines(b"a\nb\nc\n", Some(2)), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb", Some(1)), b"b");
        assert_eq!(last_lines(b"a\n", Some(9)), b"a\n");
        assert_eq!(last_lines(b"a\n", Some(0)), b"");
        assert_eq!(last_lines(b"a\nb\n", None), b"a\nb\n");
    }
}
