//! Limits of memory, processes and CPU by control groups, where the user may make one.
//!
//! ```text
//!   v2   <own cgroup or its parent>/git-sandbox-<supervisor pid>-<id>   delegated to the user, or root
//!   v1   <controller>/<own cgroup>/git-sandbox-…                        root
//! ```
//! The directories are removed when the sandbox ends; what a killed supervisor left is removed by the next
//! one that ends.

use sandbox_core::driver::Usage;
use sandbox_core::launch::Limits;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PREFIX: &str = "git-sandbox-";

/// The calling thread, in the words of a v1 group's `tasks`.
pub const ENTER: &[u8] = b"0";

/// A group that this process has made. Dropping it does not remove it: see [`Cgroup::remove`].
#[derive(Debug, Default)]
pub struct Cgroup {
    /// The v2 directory, open for `clone3`.
    unified: Option<(PathBuf, OwnedFd)>,
    /// v1 directories, one for each controller.
    split: Vec<(&'static str, PathBuf)>,
}

/// What is wanted of one controller.
struct Want {
    controller: &'static str,
    what: &'static str,
    v2: Vec<(&'static str, String)>,
    v1: Vec<(&'static str, String)>,
}

fn wants(limits: &Limits) -> Vec<Want> {
    let mut wants = Vec::new();
    if let Some(bytes) = limits.memory {
        wants.push(Want {
            controller: "memory",
            what: "memory",
            v2: vec![
                ("memory.max", bytes.to_string()),
                ("memory.high", (bytes / 10 * 9).to_string()),
                ("memory.swap.max", "0".to_owned()),
                ("memory.oom.group", "1".to_owned()),
            ],
            v1: vec![("memory.limit_in_bytes", bytes.to_string()), ("memory.memsw.limit_in_bytes", bytes.to_string())],
        });
    }
    if let Some(pids) = limits.pids {
        let max = vec![("pids.max", pids.to_string())];
        wants.push(Want { controller: "pids", what: "process", v2: max.clone(), v1: max });
    }
    if let Some(percent) = limits.cpu_percent {
        let quota = u64::from(percent) * 1000;
        wants.push(Want {
            controller: "cpu",
            what: "cpu",
            v2: vec![("cpu.max", format!("{quota} 100000")), ("cpu.weight", "50".to_owned())],
            v1: vec![("cpu.cfs_period_us", "100000".to_owned()), ("cpu.cfs_quota_us", quota.to_string())],
        });
    }
    wants
}

/// The result of [`Cgroup::create`].
pub struct Created {
    /// The group, if any could be made.
    pub cgroup: Cgroup,
    /// The controllers whose limit is in force.
    pub enforced: Vec<&'static str>,
    /// One line for each limit that was asked for and is not.
    pub notes: Vec<String>,
}

impl Cgroup {
    /// Makes what can be made below the cgroup file system at `root` (`/sys/fs/cgroup`) for a process that is in
    /// `membership` (the text of `/proc/self/cgroup`).
    pub fn create(root: &Path, membership: &str, id: &str, limits: &Limits) -> Created {
        let name = format!("{PREFIX}{}-{}", std::process::id(), id.get(..8).unwrap_or(id));
        let mut cgroup = Self::default();
        let mut enforced = Vec::new();
        let mut wants = wants(limits);
        if let Some((dir, controllers)) = create_unified(root, membership, &name, &wants) {
            wants.retain(|want| {
                let has = controllers.iter().any(|one| one == want.controller);
                let done = has && set_all(&dir, &want.v2);
                if done {
                    enforced.push(want.controller);
                }
                !done
            });
            if let Ok(fd) = fs::File::open(&dir) {
                cgroup.unified = Some((dir, fd.into()));
            }
        }
        wants.retain(|want| {
            let Some(dir) = create_split(root, membership, want.controller, &name) else { return true };
            let done = set_all(&dir, &want.v1);
            cgroup.split.push((want.controller, dir));
            if done {
                enforced.push(want.controller);
            }
            !done
        });
        if cgroup.unified.is_none()
            && let Some(dir) = create_split(root, membership, "freezer", &name)
        {
            cgroup.split.push(("freezer", dir));
        }
        let note = |want: &Want| match want.controller {
            // The supervisor does.
            "memory" => "memory limit watched, not enforced: no delegated cgroup".to_owned(),
            _ => format!("{} limit not enforced: no delegated cgroup", want.what),
        };
        let notes = wants.iter().map(note).collect();
        Created { cgroup, enforced, notes }
    }

    /// Returns the directory that `clone3` puts the new process into.
    pub fn for_clone(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|(_, fd)| fd.as_fd())
    }

    /// Returns what the new process writes [`ENTER`] to, to be in the v1 groups.
    ///
    /// It moves itself: for one thread that moves itself the kernel need not stop every fork and exit of the
    /// machine first, which takes a grace period (8 ms on two cores).
    pub fn entrances(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |(_, dir): &(_, PathBuf)| Ok(OpenOptions::new().write(true).open(dir.join("tasks"))?.into());
        self.split.iter().map(open).collect()
    }

    /// Stops every process of the group, or lets them go on.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        let freezer = self.split.iter().find(|(controller, _)| *controller == "freezer");
        let (dir, state, wanted, shown, when) = match (&self.unified, freezer) {
            (Some((dir, _)), _) => {
                let (value, line) = if frozen { ("1", "frozen 1") } else { ("0", "frozen 0") };
                (dir, "cgroup.freeze", value, "cgroup.events", line)
            }
            (None, Some((_, dir))) => {
                let value = if frozen { "FROZEN" } else { "THAWED" };
                (dir, "freezer.state", value, "freezer.state", value)
            }
            (None, None) => return Err(io::ErrorKind::Unsupported.into()),
        };
        set(dir, state, wanted)?;
        let deadline = Instant::now() + Duration::from_secs(2);
        while !fs::read_to_string(dir.join(shown))?.lines().any(|line| line == when) {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// What its processes have used, and which limits they ran into, as far as the kernel counts it (the peak of
    /// memory from Linux 5.19 on, that of processes from 6.6 on, or v1).
    pub fn usage(&self) -> Usage {
        let mut dirs: Vec<&Path> = self.unified.iter().map(|(dir, _)| dir.as_path()).collect();
        dirs.extend(self.split.iter().map(|(_, dir)| dir.as_path()));
        let read = |name: &str| dirs.iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok());
        let number = |names: [&str; 2]| names.iter().find_map(|name| read(name)?.trim().parse::<u64>().ok());
        // `oom_kill 3` among other lines.
        let counted = |names: &[&str], key: &str| {
            names.iter().filter_map(|name| read(name)).any(|text| {
                let count = text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
                count.is_some_and(|count| count > 0)
            })
        };
        let mut limits_hit = Vec::new();
        if counted(&["memory.events", "memory.oom_control"], "oom_kill ") {
            limits_hit.push("memory".to_owned());
        }
        if counted(&["pids.events"], "max ") {
            limits_hit.push("pids".to_owned());
        }
        Usage {
            memory_peak: number(["memory.peak", "memory.max_usage_in_bytes"]),
            processes_peak: number(["pids.peak", "pids.peak"]),
            limits_hit,
            ..Usage::default()
        }
    }

    /// Removes the directories, once no process is left in them, and those of supervisors that are gone.
    pub fn remove(&mut self) {
        let dirs: Vec<PathBuf> = self
            .unified
            .take()
            .map(|(dir, _)| dir)
            .into_iter()
            .chain(self.split.drain(..).map(|(_, dir)| dir))
            .collect();
        for dir in dirs {
            // The kernel lets go of the last process a moment after it was waited for.
            let deadline = Instant::now() + Duration::from_millis(500);
            while fs::remove_dir(&dir).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                if Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            if let Some(parent) = dir.parent() {
                sweep(parent);
            }
        }
    }
}

/// Removes empty groups whose supervisor does not run any more.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // One that still holds a process stays: the kernel refuses.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Makes the v2 group; returns it with the controllers that it has.
fn create_unified(root: &Path, membership: &str, name: &str, wants: &[Want]) -> Option<(PathBuf, Vec<String>)> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let top = [root.to_owned(), root.join("unified")];
    let top = top.into_iter().find(|top| top.join("cgroup.controllers").exists())?;
    let own = top.join(path);
    // A group that has processes of its own cannot give controllers to its children: its parent can.
    let parent = own.parent().filter(|parent| parent.starts_with(&top)).map(Path::to_owned);
    let mut fallback: Option<(PathBuf, Vec<String>)> = None;
    for dir in [Some(own), parent].into_iter().flatten() {
        let group = dir.join(name);
        if fs::create_dir(&group).is_err() {
            continue;
        }
        for want in wants {
            let _ = set(&dir, "cgroup.subtree_control", &format!("+{}", want.controller));
        }
        let text = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        let controllers: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if wants.iter().all(|want| controllers.iter().any(|one| one == want.controller)) {
            if let Some((worse, _)) = fallback {
                let _ = fs::remove_dir(worse);
            }
            return Some((group, controllers));
        }
        match fallback {
            None => fallback = Some((group, controllers)),
            Some(_) => {
                let _ = fs::remove_dir(group);
            }
        }
    }
    fallback
}

fn create_split(root: &Path, membership: &str, controller: &str, name: &str) -> Option<PathBuf> {
    let path = membership.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|one| one == controller).then(|| path.trim_start_matches('/'))
    })?;
    let dir = root.join(controller).join(path).join(name);
    fs::create_dir(&dir).ok()?;
    Some(dir)
}

/// Returns what kind of group this process could make for a sandbox's limits, without making one.
pub fn writable(root: &Path, membership: &str) -> Option<&'static str> {
    let may = |dir: &Path| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok();
    if let Some(path) = membership.lines().find_map(|line| line.strip_prefix("0::/"))
        && let own = root.join(path)
        && let Ok(controllers) = fs::read_to_string(own.join("cgroup.controllers"))
        && controllers.contains("memory")
        && (may(&own) || own.parent().is_some_and(may))
    {
        return Some("cgroup v2");
    }
    may(&root.join("memory")).then_some("cgroup v1")
}

/// Writes the settings; a file that this kernel has not got (swap accounting) is passed over if a first one held.
fn set_all(dir: &Path, settings: &[(&'static str, String)]) -> bool {
    let mut first = true;
    for (file, value) in settings {
        let done = set(dir, file, value).is_ok();
        if first && !done {
            return false;
        }
        first = false;
    }
    true
}

fn set(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(dir.join(file))?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { memory: Some(1 << 30), pids: Some(100), cpu_percent: Some(150), disk: None }
    }

    #[test]
    fn without_a_group_every_limit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let created = Cgroup::create(dir.path(), "0::/user.slice\n", "0123456789", &limits());
        assert!(created.enforced.is_empty());
        assert_eq!(
            created.notes,
            [
                "memory limit watched, not enforced: no delegated cgroup",
                "process limit not enforced: no delegated cgroup",
                "cpu limit not enforced: no delegated cgroup"
            ]
        );
        assert!(created.cgroup.for_clone().is_none());
        assert_eq!(created.cgroup.freeze(true).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn cpu_is_a_quota_of_a_tenth_of_a_second() {
        let cpu = &wants(&limits())[2];
        assert_eq!(cpu.v2[0], ("cpu.max", "150000 100000".to_owned()));
        assert_eq!(cpu.v1[1], ("cpu.cfs_quota_us", "150000".to_owned()));
    }

    #[test]
    fn v1_membership_is_read_by_controller() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("memory/a/b")).unwrap();
        let membership = "4:cpu,cpuacct:/x\n3:memory:/a/b\n0::/\n";
        let made = create_split(dir.path(), membership, "memory", "group").unwrap();
        assert_eq!(made, dir.path().join("memory/a/b/group"));
        assert!(create_split(dir.path(), membership, "pids", "group").is_none());
    }
}
