//! A real terminal for a command: keys in, text out, with a deadline on each expectation.

use crate::process::Child;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A command on a pseudo-terminal. Dropping it ends the command.
pub struct Pty {
    child: Child,
    master: Option<File>,
    /// Set when the terminal is to close.
    closing: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    seen: Arc<(Mutex<Vec<u8>>, Condvar)>,
    /// How much of the text earlier expectations have used up.
    read: usize,
}

impl Pty {
    /// Starts the command with a new terminal of 24 × 100 as its controlling one.
    ///
    /// The command is run by `setsid --ctty`: a process can only take a terminal itself.
    ///
    /// # Panics
    /// If there is no terminal to be had, or the command cannot be started.
    #[track_caller]
    pub fn spawn(command: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).expect("a new terminal");
        unlockpt(&master).expect("a new terminal");
        let name = ptsname(&master, Vec::new()).expect("a new terminal");
        let path = std::ffi::OsStr::from_bytes(name.to_bytes());
        resize(&master, 24, 100);
        let slave = || Stdio::from(OpenOptions::new().read(true).write(true).open(path).expect("a new terminal"));
        let mut outer = Command::new("setsid");
        outer.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer.env("TERM", "xterm-256color");
        if let Some(dir) = command.get_current_dir() {
            outer.current_dir(dir);
        }
        let child = Child::spawn(outer.stdin(slave()).stdout(slave()).stderr(slave()));
        drop(outer);
        let master = File::from(master);
        let seen = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (into, mut from) = (seen.clone(), master.try_clone().expect("a descriptor"));
        let closing = Arc::new(AtomicBool::new(false));
        let closes = closing.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            while !closes.load(Ordering::SeqCst) {
                if let Ok(0) = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&tick)) {
                    continue;
                }
                // EIO is how a terminal says that its last user is gone.
                let Ok(n @ 1..) = from.read(&mut buffer) else { return };
                into.0.lock().expect("readers do not panic").extend_from_slice(&buffer[..n]);
                into.1.notify_all();
            }
        });
        Self { child, master: Some(master), closing, reader: Some(reader), seen, read: 0 }
    }

    /// Types keys.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[track_caller]
    pub fn send(&mut self, keys: &str) {
        self.master().write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// Waits for a text after the one found last and returns all up to and with it, without
    /// escape sequences.
    ///
    /// # Panics
    /// If it does not come within two minutes: with what came instead.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let mut deadline = Instant::now() + Duration::from_secs(120);
        let (lock, changed) = &*self.seen;
        let mut seen = lock.lock().expect("readers do not panic");
        loop {
            let plain = plain(&seen);
            if let Some(at) = plain[self.read..].find(text) {
                let end = self.read + at + text.len();
                let part = plain[self.read..end].to_owned();
                self.read = end;
                return part;
            }
            // A command that has ended says nothing more, but its last words may be under way.
            if self.child.try_ended().is_some() {
                deadline = deadline.min(Instant::now() + Duration::from_millis(500));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the terminal never showed {text:?}; it showed\n{}", &plain[self.read..]);
            seen = changed.wait_timeout(seen, left.min(Duration::from_millis(200))).expect("readers do not panic").0;
        }
    }

    /// Returns everything shown so far, without escape sequences.
    pub fn text(&self) -> String {
        plain(&self.seen.0.lock().expect("readers do not panic"))
    }

    /// Returns everything shown so far as it is.
    pub fn raw(&self) -> Vec<u8> {
        self.seen.0.lock().expect("readers do not panic").clone()
    }

    /// Gives the window another size.
    pub fn resize(&self, rows: u16, cols: u16) {
        resize(self.master(), rows, cols);
    }

    /// Whether keys come as they are typed (raw mode), or line by line with an echo.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(self.master()).expect("an open terminal");
        !modes.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Closes the terminal, as when its window is closed or the line is lost: its users get HUP. The command goes on
    /// as far as it wants.
    pub fn hang_up(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.master = None;
    }

    fn master(&self) -> &File {
        self.master.as_ref().expect("the terminal is open")
    }

    /// Waits for the command's end; returns its status and everything it showed.
    ///
    /// # Panics
    /// If it does not end within 30 seconds.
    #[track_caller]
    pub fn wait(&mut self) -> (i32, String) {
        let status = self.child.wait(Duration::from_secs(120));
        // The reader may be a moment behind.
        let mut length = usize::MAX;
        while length != self.text().len() {
            length = self.text().len();
            std::thread::sleep(Duration::from_millis(30));
        }
        (status, self.text())
    }

    /// The command's process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}

fn resize(master: &impl AsFd, rows: u16, cols: u16) {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).expect("an open terminal");
}

/// Cuts escape sequences (CSI, OSC, two-byte ones) and carriage returns out of what a terminal got.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !('\x40'..='\x7e').contains(&c)) {},
                Some(']') => while chars.next().is_some_and(|c| c != '\x07' && c != '\\') {},
                _ => {}
            },
            '\r' | '\x07' => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell() -> Pty {
        let mut command = Command::new("sh");
        Pty::spawn(command.env("PS1", "ready> ").env("PATH", "/usr/bin:/bin"))
    }

    #[test]
    fn a_shell_has_a_terminal_of_the_given_size() {
        let mut pty = shell();
        pty.expect("ready> ");
        pty.resize(33, 77);
        pty.send("tty && stty size; exit 5\r");
        pty.expect("/dev/pts/");
        pty.expect("33 77");
        assert_eq!(pty.wait().0, 5);
    }

    #[test]
    fn control_c_interrupts() {
        let mut pty = shell();
        pty.expect("ready> ");
        // What it prints is not what was typed: it runs then.
        pty.send("sh -c 'printf %s%s run ning; exec sleep 60'\r");
        pty.expect("running");
        pty.send("\x03");
        pty.expect("ready> ");
        pty.send("exit\r");
        assert_eq!(pty.wait().0, 130);
    }

    #[test]
    fn escape_sequences_are_not_text() {
        assert_eq!(plain(b"a\x1b[1;31mb\x1b]0;title\x07c\x1b[0m\r\nd\x1b=e"), "abc\nde");
    }
}
