//! Everything at once, at random, with kills, against a model: whatever happens, what was reported as done is
//! there.
//!
//! ```text
//! threads   spawn  commit  write  stop  start  fetch  merge  pick  branch  undo  drop  restore  gc
//!           the user's own: commit, gc, repack, prune
//!           kill -9: the command at a random moment, a supervisor, a first process
//! model     every commit that git reported inside, every file whose writing was reported, who has them
//! judge     all of them are found; the host is whole; nothing is left over
//! ```
//!
//! `SOAK_SECONDS` (default 60) says how long, `SOAK_SEED` repeats the decisions of a run (not their timing).

use sandbox_testkit::{Child, Output, Repo, State, TestEnv};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Threads that give commands.
const HANDS: u64 = 3;
/// Sandboxes that are live at once, about.
const CROWD: usize = 5;
/// A command that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(90);

/// What was reported as done. Names are never given twice.
#[derive(Default)]
struct Model {
    /// Commits by the sandbox that made them.
    commits: BTreeMap<String, Vec<String>>,
    /// Files that were never committed: name to content.
    files: BTreeMap<String, BTreeMap<String, String>>,
    /// What may still be given commands.
    live: Vec<String>,
}

struct World<'a> {
    env: &'a TestEnv,
    repo: &'a Repo<'a>,
    model: Mutex<Model>,
    /// How often each thing was done, and how often it was refused or cut.
    told: Mutex<BTreeMap<String, u64>>,
    next: AtomicU64,
    /// Git's own `commit` and `gc --prune=now` at once lose commits without us.
    user: Mutex<()>,
}

/// xorshift64*: which decisions, not how good.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.roll(all.len() as u64) as usize].clone())
    }
}

impl World<'_> {
    fn count(&self, what: &str) {
        *self.told.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    /// Runs a command to its end, or kills it at a random moment.
    fn run(&self, dice: &mut Dice, args: &[&str], killed: bool) -> Option<Output> {
        if killed {
            let mut command = self.env.sandbox_command(self.repo.dir(), args);
            let mut child = Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
            std::thread::sleep(Duration::from_millis(dice.roll(120)));
            kill(child.pid());
            child.wait(PATIENCE);
            self.count("commands killed");
            return None;
        }
        let start = Instant::now();
        let said = self.repo.sandbox(args);
        let what = format!("`git sandbox {}`\n{}{}", args.join(" "), said.stdout, said.stderr);
        assert!(start.elapsed() < PATIENCE, "took {:?}: {what}", start.elapsed());
        assert!(!said.stderr.contains("panicked"), "{what}");
        assert!([0, 1, 125, 128, 137, 143].contains(&said.status), "status {}: {what}", said.status);
        if said.stderr.starts_with("error: no sandbox named") && dice.roll(4) > 0 {
            // In the trash, from where it may come back, or gone.
            self.model.lock().unwrap().live.retain(|name| !args.contains(&name.as_str()));
        }
        self.count(&format!("{} {}", args[0], if said.status == 0 { "done" } else { "refused" }));
        if said.status != 0 && std::env::var_os("SOAK_TELL").is_some() {
            eprintln!("{what}");
        }
        Some(said)
    }

    fn step(&self, dice: &mut Dice) {
        let live = self.model.lock().unwrap().live.clone();
        let killed = dice.roll(6) == 0;
        let Some(name) = dice.pick(&live).filter(|_| live.len() >= CROWD || dice.roll(6) > 0) else {
            let name = format!("s{}", self.next.fetch_add(1, Ordering::Relaxed));
            self.run(dice, &["spawn", "-q", "-d", &name], killed);
            // One that was cut may exist, and then it counts as any other.
            self.model.lock().unwrap().live.push(name);
            return;
        };
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        match dice.roll(24) {
            0..=5 => {
                // A git that was killed inside leaves its lock there, as anywhere.
                let script = format!(
                    "rm -f .git/index.lock; mkdir -p {name} && echo {n} >{name}/{n} && git add {name}/{n} && git commit -qm 'commit {n}' && git rev-parse HEAD"
                );
                self.report(dice, &name, &script, killed, |model, said| {
                    model.commits.entry(name.clone()).or_default().push(said.trim().to_owned());
                });
            }
            6..=8 => {
                let script = format!("echo {n} >wip-{n} && echo ok");
                self.report(dice, &name, &script, killed, |model, _| {
                    model.files.entry(name.clone()).or_default().insert(format!("wip-{n}"), format!("{n}\n"));
                });
            }
            9 => drop(self.run(dice, &["stop", &name], killed)),
            10..=11 => drop(self.run(dice, &["start", &name], killed)),
            12 => drop(self.run(dice, &["fetch", &name], killed)),
            13..=14 => drop(self.run(dice, &["merge", "--no-ff", &name], killed)),
            15 => drop(self.run(dice, &["merge", "--all"], killed)),
            16 => drop(self.run(dice, &["undo"], killed)),
            17 => drop(self.run(dice, &["drop", &name], killed)),
            18 => drop(self.run(dice, &["drop", "--force", &name], killed)),
            19 => drop(self.run(dice, &["trash", "restore", &name], killed)),
            20 => drop(self.run(dice, &["gc"], killed)),
            21 => {
                // The user goes on meanwhile; a lock that a merge holds is theirs to wait for.
                let script = match dice.roll(3) {
                    0 => format!("git commit -q --allow-empty -m 'host {n}'"),
                    1 => "git repack -qad && git prune-packed".to_owned(),
                    _ => "git gc -q --prune=now".to_owned(),
                };
                let one = self.user.lock().unwrap();
                let done = self.repo.sh(&script).status == 0;
                drop(one);
                self.count(if done { "host git done" } else { "host git refused" });
            }
            22 => {
                if let Some((_, pid)) = dice.pick(&self.env.live_processes()) {
                    kill(pid);
                    self.count("supervisors and first processes killed");
                }
            }
            _ => drop(self.run(dice, &["branch", &name, &format!("kept-{n}")], killed)),
        }
    }

    /// Runs a script inside; what it reported as done is noted.
    fn report(&self, dice: &mut Dice, name: &str, script: &str, killed: bool, note: impl FnOnce(&mut Model, &str)) {
        let Some(said) = self.run(dice, &["exec", name, "--", "sh", "-c", script], killed) else { return };
        if said.status == 0 {
            note(&mut self.model.lock().unwrap(), &said.stdout);
        }
    }
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[test]
fn what_was_reported_as_done_is_there_whatever_happens() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let seed = std::env::var("SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
        u64::from_ne_bytes(bytes)
    });
    println!("SOAK_SEED={seed} SOAK_SECONDS={seconds}");
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let (model, told) = (Mutex::default(), Mutex::default());
    let world = World { env: &env, repo: &repo, model, told, next: AtomicU64::new(1), user: Mutex::new(()) };

    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for hand in 0..HANDS {
            let world = &world;
            scope.spawn(move || {
                let mut dice = Dice(seed.wrapping_add(hand.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
                while Instant::now() < end {
                    world.step(&mut dice);
                }
            });
        }
    });
    for (what, times) in world.told.lock().unwrap().iter() {
        println!("{times:6} {what}");
    }
    judge(&world);
}

/// What can be found out about a commit that was lost.
fn whereabouts(repo: &Repo<'_>, name: &str, commit: &str) -> String {
    let script = format!(
        "git cat-file -t {commit}; git for-each-ref --contains {commit}; git for-each-ref; \
         git log --oneline --graph --all --reflog | head -60; git reflog | head -20"
    );
    let inside = repo.sandbox(&["exec", name, "--", "sh", "-c", &script]);
    let host =
        repo.sh(&format!("git cat-file -t {commit}; git for-each-ref; git log --oneline --graph --all | head -60"));
    let list = repo.sandbox(&["list", "--all"]);
    let events = repo.sandbox(&["events", name]);
    format!("inside:\n{inside}\nhost:\n{host}\n{list}\n{events}")
}

/// Everything that was reported is found, the host is whole, and nothing is left over.
fn judge(world: &World<'_>) {
    let (env, repo) = (world.env, world.repo);
    let model = world.model.lock().unwrap();
    // Whatever was cut last is put right by the next command.
    repo.sandbox(&["list"]).ok();
    let trash: serde_json::Value = serde_json::from_str(&repo.sandbox(&["trash", "list", "--json"]).ok()).unwrap();
    for item in trash["trash"].as_array().unwrap() {
        repo.sandbox(&["trash", "restore", item["name"].as_str().unwrap()]).ok();
    }
    let list: serde_json::Value = serde_json::from_str(&repo.sandbox(&["list", "--json"]).ok()).unwrap();
    let there: BTreeMap<&str, &str> = list["sandboxes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["name"].as_str().unwrap(), row["state"].as_str().unwrap()))
        .collect();
    for (name, state) in &there {
        if *state != "running" {
            repo.sandbox(&["start", name]).ok();
        }
    }
    // Written files are in their sandbox.
    let mut files = 0;
    for (name, all) in &model.files {
        assert!(there.contains_key(name.as_str()), "'{name}' is gone, and with it {all:?}");
        for (file, content) in all {
            let found = repo.sandbox(&["exec", name, "--", "cat", file]);
            assert_eq!(found.stdout, *content, "'{file}' of '{name}': {}", found.stderr);
            files += 1;
        }
    }
    // Commits are in their sandbox, if that exists, and on the host in any case.
    if !there.is_empty() {
        repo.sandbox(&["fetch", "--all"]).ok();
    }
    let listed = repo.sh("git rev-list --all --reflog").ok();
    let host: BTreeSet<&str> = listed.lines().collect();
    let mut commits = 0;
    for (name, made) in &model.commits {
        for commit in made {
            assert!(
                host.contains(commit.as_str()),
                "commit {commit} of '{name}' is not on the host\n{}",
                whereabouts(repo, name, commit)
            );
            commits += 1;
        }
        if there.contains_key(name.as_str()) {
            let script = format!("for c in {}; do git cat-file -e $c || echo $c; done", made.join(" "));
            let missing = repo.sandbox(&["exec", name, "--", "sh", "-c", &script]).ok();
            assert_eq!(missing, "", "not in '{name}' any more");
        }
    }
    // The host: nothing half merged, nothing broken, nothing left over.
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
    let fsck = repo.sh("git fsck --full --strict --no-dangling 2>&1").ok();
    assert!(!fsck.contains("error") && !fsck.contains("missing") && !fsck.contains("broken"), "{fsck}");
    leftovers(&repo.dir().join(".git"));
    repo.sandbox(&["drop", "--all", "--force"]).ok();
    assert!(env.live_processes().is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*env.state().to_string_lossy()), "{mounts}");
    println!("{commits} commits and {files} files reported, all found; {} sandboxes at the end", there.len());
    // A run in which nothing happens shows nothing.
    assert!(commits >= 3, "only {commits} commits were made");
}

/// Locks, temporary packs and staging directories below a git directory.
fn leftovers(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.ends_with(".lock") || name.ends_with(".keep") || name.starts_with("tmp_");
        assert!(!ours && !name.starts_with(".sandbox-"), "left over: '{}'", entry.path().display());
        if entry.file_type().unwrap().is_dir() {
            leftovers(&entry.path());
        }
    }
}
