//! What the numbers were measured on, and file systems to measure on.

use sandbox_testkit::{is_root, which};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// One line: cores, memory, kernel, file system.
pub fn describe(dir: &Path) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let who = if is_root() { "root" } else { "an ordinary user" };
    format!(
        "{cores} cores, {:.0} GiB of memory, Linux {}, {}, run by {who}",
        kib as f64 / 1024.0 / 1024.0,
        kernel.trim(),
        file_system(dir)
    )
}

/// The type of the file system that `dir` is on, as `/proc/self/mountinfo` has it.
fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let best = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let at = Path::new(left.split(' ').nth(4)?);
        dir.starts_with(at).then(|| (at.as_os_str().len(), right.split(' ').next().unwrap_or("?").to_owned()))
    });
    best.max_by_key(|(length, _)| *length).map_or_else(|| "?".to_owned(), |(_, kind)| kind)
}

/// A file system of its own in a file, mounted while the value lives.
pub struct LoopMount {
    /// Where it is mounted.
    pub at: PathBuf,
    _dir: tempfile::TempDir,
}

impl LoopMount {
    /// Makes and mounts one of `kind` with `gib` GiB, below `base`.
    pub fn new(base: &Path, kind: &str, gib: u64) -> Result<Self, String> {
        if !is_root() {
            return Err("a loop mount needs root".to_owned());
        }
        let mkfs = which(&format!("mkfs.{kind}")).ok_or_else(|| format!("no mkfs.{kind}"))?;
        let dir = tempfile::Builder::new().prefix("gs-loop-").tempdir_in(base).map_err(|error| error.to_string())?;
        let (image, at) = (dir.path().join("image"), dir.path().join("mnt"));
        let make = || -> std::io::Result<()> {
            fs::create_dir(&at)?;
            fs::File::create(&image)?.set_len(gib << 30)
        };
        make().map_err(|error| format!("cannot make '{}': {error}", image.display()))?;
        run(Command::new(mkfs).arg("-q").arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))?;
        Ok(Self { at, _dir: dir })
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.at)) {
            eprintln!("{error}");
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    super::measure::time(command).map(|_| ())
}

/// Writes all dirty pages; as root also forgets what is cached, so that the next read is cold.
pub fn cold() {
    rustix::fs::sync();
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

/// PSS of a process in bytes: its own memory, and its share of what it shares.
pub fn pss(pid: u32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read '{path}': {error}"))?;
    field(&text, "Pss:").ok_or_else(|| format!("no Pss in '{path}'"))
}

/// Runs a command and returns the most memory that it had at once, in bytes. Looked at while it runs: what
/// it takes in its last millisecond may be missed.
pub fn peak(command: &mut Command) -> Result<f64, String> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|error| error.to_string())?;
    let status = format!("/proc/{}/status", child.id());
    let mut most: f64 = 0.0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        most = most.max(field(&text, "VmHWM:").unwrap_or(0.0));
        match child.try_wait().map_err(|error| error.to_string())? {
            None => std::thread::sleep(Duration::from_millis(1)),
            Some(ended) if ended.success() => return Ok(most),
            Some(ended) => return Err(format!("{:?} ended with {ended}", command.get_program())),
        }
    }
}

/// `MemAvailable` of the machine in bytes.
pub fn available() -> f64 {
    field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:").unwrap_or(0.0)
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? * 1024.0)
}

/// Disk usage of a directory in bytes, as `du` counts it.
pub fn disk_usage(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut total = dir.symlink_metadata().map_or(0, |meta| meta.blocks() * 512);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        total += match entry.file_type() {
            Ok(kind) if kind.is_dir() => disk_usage(&entry.path()),
            _ => entry.metadata().map_or(0, |meta| meta.blocks() * 512),
        };
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_this_process_is_known() {
        assert!(pss(std::process::id()).unwrap() > 4096.0);
        assert!(available() > 0.0);
        assert!(peak(Command::new("sleep").arg("0.05")).unwrap() > 4096.0);
        assert!(peak(&mut Command::new("false")).is_err());
        assert_ne!(file_system(Path::new("/proc/self")), "?");
    }
}
