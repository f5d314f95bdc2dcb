//! What the full suite and the bench need beside Rust, git and a C compiler.

use crate::build;
use sandbox_testkit::{is_root, which};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program, the Debian package that has it, and what is skipped without it.
pub struct Need {
    /// What is looked for.
    pub program: &'static str,
    /// Where it comes from.
    pub package: &'static str,
    /// What is lost.
    pub without: &'static str,
}

/// What tests use when it is there.
pub const TESTS: &[Need] = &[
    Need { program: "strace", package: "strace", without: "counting the files that git opens" },
    Need { program: "python3", package: "python3", without: "the stand-in agent, and probes of the network" },
    Need { program: "openssl", package: "openssl", without: "the stand-in agent, and probes of the network" },
    Need { program: "curl", package: "curl", without: "probes of the network with curl" },
    Need { program: "bwrap", package: "bubblewrap", without: "a sandbox inside a sandbox" },
    Need { program: "ip", package: "iproute2", without: "names that lead elsewhere than they should" },
    Need { program: "gdb", package: "gdb", without: "a debugger inside" },
    Need { program: "gpg", package: "gnupg", without: "signatures with gpg" },
    Need { program: "sqlite3", package: "sqlite3", without: "a database inside" },
    Need { program: "tmux", package: "tmux", without: "a terminal multiplexer inside" },
    Need { program: "getfattr", package: "attr", without: "comparing extended attributes" },
    Need { program: "setfacl", package: "acl", without: "access control lists of others" },
    Need { program: "mkfs.btrfs", package: "btrfs-progs", without: "reflinks on Btrfs" },
    Need { program: "fuse2fs", package: "fuse2fs", without: "a state directory on FUSE" },
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86", without: "guests of the QEMU driver" },
    Need { program: "mkfs.xfs", package: "xfsprogs", without: "reflinks on XFS" },
    Need { program: "systemd-analyze", package: "systemd", without: "checking the mirror's unit" },
    Need { program: "sshd", package: "openssh-server", without: "the mirror's upstreams over ssh" },
    Need { program: "kubectl", package: "kubernetes-client", without: "the mirror's manifests with kubectl" },
];

/// Installs what is missing when that is possible, and says what is still missing.
pub fn install(needs: &[Need], allowed: bool) {
    let missing = |need: &&Need| which(need.program).is_none();
    let packages: Vec<&str> = needs.iter().filter(missing).map(|need| need.package).collect();
    if packages.is_empty() {
        return;
    }
    if allowed && is_root() && which("apt-get").is_some() {
        eprintln!("installing {}", packages.join(", "));
        if !apt(&["install", "-y", "--no-install-recommends"], &packages) {
            apt(&["update"], &[]);
            apt(&["install", "-y", "--no-install-recommends"], &packages);
        }
    }
    for need in needs.iter().filter(missing) {
        eprintln!("without '{}' ({}): skips {}", need.program, need.package, need.without);
    }
}

/// Returns where pjdfstest is, a suite for file systems; builds it below the target directory if that is allowed.
pub fn pjdfstest(allowed: bool) -> Option<PathBuf> {
    let root = build::workspace().join("target/tools");
    let found = || which("pjdfstest").or_else(|| Some(root.join("bin/pjdfstest")).filter(|file| file.is_file()));
    if found().is_none() && allowed {
        eprintln!("building pjdfstest");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // Elsewhere, so that this workspace's own target and flags are not used.
        command.current_dir("/").args(["install", "--quiet", "--locked", "--version", "0.2.2", "--root"]);
        let built = command.arg(&root).arg("pjdfstest").status();
        if !built.is_ok_and(|status| status.success()) {
            eprintln!("without 'pjdfstest': skips the POSIX suite");
        }
    }
    found()
}

/// Has the product unpack a kernel for guests below the tools of the tests, where it is allowed and none is there.
pub fn guest_kernel(product: Option<&Path>, tools: &Path, allowed: bool) {
    let there = || sandbox_testkit::guest_kernel_below(tools).is_some();
    if let Some(product) = product.filter(|_| allowed && !there()) {
        eprintln!("unpacking a kernel for guests");
        let mut command = Command::new(product);
        let _ = command.args(["doctor", "--fix"]).env("GIT_SANDBOX_CACHE", tools).output();
    }
    if !there() {
        eprintln!("without a kernel for guests: skips guests of the QEMU driver");
    }
}

fn apt(verb: &[&str], packages: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1"]);
    command.args(verb).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    // What is a service is not started.
    command.env("RUNLEVEL", "1");
    command.output().is_ok_and(|output| output.status.success())
}
