//! Pseudo-terminals and controlling terminals.

use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Both ends of a new pseudo-terminal, closed by an exec.
#[derive(Debug)]
pub struct Pty {
    /// The end of whoever shows the terminal.
    pub master: OwnedFd,
    /// The end of the processes in it.
    pub slave: OwnedFd,
}

/// Opens a pseudo-terminal of this size, which becomes nobody's controlling terminal by that.
pub fn open(rows: u16, cols: u16) -> io::Result<Pty> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    // By descriptor, not by name: `/dev/pts` may be another instance than the master's.
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    // What every terminal program sets: an erased character is a character, not a byte.
    let mut modes = tcgetattr(&slave)?;
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    let pty = Pty { master, slave };
    set_size(&pty.master, rows, cols)?;
    Ok(pty)
}

/// Sets the size of a terminal; its foreground process group gets SIGWINCH when it changed.
pub fn set_size(terminal: impl AsFd, rows: u16, cols: u16) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// Returns the foreground process group of a terminal, asked by either end; `None` when it has none.
pub fn foreground(terminal: impl AsFd) -> Option<Pid> {
    tcgetpgrp(terminal).ok()
}

/// Makes the terminal the controlling one of the calling process, which must lead a session
/// without one.
pub fn make_controlling(terminal: impl AsFd) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(terminal)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::tcgetwinsize;

    #[test]
    fn both_ends_are_one_terminal() {
        let pty = open(24, 80).unwrap();
        rustix::io::write(&pty.slave, b"out\n").unwrap();
        let mut buffer = [0; 16];
        let length = rustix::io::read(&pty.master, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"out\r\n");
        set_size(&pty.master, 10, 20).unwrap();
        let size = tcgetwinsize(&pty.slave).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (10, 20));
        assert_eq!(foreground(&pty.master), None);
    }
}
