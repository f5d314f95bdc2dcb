//! The QEMU driver: real guests, emulated where there is no KVM, looked at from inside and from outside.
//!
//! ```text
//!   this binary ─┬─ as a test: its own harness, one guest after the other
//!                ├─ argv[0] = git-sandbox-guest: the guest's first process
//!                ├─ argv[0] = git-sandbox-agent: PID 1 of the sandbox in it (the stand-in of the namespace suite)
//!                └─ __vm-fs PLAN: the file server
//! ```
#![forbid(unsafe_code)]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../namespace/inside.rs"]
mod inside;
#[path = "../namespace/kit.rs"]
#[allow(dead_code)]
mod kit;

use harness::Scenario;
use kit::Kit;
use sandbox_core::launch::{Accel, Network, TreeView, Vm, VmSettings};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const ALL: &[(&str, Scenario)] = &[
    ("arguments_are_read", harness::arguments_are_read),
    ("a_guest_is_a_sandbox", a_guest_is_a_sandbox),
    ("what_cannot_be_is_said", what_cannot_be_is_said),
];

fn main() -> ExitCode {
    let mut args = std::env::args();
    let called = args.next().unwrap_or_default();
    match called.rsplit('/').next() {
        Some(sandbox_drivers::vm::initramfs::GUEST_ARGV0) => return sandbox_drivers::vm::init::run(),
        Some(sandbox_protocol::ARGV0) => return inside::agent(),
        Some("session") => return inside::session(args.next().unwrap_or_default()),
        _ => {}
    }
    let args: Vec<String> = args.collect();
    if let [role, plan] = args.as_slice()
        && role == "__vm-fs"
    {
        return file_server(plan);
    }
    harness::run(ALL, &args)
}

fn file_server(plan: &str) -> ExitCode {
    let plan: sandbox_vhost::fs::Plan = serde_json::from_str(plan).expect("a plan");
    let listener: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    match sandbox_vhost::fs::run(listener.into(), &plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("file server: {error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            ExitCode::FAILURE
        }
    }
}

/// Where `cargo xtask test` has a guest kernel unpacked, unless one is installed.
fn tools() -> PathBuf {
    let here = || Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools")).to_owned();
    std::env::var_os("TESTKIT_TOOLS").map_or_else(here, PathBuf::from).join("vm")
}

/// A kit for a guest, or why there can be none.
fn vm() -> Result<Kit, String> {
    if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        return Err("there is no QEMU (qemu-system-x86)".to_owned());
    }
    let set = std::env::var_os("TESTKIT_GUEST_KERNEL").map(PathBuf::from);
    let kernel = sandbox_drivers::vm::kernel::find(set.as_deref(), &tools(), Path::new("/"));
    let kernel = Some(kernel.map_err(|error| error.to_string())?.image);
    let mut kit = Kit::new();
    let dir = kit.path("vm");
    fs::create_dir(&dir).unwrap();
    // The upper directories of the host are not used at all.
    fs::write(kit.path("home/from-host"), "seed\n").unwrap();
    fs::write(kit.path("upper/never"), "").unwrap();
    kit.spec.limits.memory = Some(512 << 20);
    kit.spec.limits.pids = Some(200);
    let cache = kit.path("cache");
    kit.spec.vm = Some(Vm { dir, settings: VmSettings { cache, kernel, accel: Accel::Tcg } });
    Ok(kit)
}

fn a_guest_is_a_sandbox() -> Result<(), String> {
    let kit = vm()?;
    let user = kit.spec.user.uid;
    let mut guest = kit.launch();
    assert!(guest.machine.limits_memory());
    let missing = |note: &&String| note.contains("not enforced") || note.contains("is not there");
    let missing: Vec<&String> = guest.machine.notes().iter().filter(missing).collect();
    assert!(missing.is_empty(), "{missing:?}");

    // The tree is the snapshot, copy-on-write, at its own path.
    assert_eq!(guest.out("pwd; ls; cat kept dir/deep"), "/home/tester/project\ndir\nkept\nnew\nkept\ndeep\n");
    guest.out("echo changed >kept && mv dir moved && echo more >moved/deep && rm new && ln kept link");
    assert_eq!(guest.out("cat moved/deep link; ls"), "more\nchanged\nkept\nlink\nmoved\n");
    assert_eq!(fs::read_to_string(kit.path("base/kept")).unwrap(), "kept\n");
    assert_eq!(fs::read_to_string(kit.path("base/dir/deep")).unwrap(), "deep\n");
    assert!(kit.path("delta/new").exists() && !kit.path("base/link").exists());

    // A kernel of its own, and of the host only what is shown.
    let here = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(guest.out("uname -r"), here);
    assert_eq!(guest.out("id -u; cat ~/from-host; ls -A /tmp"), format!("{user}\nseed\n"));
    guest.contained("system directories", "! touch /usr/x 2>/dev/null && ! touch /x 2>/dev/null");
    guest.contained("network", "test $(ls /proc/sys/net/ipv4/conf | grep -cv '^all$\\|^default$\\|^lo$') = 0");
    guest.contained("privilege", "! unshare -Ur true 2>/dev/null && grep -q 'NoNewPrivs:.1' /proc/self/status");
    guest.contained("capabilities", "grep -q 'CapBnd:.0000000000000000' /proc/self/status");

    // What runs it has nothing either: who gets out of the guest is there.
    let keeper = guest.machine.process().pid;
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    for pid in children.split_whitespace().chain([keeper.to_string().as_str()]) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
            assert!(status.contains(line), "{status}");
        }
        assert_eq!(status.contains("Seccomp:\t2"), pid != keeper.to_string(), "QEMU filters itself: {status}");
    }
    assert_eq!(children.split_whitespace().count(), 1, "{children}");

    drop(guest);
    Ok(())
}

fn what_cannot_be_is_said() -> Result<(), String> {
    let mut kit = vm()?;
    let refused = |kit: &Kit| {
        let (error, cause) = kit.refused();
        format!("{error}: {cause}")
    };
    kit.spec.network = Network::Host;
    assert_eq!(refused(&kit), "the driver 'qemu' cannot give a guest the host's network (`--net host`): ");
    kit.spec.network = Network::None;
    kit.spec.trees[0].view = TreeView::Copy;
    let copy = "the driver 'qemu' cannot show '/home/tester/project' as a full copy: its trees are overlays: ";
    assert_eq!(refused(&kit), copy);
    kit.spec.trees[0].view = TreeView::Overlay;
    kit.spec.limits.disk = Some(1 << 20);
    assert!(refused(&kit).contains("a disk of 1048576 bytes is too small"));
    kit.spec.limits.disk = None;
    // The guest says itself what it could not do.
    kit.spec.trees[0].lowers[1] = kit.path("base/kept");
    let said = refused(&kit);
    assert!(said.starts_with("the sandbox's first process did not get ready: "), "{said}");
    Ok(())
}
