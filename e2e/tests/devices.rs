//! The device processes of a virtual machine, without a machine: what wall they stand behind, when they end,
//! and what they say when they cannot start. What guests see is in the contract suite.

use sandbox_testkit::TestEnv;
use serde_json::json;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

/// Far more than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

fn listener(at: &Path) -> Stdio {
    OwnedFd::from(UnixListener::bind(at).unwrap()).into()
}

/// Root's devices become the ordinary user that a sandbox of root has.
fn user() -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then_some((1_879_048_192, 1_879_048_192))
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the last part of the wall stands, and returns what the kernel says of the process.
fn status(child: &Child) -> String {
    let read = || fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    until("the filter was never loaded", || read().contains("Seccomp:\t2"));
    read()
}

#[test]
fn a_device_has_nothing_but_what_it_serves_and_ends_with_its_machine() {
    let (env, dir) = (TestEnv::new(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let files = json!({ "shares": [{ "name": "x", "dir": "/usr", "cache": "auto" }], "xattrs": true,
        "user": user(), "parent": std::process::id() });
    let vsock =
        json!({ "cid": 3, "incoming": true, "outgoing": at("host"), "user": user(), "parent": std::process::id() });
    let mut devices = [("__vm-fs", files, "fs"), ("__vm-vsock", vsock, "vsock")].map(|(role, plan, name)| {
        let child = env
            .sandbox_command(dir.path(), &[role, &plan.to_string()])
            .stdin(listener(&at(name)))
            .stdout(if role == "__vm-vsock" { listener(&at("host")) } else { Stdio::null() })
            .spawn()
            .unwrap();
        (child, name)
    });
    for (child, name) in &mut devices {
        let status = status(child);
        for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000"] {
            assert!(status.contains(line), "{name}: {status}");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{name}: {status}");
        if user().is_some() {
            assert!(status.contains("Uid:\t1879048192\t1879048192\t1879048192\t1879048192"), "{name}: {status}");
            // Only root may look further into a process that hides itself.
            let proc = |file: &str| format!("/proc/{}/{file}", child.id());
            let mounts = fs::read_to_string(proc("mountinfo")).unwrap();
            for line in mounts.lines() {
                let fields: Vec<&str> = line.split(' ').collect();
                assert!(fields[4] == "/" || fields[4].starts_with("/0"), "{name}: {line}");
                assert!(["ro", "nosuid", "nodev", "noexec"].iter().all(|flag| fields[5].contains(flag)), "{line}");
            }
            assert_eq!(fs::read_to_string(proc("net/dev")).unwrap().lines().count(), 3, "{name}: loopback alone");
        }
        // The machine connects and is gone.
        drop(UnixStream::connect(at(name)).unwrap());
        until("a device goes on without its machine", || child.try_wait().unwrap().is_some());
    }
}

#[test]
fn a_device_that_cannot_start_says_why() {
    let (env, dir) = (TestEnv::new(), tempfile::tempdir().unwrap());
    let run = |name: &str, plan: String| -> Output {
        let mut command = env.sandbox_command(dir.path(), &["__vm-fs", &plan]);
        command.stdin(listener(&dir.path().join(name))).output().unwrap()
    };
    let plan = |name: &str, share: &str, parent: u32| {
        let shares = json!([{ "name": name, "dir": share, "cache": "always" }]);
        json!({ "shares": shares, "xattrs": false, "user": user(), "parent": parent }).to_string()
    };
    let me = std::process::id();
    let cases = [
        ("a", "{".to_owned(), 129, "error: the plan of a device is wrong: EOF while parsing an object"),
        (
            "b",
            plan("x", "/nonesuch", me),
            128,
            "error: cannot open the exported directory 'x'\ncaused by: No such file",
        ),
        ("c", plan("a/b", "/usr", me), 128, "error: 'a/b' cannot be the name of an export"),
        ("d", plan("x", "/usr", 1), 128, "error: the program that started this device has ended"),
    ];
    for (name, plan, code, text) in cases {
        let output = run(name, plan);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.starts_with(text), "{said}");
        assert_eq!(output.status.code(), Some(code), "{said}");
    }
}
