//! Unix sockets through directory descriptors (no length limit), descriptor passing.
//!
//! `sun_path` holds 107 bytes and state directories are longer; `/proc/self/fd/<n>/<name>` never is.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// The most descriptors that one message carries here.
pub const MAX_FDS: usize = 8;

fn path_at(directory: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    if name.contains('/') || name.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket's name is one path component"));
    }
    Ok(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// Connects to the socket `name` in a directory.
pub fn connect_at(directory: impl AsFd, name: &str) -> io::Result<UnixStream> {
    UnixStream::connect(path_at(directory.as_fd(), name)?)
}

/// Makes the socket `name` in a directory and listens on it; `AddrInUse` when the name exists.
pub fn listen_at(directory: impl AsFd, name: &str) -> io::Result<UnixListener> {
    UnixListener::bind(path_at(directory.as_fd(), name)?)
}

/// Returns two connected sockets that keep message boundaries, closed by an exec.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message with descriptors. A closed peer is an error, never a signal.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message and its descriptors (closed by an exec). Length 0 is the end.
/// With `wait` false and nothing there: `WouldBlock`.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], wait: bool) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = if wait { RecvFlags::CMSG_CLOEXEC } else { RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT };
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn descriptors_travel() {
        let (left, right) = message_pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&left, b"take", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let (length, fds) = receive(&right, &mut buffer, true).unwrap();
        assert_eq!((&buffer[..length], fds.len()), (&b"take"[..], 1));
        std::fs::File::from(fds.into_iter().next().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(receive(&right, &mut buffer, false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert_eq!(receive(&right, &mut buffer, true).unwrap().0, 0);
    }

    #[test]
    fn long_paths_are_no_limit() {
        let top = std::env::temp_dir().join(format!("socket-{}", std::process::id()));
        let deep = top.join("d".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let directory = std::fs::File::open(&deep).unwrap();
        let listener = listen_at(&directory, "ctl").unwrap();
        let mut client = connect_at(&directory, "ctl").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(connect_at(&directory, "../ctl").is_err());
        std::fs::remove_dir_all(top).unwrap();
    }
}
