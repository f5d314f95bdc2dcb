//! What git calls in place of `git pack-objects` (`uploadpack.packObjectsHook`, git-config(1)): asks the
//! service for the pack, and in any doubt makes it itself.
//!
//! ```text
//! upload-pack ─► hook ── Ask (one JSON line), input ──► service
//!                  │  ◄── `-` make it yourself
//!                  │  ◄── `@PATH` read it there, then `+N` N bytes are there … `=N` and that is all, or `!`
//!                  └──► standard output
//! ```

use super::Ask;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Bytes of input that the service is asked about; with more, nobody else will ask the same.
const INPUT: usize = 1 << 20;

/// Answers git. `argv` is the command that git would have run: `git … pack-objects …`. Returns the status to
/// exit with.
pub fn run(socket: &Path, repo: &str, argv: &[OsString]) -> io::Result<u8> {
    let mut input = Vec::new();
    io::stdin().lock().take(INPUT as u64).read_to_end(&mut input)?;
    if input.len() < INPUT {
        match ask(socket, repo, argv, &input) {
            Ok(Outcome::Done) => return Ok(0),
            // Bytes of one pack do not go on with those of another.
            Ok(Outcome::Broken) => return Ok(1),
            // The service ends, or the pack was removed: git makes it as if there was no cache.
            Ok(Outcome::Yourself) | Err(_) => {}
        }
    }
    make(argv, &input)
}

enum Outcome {
    Done,
    Yourself,
    Broken,
}

fn ask(socket: &Path, repo: &str, argv: &[OsString], input: &[u8]) -> io::Result<Outcome> {
    let argv: Option<Vec<String>> = argv.iter().map(|arg| arg.to_str().map(str::to_owned)).collect();
    let Some(argv) = argv else { return Ok(Outcome::Yourself) };
    let mut stream = UnixStream::connect(socket)?;
    let ask = Ask { repo: repo.to_owned(), argv, input: input.len() };
    let mut request = serde_json::to_vec(&ask)?;
    request.push(b'\n');
    request.extend_from_slice(input);
    stream.write_all(&request)?;
    let mut answers = BufReader::new(stream);
    let mut line = String::new();
    answers.read_line(&mut line)?;
    let Some(path) = line.trim_end_matches('\n').strip_prefix('@') else { return Ok(Outcome::Yourself) };
    let mut pack = File::open(path)?;
    let mut out = io::stdout().lock();
    let mut written = 0;
    loop {
        line.clear();
        // From here on the service may go away in the middle of a pack.
        if answers.read_line(&mut line).unwrap_or(0) == 0 {
            return Ok(if written == 0 { Outcome::Yourself } else { Outcome::Broken });
        }
        let (kind, count) = line.trim_end_matches('\n').split_at_checked(1).unwrap_or_default();
        let there: u64 = count.parse().unwrap_or(0);
        if matches!(kind, "+" | "=") && there > written {
            let copied = io::copy(&mut (&mut pack).take(there - written), &mut out);
            match copied {
                Ok(n) if n == there - written => written = there,
                _ => return Ok(Outcome::Broken),
            }
            if out.flush().is_err() {
                return Ok(Outcome::Broken);
            }
        }
        match kind {
            "=" => return Ok(Outcome::Done),
            "+" => {}
            _ if written == 0 => return Ok(Outcome::Yourself),
            _ => return Ok(Outcome::Broken),
        }
    }
}

/// Runs what git would have run.
fn make(argv: &[OsString], input: &[u8]) -> io::Result<u8> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it does not want to read any more is its own matter.
        let _ = stdin.write_all(input).and_then(|()| io::copy(&mut io::stdin().lock(), &mut stdin).map(drop));
    }
    Ok(child.wait()?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
