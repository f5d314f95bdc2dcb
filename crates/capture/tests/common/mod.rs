//! A host tree, a store beside it, and a look through a real overlay mount.

#![allow(dead_code, reason = "each test file uses a part")]

use sandbox_capture::*;
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub root: PathBuf,
    pub layers: PathBuf,
    pub tmp: PathBuf,
    pub stack: Vec<String>,
    next: u32,
}

pub fn untracked(_: &[u8]) -> bool {
    false
}
pub fn not_ignored(_: &[u8], _: bool) -> bool {
    false
}

impl Fixture {
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    pub fn at(dir: tempfile::TempDir) -> Self {
        let path = dir.path().canonicalize().unwrap();
        let (root, layers, tmp) = (path.join("host"), path.join("s/layers"), path.join("s/tmp"));
        for dir in [&root, &layers, &tmp] {
            fs::create_dir_all(dir).unwrap();
        }
        Self { dir, root, layers, tmp, stack: Vec::new(), next: 0 }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn mkdir(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    pub fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn remove(&self, path: &str) {
        remove_tree(&self.path(path)).unwrap();
    }

    /// Captures with the plain settings and takes the result as the new stack.
    pub fn capture(&mut self) -> Captured {
        self.capture_with(|_| {}).unwrap()
    }

    pub fn capture_with<'r>(
        &'r mut self,
        change: impl FnOnce(&mut CaptureRequest<'r>),
    ) -> Result<Captured, CaptureError> {
        self.next += 1;
        let id = format!("l{}", self.next);
        let stack = std::mem::take(&mut self.stack);
        let (id, stack): (&'r str, &'r [String]) = (id.leak(), stack.leak());
        {
            let mut request = CaptureRequest {
                root: &self.root,
                previous: stack,
                layers_dir: &self.layers,
                tmp_dir: &self.tmp,
                new_layer_id: id,
                owner: None,
                exclude: &[],
                secrets: Secrets::Carry,
                tracked: &untracked,
                ignored: &not_ignored,
                git_state: 0,
                limit: None,
                threads: 2,
                progress: &(),
                watch: None,
            };
            change(&mut request);
            capture(&request)
        }
    }

    /// Takes a result as the new stack.
    pub fn keep(&mut self, captured: Captured) -> Captured {
        self.stack.clone_from(&captured.layers);
        assert_eq!(fs::read_dir(&self.tmp).unwrap().count(), 0, "something was left behind");
        captured
    }

    /// Captures, takes the result as the new stack.
    pub fn snap(&mut self) -> Captured {
        let captured = self.capture();
        self.keep(captured)
    }

    /// Lets the clock tick, so that what was just written is not racy any more.
    pub fn tick(&self) {
        std::thread::sleep(std::time::Duration::from_millis(30));
    }

    /// What a file holds in the stack, read from the layer that the manifest names.
    pub fn in_layer(&self, captured: &Captured, path: &str) -> PathBuf {
        let entry = captured.manifest.lookup(path.as_bytes()).expect(path);
        self.layers.join(entry.layer.expect(path)).join(TREE).join(path)
    }

    /// Mounts the stack for real and compares it with the host tree.
    pub fn assert_mounted_equals_host(&self, captured: &Captured) {
        let Some(inside) = self.mounted(&captured.layers) else { return };
        let host = dump(&self.root);
        assert_eq!(inside, host, "stack {:?}", captured.layers);
    }

    /// Returns what a mount of a stack shows; `None` when this machine does not let us mount.
    pub fn mounted(&self, layers: &[String]) -> Option<BTreeMap<String, String>> {
        let upper = tempfile::tempdir_in(self.dir.path()).unwrap();
        let text = self.inside(layers, upper.path(), "true")?;
        let lines = text.lines().filter_map(|line| line.strip_prefix("DUMP ")).filter_map(|line| {
            let (path, what) = line.split_once('\t')?;
            Some((path.to_owned(), what.to_owned()))
        });
        Some(lines.collect())
    }

    /// Mounts a stack with an upper directory in `top`, runs a shell script in it, dumps the result.
    pub fn inside(&self, layers: &[String], top: &Path, script: &str) -> Option<String> {
        for name in ["upper", "work", "merged"] {
            fs::create_dir_all(top.join(name)).unwrap();
        }
        let lower: Vec<_> =
            layers.iter().map(|id| self.layers.join(id).join(TREE).to_str().unwrap().to_owned()).collect();
        let script = format!(
            "set -e; mount -t overlay overlay -o lowerdir={},upperdir=upper,workdir=work,userxattr merged; \
             (cd merged; {script}); exec \"$0\" --exact dump_helper --nocapture",
            lower.join(":")
        );
        let output = Command::new("unshare")
            .args(["-Urm", "sh", "-c", &script])
            .arg(std::env::current_exe().unwrap())
            .env("DUMP", top.join("merged"))
            .current_dir(top)
            .output()
            .unwrap();
        remove_tree(&top.join("work")).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            assert!(error.contains("Operation not permitted"), "{error}");
            eprintln!("skipped: no overlay mounts in a user namespace here: {error}");
            return None;
        }
        Some(String::from_utf8(output.stdout).unwrap())
    }
}

/// Called as a test in the mount's namespace; does nothing otherwise.
pub fn dump_if_asked() {
    if let Some(dir) = std::env::var_os("DUMP") {
        for (path, what) in dump(Path::new(&dir)) {
            println!("DUMP {path}\t{what}");
        }
    }
}

/// Returns every path below a directory, except `.git`, with all that a layer must keep.
pub fn dump(top: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() == ".git" {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            let time = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
            let what = if meta.is_dir() {
                waiting.push(path.clone());
                format!("dir {:o} {time}", meta.mode() & 0o1777)
            } else if meta.is_symlink() {
                format!("link {:?} {time}", fs::read_link(&path).unwrap())
            } else if meta.is_file() {
                let mut hasher = DefaultHasher::new();
                fs::read(&path).unwrap().hash(&mut hasher);
                format!("file {:o} {time} {} {:x}", meta.mode() & 0o777, meta.len(), hasher.finish())
            } else {
                format!("other {:o}", meta.mode())
            };
            let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
            found.insert(name, what);
        }
    }
    found
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn left_out(captured: &Captured) -> Vec<(String, Reason)> {
    captured.left_out.iter().map(|entry| (entry.path.display().to_string(), entry.reason)).collect()
}

/// Lists a layer's own content, whiteouts marked.
pub fn layer_content(fixture: &Fixture, id: &str) -> Vec<String> {
    let top = fixture.layers.join(id).join(TREE);
    let mut found = Vec::new();
    let mut waiting = vec![top.clone()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(&top).unwrap().display().to_string();
            if meta.is_dir() {
                waiting.push(path);
                found.push(format!("{name}/"));
            } else if meta.mode() & 0o170_000 == 0o020_000 && meta.rdev() == 0 {
                found.push(format!("-{name}"));
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}
