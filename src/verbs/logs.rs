//! `logs`: output of the main commands, from the logs on disk: it needs no running sandbox.

use super::stop::chosen;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::follow::{Follower, Lines, last};
use crate::prefix::Prefixes;
use crate::text::escape_lines;
use sandbox_core::sandbox::{Sandbox, State};
use std::io::{self, Write};
use std::time::Duration;

pub fn run(context: &Context, args: &cli::Logs) -> Outcome {
    if args.raw && (args.all || args.names.len() > 1) {
        return Err(CliError::usage("--raw is for one sandbox: control characters of several would mix")
            .hint("`git sandbox logs --raw NAME` prints one as it is, without --raw several are printed"));
    }
    let store = context.store()?;
    let sandboxes = distinct(chosen(context, &store, &args.names, args.all)?);
    match sandboxes.as_slice() {
        [sandbox] if !args.all => one(sandbox, args),
        sandboxes => several(context, sandboxes, args),
    }
}

/// Each once, in the order of their first naming.
pub fn distinct(mut sandboxes: Vec<Sandbox>) -> Vec<Sandbox> {
    let mut seen = std::collections::BTreeSet::new();
    sandboxes.retain(|sandbox| seen.insert(sandbox.record.id.to_string()));
    sandboxes
}

/// Reads the log of a sandbox, and knows when nothing more will come.
struct Source<'a> {
    sandbox: &'a Sandbox,
    follower: Follower,
    ended: bool,
}

impl<'a> Source<'a> {
    fn new(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, follower: Follower::new(&sandbox.dir.log()), ended: false }
    }

    fn read(&mut self) -> Result<Vec<u8>, CliError> {
        // Asked before reading: what was written before its end is read after it.
        let status = self.sandbox.status()?;
        self.ended = self.sandbox.state_of(&status) != State::Running || status.exited.is_some();
        let path = self.sandbox.dir.log();
        self.follower.read().map_err(CliError::io(format!("read '{}'", path.display())))
    }
}

/// One: its bytes as they come.
fn one(sandbox: &Sandbox, args: &cli::Logs) -> Outcome {
    let mut source = Source::new(sandbox);
    let mut text = Text::default();
    let mut first = true;
    loop {
        let mut new = source.read()?;
        if std::mem::take(&mut first) {
            new = last_lines(&new, args.lines).to_vec();
        }
        let done = source.ended || !args.follow;
        let shown = if args.raw { new.clone() } else { text.feed(&new, done).into_bytes() };
        if !write(&shown)? || done {
            return Ok(0);
        }
        if new.is_empty() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Several: whole lines, each with the name in front.
fn several(context: &Context, sandboxes: &[Sandbox], args: &cli::Logs) -> Outcome {
    let names: Vec<&str> = sandboxes.iter().map(Sandbox::name).collect();
    let prefixes = Prefixes::new(context, &names);
    let mut sources: Vec<(usize, Source, Lines)> =
        sandboxes.iter().enumerate().map(|(n, sandbox)| (n, Source::new(sandbox), Lines::default())).collect();
    let mut first = true;
    loop {
        let mut silent = true;
        for (n, source, lines) in &mut sources {
            let mut new = lines.feed(&source.read()?);
            if source.ended || !args.follow {
                new.extend(lines.rest());
            }
            if first {
                new = last(new, args.lines);
            }
            silent &= new.is_empty();
            let mut text = String::new();
            for line in new {
                text.push_str(prefixes.of(*n));
                text.push_str(&printable(&line));
                text.push('\n');
            }
            if !write(text.as_bytes())? {
                return Ok(0);
            }
        }
        first = false;
        sources.retain(|(_, source, _)| !source.ended);
        if sources.is_empty() || !args.follow {
            return Ok(0);
        }
        if silent {
            // Each look costs a few system calls for each sandbox.
            std::thread::sleep(Duration::from_millis(50 + 2 * sources.len().min(200) as u64));
        }
    }
}

/// A line safe for a terminal; the carriage return of a terminal's line end says nothing here.
fn printable(line: &[u8]) -> String {
    escape_lines(&String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)))
}

/// Writes to standard output; false when nobody reads it any more.
pub fn write(bytes: &[u8]) -> Result<bool, CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::io("write to standard output")(error)),
    }
}

/// Makes text of bytes that come in pieces: a character or a line end that is cut waits for its rest.
#[derive(Default)]
struct Text {
    rest: Vec<u8>,
}

impl Text {
    fn feed(&mut self, bytes: &[u8], last: bool) -> String {
        self.rest.extend_from_slice(bytes);
        let cut = if last { self.rest.len() } else { complete(&self.rest) };
        let text = String::from_utf8_lossy(&self.rest[..cut]).replace("\r\n", "\n");
        self.rest.drain(..cut);
        escape_lines(&text)
    }
}

/// How many bytes there are before a character, or a line end, that may go on.
fn complete(bytes: &[u8]) -> usize {
    if bytes.last() == Some(&b'\r') {
        return bytes.len() - 1;
    }
    let begun = (1..=bytes.len().min(3)).find(|back| bytes[bytes.len() - back] & 0xc0 != 0x80);
    match begun.map(|back| (back, bytes[bytes.len() - back])) {
        Some((back, lead)) if lead >= 0xc2 && back < lead.leading_ones() as usize && lead <= 0xf4 => bytes.len() - back,
        _ => bytes.len(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_the_last_lines() {
        assert_eq!(last_lines(b"a\nb\nc\n", Some(2)), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb", Some(1)), b"b");
        assert_eq!(last_lines(b"a\n", Some(9)), b"a\n");
        assert_eq!(last_lines(b"a\n", Some(0)), b"");
        assert_eq!(last_lines(b"a\nb\n", None), b"a\nb\n");
    }

    #[test]
    fn text_is_the_same_however_it_is_cut() {
        let all = "Grüße\r\n日本 🦀\x1b[1m\r\nend\r".as_bytes();
        let whole = Text::default().feed(all, true);
        assert_eq!(whole, "Grüße\n日本 🦀\\u{1b}[1m\nend\\u{d}");
        for cut in 0..=all.len() {
            let mut text = Text::default();
            assert_eq!(text.feed(&all[..cut], false) + &text.feed(&all[cut..], true), whole, "{cut}");
        }
        let mut text = Text::default();
        assert_eq!(text.feed(b"a\xff\xe6", false) + &text.feed(b"", true), "a\u{fffd}\u{fffd}");
    }
}
