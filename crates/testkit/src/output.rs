//! What a command printed and how it ended, in one text that a snapshot can hold.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Output of a finished command. `Display` is the filtered form for snapshots.
#[derive(Clone, Debug)]
pub struct Output {
    /// What was run, for messages.
    pub command: String,
    /// Standard output as it was.
    pub stdout: String,
    /// Standard error as it was.
    pub stderr: String,
    /// As a shell shows it: the code, or 128 + signal.
    pub status: i32,
    pub(crate) rendered: String,
}

impl Output {
    pub(crate) fn new(command: String, raw: std::process::Output, filter: impl Fn(&str) -> String) -> Self {
        let stdout = String::from_utf8_lossy(&raw.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&raw.stderr).into_owned();
        let status = shell_status(raw.status);
        let mut rendered = filter(&stdout);
        if !stderr.is_empty() {
            rendered.push_str("---- stderr\n");
            rendered.push_str(&filter(&stderr));
        }
        rendered.push_str(&format!("---- status {status}\n"));
        Self { command, stdout, stderr, status, rendered }
    }

    /// Returns standard output.
    ///
    /// # Panics
    /// If the command failed: with all that it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        self.expect(0).stdout
    }

    /// Returns itself when the status is the expected one.
    ///
    /// # Panics
    /// If it is another: with all that the command printed.
    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "`{}`\n{}{}", self.command, self.stdout, self.stderr);
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rendered)
    }
}

/// The status that a shell would show.
pub(crate) fn shell_status(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
