//! A made-up snapshot on disk, the spec for it, and a sandbox that scripts can be sent into.

use crate::inside::Outcome;
use sandbox_core::driver::{DriverError, Machine};
use sandbox_core::launch::{LaunchSpec, Limits, Mode, Mount, Network, Tree, User};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The uid that everything inside has when root runs the suite.
pub const ROOTS_UID: u32 = 1_879_048_192;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Directories of one sandbox in a temporary directory.
pub struct Kit {
    pub dir: tempfile::TempDir,
    pub spec: LaunchSpec,
}

/// The kernel's own directory below `work` has no permissions at all: for an ordinary user it would stay.
impl Drop for Kit {
    fn drop(&mut self) {
        let _ = std::process::Command::new("chmod").args(["-R", "u+rwx"]).arg(self.dir.path()).output();
    }
}

impl Kit {
    /// A tree at `/home/tester/project` of two layers: `base` with `kept`, `gone`, `dir/deep`; `delta` without `gone`.
    pub fn new() -> Self {
        Self::at(Path::new("/home/tester/project"))
    }

    pub fn at(tree: &Path) -> Self {
        Self::in_dir(tempfile::tempdir().unwrap(), tree)
    }

    pub fn in_dir(dir: tempfile::TempDir, tree: &Path) -> Self {
        let root = dir.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        for path in ["base/dir", "delta", "upper", "work", "home", "tmp"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        fs::write(root.join("base/kept"), "kept\n").unwrap();
        fs::write(root.join("base/gone"), "gone\n").unwrap();
        fs::write(root.join("base/dir/deep"), "deep\n").unwrap();
        fs::write(root.join("delta/new"), "new\n").unwrap();
        // A whiteout, which anybody may make.
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty());
        rustix::fs::mknodat(rustix::fs::CWD, root.join("delta/gone"), kind, mode, 0).unwrap();
        let (uid, gid) = if is_root() {
            (ROOTS_UID, ROOTS_UID)
        } else {
            (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
        };
        if is_root() {
            for path in ["base", "base/kept", "base/gone", "base/dir", "base/dir/deep"].into_iter().chain([
                "delta",
                "delta/new",
                "upper",
                "work",
                "home",
                "tmp",
            ]) {
                chown(root.join(path), Some(uid), Some(gid)).unwrap();
            }
        }
        let spec = LaunchSpec {
            id: "0123456789abcdef0123456789abcdef".into(),
            name: "test".into(),
            mode: Mode::Work,
            trees: vec![Tree {
                at: tree.to_owned(),
                lowers: vec![root.join("delta"), root.join("base")],
                upper: root.join("upper"),
                work: root.join("work"),
                read_only: false,
                view: Default::default(),
            }],
            views: vec![],
            home: Mount { source: root.join("home"), at: "/home/tester".into() },
            tmp: root.join("tmp"),
            system: ["/usr", "/opt", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix"].map(PathBuf::from).to_vec(),
            toolchains: vec![],
            covers: vec![],
            links: vec![("/workspace".into(), tree.to_owned())],
            files: vec![],
            user: User {
                name: "tester".into(),
                group: "tester".into(),
                uid,
                gid,
                shell: "/bin/sh".into(),
                root: false,
            },
            hostname: "inside".into(),
            env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()), ("HOME".into(), "/home/tester".into())],
            network: Network::None,
            mirror: false,
            limits: Limits::default(),
            allow_weak: vec![],
            require: vec![],
            nested: false,
            program: std::env::current_exe().unwrap(),
            vm: None,
        };
        Self { dir, spec }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn launch(&self) -> Sandbox {
        match self.try_launch() {
            Ok(sandbox) => sandbox,
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string)),
        }
    }

    pub fn try_launch(&self) -> Result<Sandbox, DriverError> {
        // A driver with a kernel of its own is told more.
        let driver = if self.spec.vm.is_some() { "qemu" } else { "namespace" };
        let machine = sandbox_drivers::by_name(driver).unwrap().launch(&self.spec)?;
        let mut answers = BufReader::new(machine.control().try_clone().unwrap());
        let mut first = String::new();
        answers.read_line(&mut first).unwrap();
        assert_eq!(first, "ready\n");
        Ok(Sandbox { answers, machine })
    }

    /// The error of a launch that must fail, with its cause; and nothing is left of it.
    pub fn refused(&self) -> (DriverError, String) {
        let error = match self.try_launch() {
            Ok(_) => panic!("it was launched"),
            Err(error) => error,
        };
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let children = rustix::process::waitpid(None, rustix::process::WaitOptions::NOHANG);
        assert_eq!(children.err(), Some(rustix::io::Errno::CHILD), "a child is left: {error}");
        assert_eq!(groups_left(), Vec::<PathBuf>::new());
        (error, cause)
    }
}

/// Cgroups of this process's sandboxes.
pub fn groups_left() -> Vec<PathBuf> {
    let prefix = format!("git-sandbox-{}-", std::process::id());
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path());
            } else if depth < 4 {
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// A running sandbox.
pub struct Sandbox {
    answers: BufReader<UnixStream>,
    pub machine: Box<dyn Machine>,
}

impl Sandbox {
    /// Runs a shell script as a session.
    pub fn run(&mut self, script: &str) -> Outcome {
        let mut line = serde_json::to_string(script).unwrap();
        line.push('\n');
        self.machine.control().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: '{answer}' to '{script}'"))
    }

    /// Returns what a script that must succeed printed.
    pub fn out(&mut self, script: &str) -> String {
        let outcome = self.run(script);
        assert_eq!(outcome.status, 0, "'{script}': {outcome:?}");
        outcome.stdout
    }

    /// A script that exits 0 if what it tried is contained.
    pub fn contained(&mut self, name: &str, script: &str) {
        let outcome = self.run(script);
        assert_eq!(outcome.status, 0, "{name}: '{script}': {outcome:?}");
    }
}
