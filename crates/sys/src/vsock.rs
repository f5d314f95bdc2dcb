//! Sockets between a machine and its guests (vsock(7)).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The host, as its guests call it.
pub const HOST: u32 = libc::VMADDR_CID_HOST;

// `linux/vm_sockets.h`; the C library's headers do not have them.
const BUFFER_SIZE: libc::c_int = 0;
const CONNECT_TIMEOUT: libc::c_int = 6;

/// Lets the kernel choose a port.
pub const ANY_PORT: u32 = libc::VMADDR_PORT_ANY;

fn socket(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all-zero bytes are a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Whether an error says that the kernel has no vsock at all.
pub fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::ENODEV))
}

/// Listens on a port of all contexts that this machine has; the socket does not block.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let fd = socket(libc::SOCK_NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` lives over the call and its size is given.
    let bound =
        unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_vm>() as u32) };
    // SAFETY: no memory is involved.
    if bound != 0 || unsafe { libc::listen(fd.as_raw_fd(), 1024) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Takes a waiting client; its socket does not block.
pub fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the address is not asked for.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The port that a socket is bound to.
pub fn port(socket: &OwnedFd) -> io::Result<u32> {
    let mut found = address(0, 0);
    let mut length = size_of::<libc::sockaddr_vm>() as u32;
    // SAFETY: `found` and `length` live over the call, and `length` says how much may be written.
    match unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut found).cast(), &raw mut length) } {
        0 => Ok(found.svm_port),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connects to a port of a context (2: the host of a guest). The socket does not block afterwards.
pub fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let fd = socket(0)?;
    let address = address(cid, port);
    // SAFETY: `address` lives over the call and its size is given.
    let done =
        unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_vm>() as u32) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Begins to connect to a port of a context: whether it did is known ([`libc::SO_ERROR`]) when the socket can be
/// written, after `patience` at the latest. What the peer sent and nobody has read yet is at most `buffer` bytes.
pub fn begin_connect(cid: u32, port: u32, patience: Duration, buffer: u64) -> io::Result<OwnedFd> {
    let fd = socket(libc::SOCK_NONBLOCK)?;
    set(&fd, BUFFER_SIZE, &buffer)?;
    let time = libc::timeval { tv_sec: patience.as_secs() as libc::time_t, tv_usec: 0 };
    set(&fd, CONNECT_TIMEOUT, &time)?;
    let address = address(cid, port);
    // SAFETY: `address` lives over the call and its size is given.
    let done =
        unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_vm>() as u32) };
    match done {
        0 => Ok(fd),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(fd),
            error => Err(error),
        },
    }
}

fn set<T: Copy>(fd: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` lives over the call and its size is given; the callers give the types that the kernel reads.
    match unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::AF_VSOCK, option, (&raw const *value).cast(), size_of::<T>() as u32)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connects to a port of this machine, where the kernel has the loopback transport.
pub fn connect_local(port: u32) -> io::Result<OwnedFd> {
    connect(libc::VMADDR_CID_LOCAL, port)
}
