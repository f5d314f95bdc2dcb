//! What a service manager is told, and what it hands over (sd_notify(3), sd_listen_fds(3)): a few bytes, so that no
//! library of systemd is needed.

use std::env;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells the manager, if there is one: `READY=1`, `STOPPING=1`, `STATUS=…`. That it does not listen is no failure.
pub fn tell(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let send = || UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address?);
    let _ = send();
}

/// Takes the sockets that the manager listens on for us, each with its name (`FileDescriptorName=`).
pub fn sockets() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| env::var(name).ok()?.parse::<i32>().ok();
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        return Vec::new();
    }
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat("unknown".to_owned()));
    // SD_LISTEN_FDS_START
    let numbers = 3..3 + number("LISTEN_FDS").unwrap_or(0).clamp(0, 64);
    names.zip(numbers).filter_map(|(name, number)| Some((name, sandbox_sys::fork::inherited(number).ok()?))).collect()
}
