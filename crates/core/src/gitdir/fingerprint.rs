//! What a repository's git directories are, as a digest over stat data: no file is opened but
//! `HEAD` and small pointers, no process is started.

use super::operation;
use crate::host_repo::HostRepo;
use crate::view::digest;
use sandbox_git::Git;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A change within this time before the fingerprint was taken may be followed by another one that
/// leaves the same times: file systems count in ticks of up to 10 ms.
const TICK_NS: i128 = 20_000_000;

/// The state of a repository at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    digest: String,
    /// Something changed so shortly before that a later change could look the same.
    racy: bool,
}

impl Fingerprint {
    /// Whether the state remembered here is certainly what `now` sees.
    pub fn still(&self, now: &Self) -> bool {
        !self.racy && self.digest == now.digest
    }

    /// Whether nothing changed between two looks of one run.
    pub(super) fn same_state(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// Files of a work tree's own git directory.
const OWN: &[&str] =
    &["HEAD", "index", "ORIG_HEAD", "config.worktree", "logs/HEAD", "info/sparse-checkout", "commondir"];

/// Files of the common git directory.
const COMMON: &[&str] = &[
    "config",
    "packed-refs",
    "shallow",
    "info/exclude",
    "info/attributes",
    "info/grafts",
    "objects/info/alternates",
    "logs/refs/stash",
    "lfs/objects",
];

/// Takes the fingerprint of a repository, of the nested ones (relative to its top), of the user's
/// configuration files (absent ones too) and of `hints`.
pub fn fingerprint(git: &Git, host: &HostRepo, nested: &[PathBuf], hints: &[PathBuf]) -> Fingerprint {
    let mut look = Look { text: Vec::with_capacity(8 * 1024), newest: 0 };
    let env = git.env();
    for file in env.config_files().iter().chain(&env.xdg_file("ignore")).chain(&env.xdg_file("attributes")).chain(hints)
    {
        look.file(file);
    }
    for (name, value) in &env.discovery {
        look.bytes(name.as_bytes());
        look.bytes(value.as_bytes());
    }
    look.repo(host);
    if let Some(top) = host.top() {
        let mut nested: Vec<&PathBuf> = nested.iter().collect();
        nested.sort();
        for path in nested {
            look.bytes(path.as_os_str().as_bytes());
            look.file(&top.join(path).join(".git"));
            if let Ok(host) = HostRepo::nested(&top.join(path)) {
                look.repo(&host);
            }
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128);
    Fingerprint { digest: digest(&look.text), racy: look.newest + TICK_NS > now }
}

struct Look {
    text: Vec<u8>,
    newest: i128,
}

impl Look {
    fn repo(&mut self, host: &HostRepo) {
        let (own, common) = (host.git_dir(), host.common_dir());
        for name in OWN.iter().chain(operation::FILES) {
            self.file(&own.join(name));
        }
        for name in COMMON {
            self.file(&common.join(name));
        }
        for name in operation::DIRS {
            self.tree(&own.join(name));
        }
        for name in ["refs", "hooks", "rr-cache", "reftable"] {
            self.tree(&common.join(name));
        }
        if own != common {
            self.tree(&own.join("refs"));
            self.tree(&own.join("reftable"));
        }
        // The log of the branch that is checked out.
        let head = fs::read(own.join("HEAD")).unwrap_or_default();
        self.bytes(&head);
        if let Some(name) = head.strip_prefix(b"ref: ") {
            let name = std::ffi::OsStr::from_bytes(name.trim_ascii());
            self.file(&common.join("logs").join(name));
        }
    }

    fn file(&mut self, path: &Path) {
        self.entry(path);
    }

    /// Adds one entry; true if it is a directory.
    fn entry(&mut self, path: &Path) -> bool {
        self.bytes(path.as_os_str().as_bytes());
        let Ok(stat) = fs::symlink_metadata(path) else {
            self.text.push(0);
            return false;
        };
        self.text.push(1);
        let directory = stat.is_dir();
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let changed = nanos(stat.ctime(), stat.ctime_nsec());
        // A directory's times change with files beside those that count (locks come and go).
        if !directory {
            for number in [i128::from(stat.size()), nanos(stat.mtime(), stat.mtime_nsec()), changed] {
                self.text.extend_from_slice(&number.to_le_bytes());
            }
            self.newest = self.newest.max(changed);
        }
        for number in [stat.dev(), stat.ino(), u64::from(stat.mode())] {
            self.text.extend_from_slice(&number.to_le_bytes());
        }
        directory
    }

    fn tree(&mut self, dir: &Path) {
        if !self.entry(dir) {
            return;
        }
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut names: Vec<_> = entries.flatten().map(|entry| (entry.file_name(), entry.file_type())).collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, kind) in names {
            let bytes = name.as_bytes();
            // What other sandboxes bring home is not carried, and comes at any time.
            let ours = dir.ends_with("refs") && matches!(bytes, b"sandbox" | b"sandbox-meta");
            if ours || bytes.ends_with(b".lock") || bytes.ends_with(b".sample") {
                continue;
            }
            let path = dir.join(&name);
            if kind.is_ok_and(|kind| kind.is_dir()) {
                self.tree(&path);
            } else {
                self.entry(&path);
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.text.extend_from_slice(bytes);
    }
}
