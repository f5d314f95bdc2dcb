//! `__proxy POLICY_FILE [--init PID]`: lets a sandbox out where its policy says so. Standard input is the
//! listening socket that the sandbox sees on its loopback, standard output takes one JSON line for
//! each decision. `--init` is the sandbox's PID 1, to tell which process inside was refused.
//!
//! What speaks to it is not trusted, and it can reach the network: it ends with its supervisor, has
//! no descriptor but the two and standard error, and cannot gain privileges, dump core or be looked into.

use super::argument;
use crate::error::CliError;
use rustix::fs::{Dir, Mode, OFlags, openat, readlinkat};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior, setrlimit};
use sandbox_proxy::{Config, Limits, serve};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

/// Descriptors that all connections and tunnels together may need, with some to spare.
const DESCRIPTORS: u64 = 4096;

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let policy = argument(args, 0, "the policy file")?;
    let policy = std::path::absolute(policy).map_err(CliError::io("find the policy file"))?;
    let init = match args.get(1).map(|flag| flag == "--init") {
        None => None,
        Some(true) => Some(argument(args, 2, "the pid of '--init'")?.to_str().and_then(|pid| pid.parse().ok())),
        Some(false) => return Err(CliError::usage("the only option of a proxy is '--init PID'")),
    };
    let init = init.map(|pid: Option<u32>| pid.ok_or_else(|| CliError::usage("'--init' takes a pid"))).transpose()?;
    harden().map_err(CliError::io("put a wall around the proxy"))?;
    let (listener, events) = take_over().map_err(CliError::io("take over the socket and the pipe"))?;
    // Opened once: the directory stays that of this process, whatever its number is used for later.
    let init = init.and_then(|pid| File::open(format!("/proc/{pid}")).ok()).map(OwnedFd::from);
    serve(Config {
        listener,
        policy,
        events,
        who: Box::new(move |peer| init.as_ref().and_then(|init| holder(init, peer))),
        marker: Some("X-Git-Sandbox: blocked"),
        advice: |refused| {
            let host = match refused.port {
                0 | 443 => refused.host.clone(),
                port => format!("{}:{port}", refused.host),
            };
            matches!(refused.reason.as_deref(), Some("not-allowed" | "port" | "literal"))
                .then(|| format!("on the host, `git sandbox allow NAME {host}` would allow it"))
        },
        limits: Limits::default(),
    })
    .map_err(|error| CliError::chain(&error))
}

pub(super) fn harden() -> io::Result<()> {
    // If the supervisor has died before this, the pipe has no reader, and serving ends at once.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    sandbox_sys::caps::no_new_privs()?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(DESCRIPTORS);
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS.min(most)), maximum: now.maximum })?;
    // The current directory of whoever started it is nobody's business, and would keep a mount busy.
    std::env::set_current_dir("/")
}

/// Takes the listener and the pipe off the standard descriptors and closes everything else that was inherited.
pub(super) fn take_over() -> io::Result<(OwnedFd, OwnedFd)> {
    sandbox_sys::fork::close_from(3, None)?;
    let listener = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let events = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok((listener, events))
}

/// Processes, and descriptors of each, that are looked at.
const MAX_LOOKED_AT: usize = 4096;

/// The name of the process that holds the socket with this local address in the network namespace of `init`.
fn holder(init: &OwnedFd, peer: SocketAddr) -> Option<String> {
    let table = if peer.is_ipv4() { "net/tcp" } else { "net/tcp6" };
    let inode = inode_of(&read(init, table, 1 << 20)?, peer)?;
    let wanted = format!("socket:[{inode}]");
    let namespace = readlinkat(init, "ns/net", Vec::new()).ok()?;
    let processes = openat(rustix::fs::CWD, "/proc", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let entries = Dir::read_from(&processes).ok()?.flatten();
    let numbers = entries.filter(|entry| entry.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit));
    for entry in numbers.take(MAX_LOOKED_AT) {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(process) = openat(&processes, entry.file_name(), flags, Mode::empty()) else { continue };
        // Those of other users say nothing, and PID 1 inside hides itself.
        if readlinkat(&process, "ns/net", Vec::new()).ok().as_ref() != Some(&namespace) {
            continue;
        }
        if holds(&process, &wanted) {
            return read(&process, "comm", 64).map(|comm| comm.trim_end_matches('\n').to_owned());
        }
    }
    None
}

/// Whether one of a process's descriptors is this.
fn holds(process: &OwnedFd, wanted: &str) -> bool {
    let Ok(fds) = openat(process, "fd", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else { return false };
    let Ok(entries) = Dir::read_from(&fds) else { return false };
    entries.flatten().take(MAX_LOOKED_AT).any(|entry| {
        readlinkat(&fds, entry.file_name(), Vec::new()).is_ok_and(|link| link.to_bytes() == wanted.as_bytes())
    })
}

fn read(directory: impl AsFd, path: &str, most: u64) -> Option<String> {
    let file = File::from(openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?);
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The inode of the socket with this local address in a table of `/proc/net/tcp` or `tcp6` (proc_net_tcp.rst):
/// the second field is the address as the kernel holds it, four bytes at a time in its own order.
fn inode_of(table: &str, local: SocketAddr) -> Option<u64> {
    let word = |bytes: &[u8]| format!("{:08X}", u32::from_ne_bytes(bytes.try_into().expect("four bytes")));
    let address: String = match local.ip() {
        IpAddr::V4(ip) => word(&ip.octets()),
        IpAddr::V6(ip) => ip.octets().chunks(4).map(word).collect(),
    };
    let wanted = format!("{address}:{:04X}", local.port());
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.get(1) == Some(&wanted.as_str())).then(|| fields.get(9)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_holder_of_a_socket_is_found_by_its_address() {
        let init = File::open(format!("/proc/{}", std::process::id())).map(OwnedFd::from).unwrap();
        let own = std::fs::read_to_string("/proc/self/comm").unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert!(address.starts_with('['), "no IPv4 on loopback");
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let peer = client.local_addr().unwrap();
            assert_eq!(holder(&init, peer).as_deref(), Some(own.trim_end()), "{address}");
            drop(client);
        }
        assert_eq!(holder(&init, "127.0.0.1:1".parse().unwrap()), None);
    }

    #[test]
    fn a_table_is_read_by_local_address() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     \x20  0: 0100007F:0C38 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11 1 0 100 0\n\
                     \x20  1: 0100007F:0C38 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 12 1 0 20 4\n\
                     \x20  2: 0100007F:9C40 0100007F:0C38 01 00000000:00000000 00:00000000 00000000  1000        0 13 1 0 20 4\n";
        if cfg!(target_endian = "little") {
            assert_eq!(inode_of(table, "127.0.0.1:40000".parse().unwrap()), Some(13));
            assert_eq!(inode_of(table, "127.0.0.1:40001".parse().unwrap()), None);
        }
    }
}
