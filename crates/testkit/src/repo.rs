//! A repository of a test.

use crate::env::TestEnv;
use crate::output::Output;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A work tree on the host, with the environment it lives in.
pub struct Repo<'e> {
    env: &'e TestEnv,
    dir: PathBuf,
}

impl<'e> Repo<'e> {
    pub(crate) fn new(env: &'e TestEnv, dir: PathBuf) -> Self {
        Self { env, dir }
    }

    /// The top directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The environment.
    pub fn env(&self) -> &'e TestEnv {
        self.env
    }

    /// Runs git here.
    ///
    /// # Panics
    /// If git cannot be run.
    #[track_caller]
    pub fn git(&self, args: &[&str]) -> Output {
        self.env.git(&self.dir, args)
    }

    /// Runs the product here.
    ///
    /// # Panics
    /// If it was not built or does not end.
    #[track_caller]
    pub fn sandbox(&self, args: &[&str]) -> Output {
        self.env.sandbox(&self.dir, args)
    }

    /// Runs a shell script here, on the host.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Output {
        self.env.run(&mut self.sh_command(script))
    }

    /// Returns the command that [`Repo::sh`] runs.
    pub fn sh_command(&self, script: &str) -> Command {
        let mut command = self.env.command("sh", &self.dir);
        command.args(["-c", script]);
        command
    }

    /// Writes a file, making its directory.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) {
        let file = self.dir.join(path);
        fs::create_dir_all(file.parent().expect("below the top directory")).expect("can make directories");
        fs::write(&file, contents).unwrap_or_else(|error| panic!("cannot write '{}': {error}", file.display()));
    }

    /// Reads a file as text.
    ///
    /// # Panics
    /// If it cannot be read.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        let file = self.dir.join(path);
        let bytes = fs::read(&file).unwrap_or_else(|error| panic!("cannot read '{}': {error}", file.display()));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether something is at this path.
    pub fn has(&self, path: &str) -> bool {
        self.dir.join(path).symlink_metadata().is_ok()
    }

    /// Sets permission bits.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.dir.join(path), fs::Permissions::from_mode(mode)).expect("the file is ours");
    }

    /// Writes a file, adds it and commits. Returns the commit's id.
    ///
    /// # Panics
    /// If git refuses.
    #[track_caller]
    pub fn commit(&self, path: &str, contents: &str) -> String {
        self.write(path, contents);
        self.git(&["add", "--", path]).ok();
        self.git(&["commit", "-q", "-m", &format!("Change {path}")]).ok();
        self.id("HEAD")
    }

    /// What no command may leave behind in its git directory: temporary files, locks, marks of packs.
    pub fn left_in_git(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut dirs = vec![self.dir().join(".git")];
        while let Some(dir) = dirs.pop() {
            for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let ours = name.starts_with("tmp_") || name.starts_with(".sandbox");
                if ours || name.ends_with(".lock") || name.ends_with(".keep") {
                    left.push(path.display().to_string());
                }
                if path.is_dir() && !path.is_symlink() {
                    dirs.push(path);
                }
            }
        }
        left
    }

    /// Returns the full id that a revision names.
    ///
    /// # Panics
    /// If it names nothing.
    #[track_caller]
    pub fn id(&self, revision: &str) -> String {
        self.git(&["rev-parse", "--verify", revision]).ok().trim_end().to_owned()
    }
}

/// Sets access and modification time of everything below `path`, itself included, to one time
/// in the past, so that git finds no entry of the index racily clean.
///
/// # Panics
/// If that fails.
pub fn set_mtimes(path: &Path) {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        for entry in fs::read_dir(path).expect("a readable directory").flatten() {
            if entry.file_name() != ".git" {
                set_mtimes(&entry.path());
            }
        }
    }
    let then = Timespec { tv_sec: 1_690_000_000, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: then, last_modification: then };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("the file is ours");
}
