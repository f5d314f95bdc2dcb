//! The wall's own probes: a fresh sandbox in which everything that must not work is tried.
//!
//! ```text
//!   doctor --probe ── baits: a file in /tmp, in the home and in the state directory, a process,
//!        │            a variable, a TCP port, an abstract socket: each can be reached from here
//!        └── spawn --rm -- git-sandbox __probe BAITS      (the ordinary way in)
//!                          └── one JSON line for each probe
//! ```
//!
//! Each is tried on the host as well, where nothing is in the way: that is its control. A bait that cannot be reached
//! there would be held by nothing, and is reported as unknown; of the rest it is told where the host itself refuses.
//! The ids are those of the catalogue that `e2e/tests/contract/probes` runs through.

use crate::context::Context;
use crate::error::CliError;
use rustix::net::{AddressFamily, SocketType, socket};
use sandbox_protocol::PROGRAM;
use sandbox_sys::probe::{FORBIDDEN, is_refusal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the host has laid out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Baits {
    /// Files that exist on the host.
    pub files: Vec<PathBuf>,
    /// The name of a variable of the process that spawned.
    pub variable: String,
    /// The command line of a process of the host has this text.
    pub command_line: String,
    /// A TCP port of the host's loopback device.
    pub port: u16,
    /// A Unix socket by an abstract name.
    pub socket: String,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What was tried, a short stable name.
    pub probe: String,
    /// What it guards against, by the ids of the catalogue of probes.
    #[serde(default)]
    pub ids: Vec<String>,
    /// What came of it.
    pub outcome: Outcome,
    /// The same on the host, without a wall: the control.
    #[serde(default)]
    pub outside: Option<Outcome>,
    /// In words.
    pub found: String,
}

/// Which lines of the catalogue a probe stands for.
const IDS: &[(&str, &str)] = &[
    ("capabilities", "A01 A02"),
    ("secure-bits", "A02"),
    ("ids", "A08"),
    ("descriptors", "A09"),
    ("variables", "A10"),
    ("host-processes", "A11"),
    ("limits", "A12"),
    ("first-process", "A14"),
    ("namespaces", "A15"),
    ("host-files", "B01"),
    ("system", "B02"),
    ("mounts", "B08"),
    ("kernel-settings", "C01 C02"),
    ("kernel-files", "C03 C04"),
    ("devices", "C05"),
    ("terminal", "D02"),
    ("socket-families", "E07"),
    ("netlink", "E08"),
    ("daemons", "F01"),
    ("abstract-sockets", "F02"),
    ("host-ports", "F04"),
    ("network-devices", "G01"),
    ("call: unshare", "A04"),
    ("call: clone (user namespace)", "A05"),
    ("call: clone3", "A06"),
    ("call: setns", "A07"),
    ("call: mount", "B03 C06"),
    ("call: umount2", "B03"),
    ("call: pivot_root", "B03"),
    ("call: open_tree", "E05"),
    ("call: move_mount", "E05"),
    ("call: fsopen", "E05"),
    ("call: mount_setattr", "B03 E05"),
    ("call: bpf", "E02"),
    ("call: perf_event_open", "E02"),
    ("call: userfaultfd", "E02"),
    ("call: io_uring_setup", "E01"),
    ("call: init_module", "E03"),
    ("call: finit_module", "E03"),
    ("call: kexec_load", "E03"),
    ("call: reboot", "E03"),
    ("call: add_key", "E03"),
    ("call: request_key", "E03"),
    ("call: keyctl", "E03"),
    ("call: name_to_handle_at", "B04"),
    ("call: open_by_handle_at", "B04"),
    ("call: fanotify_init", "B04"),
    ("call: process_vm_readv", "E06"),
    ("call: pidfd_getfd", "E06"),
    ("call: ioctl (TIOCSTI)", "D01"),
    ("call: ioctl (TIOCSTI with a high bit)", "D01"),
    ("call: a call that nobody has reviewed", "E10"),
];

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The wall held.
    Held,
    /// It did not.
    Broken,
    /// The control failed: nothing can be said.
    Unknown,
}

/// Makes a sandbox of an empty repository in a store of its own, and returns what its probes found.
pub fn run(context: &Context) -> Result<Vec<Finding>, CliError> {
    let failed = |what: &str| CliError::io(what.to_owned());
    let store = context.store()?;
    store.writable()?;
    // On the file system that sandboxes are on; the name is one that `gc` knows as half made.
    let dir = tempfile::Builder::new()
        .prefix("git-probe-")
        .tempdir_in(store.tmp())
        .map_err(failed("make a directory for the probes"))?;
    let mark = format!("probe-{}-{}", std::process::id(), dir.path().file_name().unwrap_or_default().display());
    let bait = |at: &Path| {
        tempfile::Builder::new()
            .prefix(".git-sandbox-probe-")
            .tempfile_in(at)
            .map_err(failed("lay out a file for the probes"))
    };
    let files = [bait(&std::env::temp_dir())?, bait(&context.home)?, bait(dir.path())?];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("listen on the loopback device"))?;
    let address = UnixAddr::from_abstract_name(&mark).map_err(failed("make a socket"))?;
    let _socket = UnixListener::bind_addr(&address).map_err(failed("listen on a socket"))?;
    let baits = Baits {
        files: files.iter().map(|file| file.path().to_owned()).collect(),
        variable: "GIT_SANDBOX_PROBE".into(),
        command_line: mark.clone(),
        port: listener.local_addr().map_err(failed("listen on the loopback device"))?.port(),
        socket: mark,
    };
    let repo = dir.path().join("repo");
    context.git()?.anywhere().args(["init", "--quiet"]).arg(&repo).run()?;
    let text =
        serde_json::to_string(&baits).map_err(|error| CliError::new("cannot write JSON").cause(error.to_string()))?;
    // A process of the host, by that name as long as this lasts.
    let bait = Command::new("sleep").arg0(&baits.command_line).arg("300").stdin(Stdio::null()).spawn();
    let _bait = Ended(bait.map_err(failed("start a process for the probes"))?);
    let outside = Command::new(&context.program)
        .args(["__probe", &text])
        .env(&baits.variable, "bait")
        .stdin(Stdio::null())
        .output()
        .map_err(failed("try the probes here"))?;
    let outside = parse(&outside.stdout);
    let output = Command::new(&context.program)
        .arg("-C")
        .arg(&repo)
        .args(["spawn", "--quiet", "--rm", "--net", "none", "probe", "--", PROGRAM, "__probe", &text])
        .env("GIT_SANDBOX_STATE", dir.path().join("state"))
        .env(&baits.variable, "bait")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(failed("start a sandbox for the probes"))?;
    let mut findings = parse(&output.stdout);
    if !output.status.success() || findings.is_empty() {
        return Err(CliError::new("the probes did not run")
            .cause(format!("the sandbox ended with {}", output.status))
            .hint("`git sandbox doctor` tells what this machine lacks"));
    }
    // What cannot be reached from here either says nothing about the wall.
    for (probe, reached) in [
        ("host-files", baits.files.iter().all(|file| file.exists())),
        ("host-ports", host_port(baits.port).outcome == Outcome::Broken),
        ("abstract-sockets", abstract_socket(&baits.socket).outcome == Outcome::Broken),
    ] {
        for finding in findings.iter_mut().filter(|finding| finding.probe == probe && !reached) {
            finding.outcome = Outcome::Unknown;
            finding.found = "it cannot be reached from the host either".into();
        }
    }
    for finding in &mut findings {
        finding.outside = outside.iter().find(|one| one.probe == finding.probe).map(|one| one.outcome);
    }
    Ok(findings)
}

fn parse(said: &[u8]) -> Vec<Finding> {
    String::from_utf8_lossy(said).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A process of ours that ends with this.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `__probe BAITS`: what runs inside; prints one JSON object a line.
pub fn role(args: &[std::ffi::OsString]) -> Result<(), CliError> {
    let text = args.first().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    let baits = serde_json::from_str(&text)
        .map_err(|error| CliError::usage("the baits are not valid").cause(error.to_string()))?;
    for finding in inside(&baits) {
        let line = serde_json::to_string(&finding);
        println!("{}", line.map_err(|error| CliError::new("cannot write JSON").cause(error.to_string()))?);
    }
    Ok(())
}

/// Tries everything and returns what was found; to be called inside.
pub fn inside(baits: &Baits) -> Vec<Finding> {
    let mut findings = vec![
        process_state(),
        secure_bits(),
        ids(),
        resource_limits(),
        namespaces(),
        descriptors(),
        host_files(&baits.files),
        host_processes(&baits.command_line),
        first_process(),
        variables(&baits.variable),
        kernel_settings(),
        kernel_files(),
        devices(),
        terminal(),
        system_is_read_only(),
        mounts_are_private(),
        daemon_sockets(),
        no_device_but_loopback(),
        host_port(baits.port),
        abstract_socket(&baits.socket),
        socket_families(),
        netlink(),
    ];
    findings.extend(system_calls());
    for finding in &mut findings {
        let known = IDS.iter().find(|(probe, _)| *probe == finding.probe);
        finding.ids = known.map(|(_, ids)| ids.split(' ').map(str::to_owned).collect()).unwrap_or_default();
    }
    findings
}

fn held(probe: &str, found: impl Into<String>) -> Finding {
    Finding { probe: probe.into(), ids: Vec::new(), outcome: Outcome::Held, outside: None, found: found.into() }
}

fn broken(probe: &str, found: impl Into<String>) -> Finding {
    Finding { outcome: Outcome::Broken, ..held(probe, found) }
}

/// Held when nothing was found.
fn none_of(probe: &str, bad: Vec<String>, good: &str) -> Finding {
    if bad.is_empty() { held(probe, good) } else { broken(probe, bad.join(", ")) }
}

fn process_state() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
    let mut bad = Vec::new();
    for (name, wanted) in [("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
        if value(name).as_deref() != Some(wanted) {
            bad.push(format!("{name} {}", value(name).unwrap_or_default()));
        }
    }
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        if value(name).is_none_or(|caps| caps.bytes().any(|digit| digit != b'0')) {
            bad.push(format!("{name} {}", value(name).unwrap_or_default()));
        }
    }
    none_of("capabilities", bad, "none, a filter of system calls, no new privileges")
}

/// That uid 0 is nothing special, and can never be again.
fn secure_bits() -> Finding {
    use rustix::thread::CapabilitiesSecureBits as Bits;
    let locked = Bits::NO_ROOT
        | Bits::NO_ROOT_LOCKED
        | Bits::NO_SETUID_FIXUP
        | Bits::NO_SETUID_FIXUP_LOCKED
        | Bits::KEEP_CAPS_LOCKED
        | Bits::NO_CAP_AMBIENT_RAISE
        | Bits::NO_CAP_AMBIENT_RAISE_LOCKED;
    match rustix::thread::capabilities_secure_bits() {
        Ok(bits) if bits == locked => held("secure-bits", "uid 0 gains nothing, for ever"),
        Ok(bits) => broken("secure-bits", format!("{bits:?}")),
        Err(error) => broken("secure-bits", error.to_string()),
    }
}

fn ids() -> Finding {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut bad = Vec::new();
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let text = read(map);
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != 3 || fields[2] != "1" || fields[1] == "0" {
            bad.push(format!("{map}: {}", text.trim()));
        }
    }
    if read("/proc/self/setgroups").trim() != "deny" {
        bad.push("groups can be changed".into());
    }
    none_of("ids", bad, "one user and one group, not the host's root")
}

fn resource_limits() -> Finding {
    use rustix::process::{Resource, getrlimit};
    let most = [
        (Resource::Core, "core", 0),
        (Resource::Nofile, "open files", 65536),
        (Resource::Memlock, "locked memory", 8 << 20),
        (Resource::Msgqueue, "message queues", 819_200),
        (Resource::Nice, "nice", 0),
        (Resource::Rtprio, "real-time priority", 0),
    ];
    let over = most.iter().filter(|(limit, _, most)| getrlimit(*limit).maximum.is_none_or(|maximum| maximum > *most));
    none_of("limits", over.map(|(_, name, _)| (*name).to_owned()).collect(), "no core files, and within bounds")
}

fn namespaces() -> Finding {
    let kinds = ["user", "mnt", "net", "pid", "ipc", "uts", "cgroup", "time"];
    let more = kinds.iter().filter(|kind| {
        let path = format!("/proc/sys/user/max_{kind}_namespaces");
        fs::read_to_string(path).is_ok_and(|limit| limit.trim() != "0")
    });
    none_of("namespaces", more.map(ToString::to_string).collect(), "none can be made")
}

fn kernel_files() -> Finding {
    let read = |path: &&str| {
        let mut byte = [0u8; 1];
        fs::File::open(path).and_then(|mut file| io::Read::read(&mut file, &mut byte)).is_ok_and(|n| n > 0)
    };
    // What never ends is not among them: a read of it would wait.
    let files = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/sched_debug"];
    let mut bad: Vec<String> = files.iter().filter(|path| read(path)).map(ToString::to_string).collect();
    let addresses = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let shown = |line: &str| line.split(' ').next().is_some_and(|address| address.bytes().any(|digit| digit != b'0'));
    bad.extend(addresses.lines().any(shown).then(|| "addresses of the kernel".to_owned()));
    bad.extend(fs::read_dir("/sys").is_ok_and(|mut entries| entries.next().is_some()).then(|| "/sys".to_owned()));
    none_of("kernel-files", bad, "nothing of the machine's to read")
}

fn terminal() -> Finding {
    match fs::File::open("/dev/tty") {
        Ok(_) => broken("terminal", "the caller's terminal was opened"),
        Err(error) => held("terminal", error.to_string()),
    }
}

fn descriptors() -> Finding {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = open.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok().zip(Some(entry.path())));
    // The listing itself has one open.
    let bad = numbers.filter(|(number, path)| *number > 2 && fs::read_link(path).is_ok_and(|to| !in_proc(&to)));
    none_of("descriptors", bad.map(|(number, _)| format!("{number} is open")).collect(), "only the three")
}

fn in_proc(target: &Path) -> bool {
    target.starts_with("/proc")
}

fn host_files(files: &[PathBuf]) -> Finding {
    let seen = files.iter().filter(|path| fs::symlink_metadata(path).is_ok());
    let shadow = fs::read("/etc/shadow").is_ok().then(|| "/etc/shadow".to_owned());
    let bad = seen.map(|path| path.display().to_string()).chain(shadow).collect();
    none_of("host-files", bad, "none of the host's /tmp, home and state directory")
}

fn host_processes(command_line: &str) -> Finding {
    let seen = fs::read_dir("/proc").into_iter().flatten().flatten().filter(|entry| {
        // `self` and what has no number is this process again.
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let own = pid.is_none_or(|pid| pid == std::process::id());
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        !own && line.windows(command_line.len().max(1)).any(|part| part == command_line.as_bytes())
    });
    let bad = seen.map(|entry| format!("process {}", entry.file_name().to_string_lossy())).collect();
    none_of("host-processes", bad, "none of the host's")
}

fn first_process() -> Finding {
    let readable = ["environ", "mem", "maps"].iter().filter(|file| {
        let read = |path: String| io::Read::read(&mut fs::File::open(path)?, &mut [0u8; 1]);
        read(format!("/proc/1/{file}")).is_ok_and(|n| n > 0)
    });
    none_of("first-process", readable.map(|file| format!("/proc/1/{file} can be read")).collect(), "closed to the rest")
}

fn variables(name: &str) -> Finding {
    let bad = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).filter(|known| known == name);
    none_of("variables", bad.collect(), "only those of the list")
}

fn kernel_settings() -> Finding {
    let files = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/threads-max", "/proc/sysrq-trigger", "/proc/kcore"];
    let opened = files.iter().filter(|path| fs::OpenOptions::new().write(true).open(path).is_ok());
    let bad = opened
        .map(|path| format!("{path} can be written"))
        .chain(Path::new("/sys/kernel").exists().then(|| "/sys".into()));
    none_of("kernel-settings", bad.collect(), "read-only, and no /sys")
}

fn devices() -> Finding {
    let expected = [
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout", "stderr",
        "core", "console", "mqueue",
    ];
    let names = fs::read_dir("/dev").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let bad = names.filter(|name| !expected.contains(&name.as_str())).collect();
    none_of("devices", bad, "null, zero, full, random, urandom, tty and terminals of its own")
}

/// Asked of the kernel, not tried: on the host, root could.
fn system_is_read_only() -> Finding {
    let writable = |path: &&str| rustix::fs::access(*path, rustix::fs::Access::WRITE_OK).is_ok();
    let bad = ["/usr", "/etc", "/"].iter().filter(|path| writable(path)).map(|path| format!("{path} can be written"));
    none_of("system", bad.collect(), "read-only")
}

fn mounts_are_private() -> Finding {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut bad = Vec::new();
    for line in table.lines() {
        let mut fields = line.split(' ');
        let (at, options) = (fields.nth(4).unwrap_or_default(), fields.next().unwrap_or_default());
        let optional: Vec<&str> = fields.take_while(|field| *field != "-").collect();
        if optional.iter().any(|field| field.starts_with("shared:") || field.starts_with("master:")) {
            bad.push(format!("'{at}' is shared"));
        }
        if !options.split(',').any(|option| option == "nosuid") {
            bad.push(format!("'{at}' allows set-uid programs"));
        }
    }
    none_of("mounts", bad, "private, without set-uid programs")
}

fn daemon_sockets() -> Finding {
    let paths = [
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/podman",
        "/run/containerd",
        "/run/dbus",
        "/run/systemd",
        "/run/user",
        "/tmp/.X11-unix",
        "/run/WSL",
    ];
    let bad = paths.iter().filter(|path| fs::symlink_metadata(path).is_ok()).map(ToString::to_string).collect();
    none_of("daemons", bad, "no socket of one")
}

fn no_device_but_loopback() -> Finding {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    none_of("network-devices", names.filter(|name| name != "lo").collect(), "only the sandbox's own loopback")
}

fn host_port(port: u16) -> Finding {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
        Ok(_) => broken("host-ports", format!("port {port} of the host's loopback device was reached")),
        Err(error) => held("host-ports", error.to_string()),
    }
}

fn abstract_socket(name: &str) -> Finding {
    let connected = UnixAddr::from_abstract_name(name).and_then(|address| UnixStream::connect_addr(&address));
    match connected {
        Ok(_) => broken("abstract-sockets", "one of the host's was reached"),
        Err(error) => held("abstract-sockets", error.to_string()),
    }
}

/// Families with a history of holes: AF_KEY, AF_PACKET, AF_CAN, AF_TIPC, AF_BLUETOOTH, AF_RXRPC, AF_ALG, AF_VSOCK,
/// AF_QIPCRTR, AF_SMC, AF_XDP.
const FAMILIES: [u16; 11] = [15, 17, 29, 30, 31, 33, 38, 40, 42, 43, 44];

fn socket_families() -> Finding {
    let mut bad = Vec::new();
    for family in FAMILIES {
        for kind in [SocketType::STREAM, SocketType::DGRAM, SocketType::SEQPACKET, SocketType::RAW] {
            if socket(AddressFamily::from_raw(family), kind, None).is_ok() {
                bad.push(format!("family {family}"));
            }
        }
    }
    bad.dedup();
    none_of("socket-families", bad, "only Unix, IPv4, IPv6 and route")
}

/// NETLINK_NETFILTER, XFRM, AUDIT and others; route (0) is how interfaces are listed.
fn netlink() -> Finding {
    let opened = [4u32, 6, 9, 12, 15, 16].into_iter().filter(|number| {
        let protocol = std::num::NonZeroU32::new(*number).map(rustix::net::Protocol::from_raw);
        socket(AddressFamily::NETLINK, SocketType::RAW, protocol).is_ok()
    });
    none_of("netlink", opened.map(|number| format!("protocol {number}")).collect(), "route and no other")
}

fn system_calls() -> Vec<Finding> {
    let tried = FORBIDDEN.iter().map(|call| match call.attempt() {
        None => broken(call.name, "it succeeded"),
        Some(error) if is_refusal(&error) => held(call.name, error.to_string()),
        Some(error) => broken(call.name, format!("not refused: {error}")),
    });
    tried.map(|finding| Finding { probe: format!("call: {}", finding.probe), ..finding }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The control of all of them: outside of a sandbox most must be broken.
    #[test]
    fn on_the_host_the_probes_find_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bait");
        fs::write(&file, "").unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let name = format!("git-sandbox-probe-{}", std::process::id());
        let address = UnixAddr::from_abstract_name(&name).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let mut child = std::process::Command::new("sleep").arg("61.5").spawn().unwrap();
        // It is there before it has a command line.
        let line = format!("/proc/{}/cmdline", child.id());
        while !fs::read_to_string(&line).unwrap().contains("61.5") {
            std::thread::yield_now();
        }
        let baits = Baits {
            files: vec![file],
            variable: "PATH".into(),
            command_line: "61.5".into(),
            port: listener.local_addr().unwrap().port(),
            socket: name,
        };
        let findings = inside(&baits);
        child.kill().unwrap();
        child.wait().unwrap();
        for probe in [
            "capabilities",
            "host-files",
            "host-processes",
            "variables",
            "host-ports",
            "abstract-sockets",
            "call: unshare",
            "call: setns",
            "call: ioctl (TIOCSTI)",
            "call: keyctl",
            "secure-bits",
            "ids",
            "limits",
            "namespaces",
            "kernel-files",
            "netlink",
        ] {
            let finding = findings.iter().find(|finding| finding.probe == probe).unwrap();
            assert_eq!(finding.outcome, Outcome::Broken, "{finding:?}");
        }
        assert_eq!(findings.iter().filter(|finding| finding.outcome == Outcome::Unknown).count(), 0);
        for finding in &findings {
            assert!(!finding.ids.is_empty(), "{} has no id", finding.probe);
        }
        for (probe, _) in IDS {
            assert!(findings.iter().any(|finding| finding.probe == *probe), "{probe}");
        }
    }
}
