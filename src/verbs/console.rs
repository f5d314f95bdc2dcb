//! `show --console`: what the kernel of a virtual machine and its QEMU printed, as far as it is kept.

use super::list::print_json;
use crate::error::{CliError, Outcome};
use crate::text::escape_lines;
use sandbox_core::sandbox::Sandbox;
use sandbox_supervisor::RingLog;
use serde::Serialize;

/// More is not kept.
const MOST: u64 = 8 << 20;

/// Schema version 1.
#[derive(Serialize)]
struct Console<'a> {
    version: u32,
    name: &'a str,
    /// Control characters but line ends are escaped.
    console: String,
}

pub fn run(sandbox: &Sandbox, json: bool) -> Outcome {
    let name = sandbox.name();
    if !sandbox.record.guest_disk {
        return Err(CliError::new(format!("'{name}' has no console: it is not in a virtual machine"))
            .hint(format!("`git sandbox logs {name}` prints what its command printed")));
    }
    let path = sandbox.dir.console();
    let said = RingLog::tail(&path, MOST).map_err(CliError::io(format!("read '{}'", path.display())))?;
    let console = printable(&said);
    match json {
        true => print_json(&Console { version: 1, name, console })?,
        false => print!("{console}"),
    }
    Ok(0)
}

/// Lines of a serial console, safe for a terminal.
fn printable(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said).replace("\r\n", "\n");
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    escape_lines(&text) + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_is_safe_to_print() {
        assert_eq!(printable(b""), "");
        assert_eq!(printable(b"[ 0.1] one\r\n\x1b[2Jtwo\x07\xff"), "[ 0.1] one\n\\u{1b}[2Jtwo\\u{7}\u{fffd}\n");
    }
}
