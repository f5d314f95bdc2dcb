//! Small file systems, and what is compared.

use sandbox_testkit::{Output, Repo, State, TestEnv, is_root, tree_digest, wait_until, which};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long something that must happen may take; nothing is measured by it.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A file system of its own where all state directories of a test environment are. Unmounted at the end.
pub struct Volume {
    at: PathBuf,
    device: Option<String>,
}

/// Why there is none on this machine.
pub type Missing = String;

impl Volume {
    /// A tmpfs.
    pub fn tmpfs(env: &TestEnv, options: &str) -> Result<Self, Missing> {
        let at = place(env)?;
        run("mount", &["-t", "tmpfs", "-o", &format!("mode=755,{options}"), "none", text(&at)])?;
        Ok(Self { at, device: None })
    }

    /// A file system in a file of this size, made by a program with its arguments.
    pub fn of(env: &TestEnv, size: u64, mkfs: &[&str]) -> Result<Self, Missing> {
        let at = place(env)?;
        if which(mkfs[0]).is_none() {
            return Err(format!("no {}", mkfs[0]));
        }
        let image = env.root().join("image");
        fs::File::create(&image).and_then(|file| file.set_len(size)).map_err(|error| error.to_string())?;
        run(mkfs[0], &[&mkfs[1..], &[text(&image)]].concat())?;
        let device = run("losetup", &["-f", "--show", text(&image)])?;
        let volume = Self { at, device: Some(device.clone()) };
        run("mount", &[&device, text(&volume.at)])?;
        Ok(volume)
    }

    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Mounts it again with other options.
    pub fn remount(&self, options: &str) -> Result<(), String> {
        run("mount", &["-o", &format!("remount,{options}"), text(&self.at)]).map(drop)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", text(&self.at)]);
        if let Some(device) = &self.device {
            let _ = run("losetup", &["-d", device]);
        }
    }
}

/// The directory that holds the state directory; a state directory itself may hold nothing else.
fn place(env: &TestEnv) -> Result<PathBuf, Missing> {
    if !is_root() {
        return Err("only root can mount a file system".into());
    }
    let at = env.state().parent().expect("it is below the environment's root").to_owned();
    fs::create_dir_all(&at).map_err(|error| error.to_string())?;
    Ok(at)
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a test's paths are text")
}

pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let out = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    let said = if out.status.success() { &out.stdout } else { &out.stderr };
    let said = String::from_utf8_lossy(said).trim().to_owned();
    if out.status.success() { Ok(said) } else { Err(format!("{program} {args:?}: {said}")) }
}

/// A repository with a history, an uncommitted edit and an untracked file.
pub fn world(env: &TestEnv) -> Repo<'_> {
    let repo = State::Plain.build(env, "repo");
    repo.commit("a", "1\n2\n3\n");
    repo.commit("b", "1\n");
    repo.write("b", "1\nmine\n");
    repo.write("untracked", "u\n");
    repo
}

/// Takes every byte that is free, in one file.
pub fn fill_blocks(at: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(at).expect("there is room for a name");
    for size in [1 << 20, 4096, 512, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    // Where blocks are given late, whether there are any is known late.
    let _ = file.sync_all();
}

/// Takes every inode that is free.
pub fn fill_inodes(at: &Path) {
    fs::create_dir_all(at).expect("there is room for a directory");
    let mut n = 0;
    while fs::File::create(at.join(n.to_string())).is_ok() {
        n += 1;
    }
    assert!(n > 0, "no inode was free");
}

/// What a sandbox's list entry says.
pub fn row(repo: &Repo<'_>, name: &str) -> Value {
    let listed = repo.sandbox(&["list", "--json"]).ok();
    let listed: Value = serde_json::from_str(&listed).expect("it is JSON");
    let rows = listed["sandboxes"].as_array().expect("a list").clone();
    rows.into_iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no '{name}' in {listed}"))
}

/// Waits until a sandbox is frozen for this reason, or is not (`None`).
#[track_caller]
pub fn wait_frozen(repo: &Repo<'_>, name: &str, why: Option<&str>) {
    wait_until(&format!("'{name}' is frozen by {why:?}"), LIMIT, || row(repo, name)["frozen"]["why"].as_str() == why);
}

/// Everything of the host that no command may change but on purpose, as text.
pub fn host(repo: &Repo<'_>) -> String {
    // What a merge writes is as old as the merge.
    let times = regex::Regex::new(r"\b\d{10}\.\d+").expect("it is a pattern");
    let tree = times.replace_all(&tree_digest(repo.dir()), "").into_owned();
    let status = repo.git(&["status", "--porcelain=v1", "--branch"]).ok();
    let refs = repo.git(&["for-each-ref", "--format=%(refname) %(objectname)"]).ok();
    let ours = |line: &&str| !line.starts_with("refs/sandbox");
    let refs: Vec<&str> = refs.lines().filter(ours).collect();
    format!("{tree}\n{status}\n{}", refs.join("\n"))
}

/// The host's repository is sound.
#[track_caller]
pub fn sound(repo: &Repo<'_>, what: &str) {
    let fsck = repo.git(&["fsck", "--full", "--no-dangling"]);
    assert!(fsck.status == 0 && !fsck.to_string().contains("missing"), "{what}: {fsck}");
}

/// Whatever a command must not leave behind, on the host and in the state directory.
#[track_caller]
pub fn nothing_left(repo: &Repo<'_>, state: &Path, what: &str) {
    let mut left = repo.left_in_git();
    // An empty directory that could not be removed any more, nor its lock be made: `gc` takes it a day later.
    let empty = |path: &PathBuf| {
        let merge = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("integrate."));
        merge && fs::read_dir(path).is_ok_and(|mut all| all.next().is_none())
    };
    let ours = ["open", "tmp"].iter().flat_map(|part| entries(&state.join(part)));
    left.extend(ours.filter(|path| !empty(path)).map(|path| path.display().to_string()));
    for dir in entries(&state.join("sandboxes")) {
        if !dir.join("sandbox.json").exists() {
            left.push(format!("half made: {}", dir.display()));
        }
    }
    assert!(left.is_empty(), "{what} left {left:#?}");
}

pub fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// A command was refused for this reason.
#[track_caller]
pub fn refused(out: &Output, words: &[&str]) {
    let said = &out.stderr;
    // Ours, or of a program inside that met it.
    let told = ["error: ", "fatal: ", "sh: ", "mkdir: ", "mv: "].iter().any(|start| said.contains(start));
    assert!(out.status != 0 && told, "{out}");
    assert!(words.iter().any(|word| said.contains(word)), "none of {words:?} in {out}");
}
