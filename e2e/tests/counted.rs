//! The hot path is counted: what a warm `spawn` executes and mounts is written here with its reason, and
//! one more of either has to be argued for.

use sandbox_testkit::{Repo, State, TestEnv, skip, wait_until, which};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Programs, by how they were called, and why each is needed. No git: a usual repository is found by reading
/// it, and a warm capture starts from what the last one knew.
const PROGRAMS: &[(&str, &str)] = &[
    ("git-sandbox spawn", "the command itself"),
    ("git-sandbox __supervise", "outlives the terminal; starts with nothing of its caller's memory"),
    ("git-sandbox-agent", "the first process inside; its memory has nothing of the host's"),
    ("cat", "what was asked for"),
];

/// Processes that are made, threads not counted.
const PROCESSES: &[&str] = &[
    "the supervisor",
    "the first process inside",
    "the nursery: sessions descend from a process without the first one's capability",
    "the session",
];

/// Mounts besides the host's system directories, the entries of `/etc` and the masks of `/proc`.
const MOUNTS: &[(&str, &str)] = &[
    ("/", "a root made from nothing"),
    ("/dev/null", "devices are bound one by one: no other is there"),
    ("/dev/zero", "see null"),
    ("/dev/full", "see null"),
    ("/dev/random", "see null"),
    ("/dev/urandom", "see null"),
    ("/dev/tty", "see null"),
    ("/dev/pts", "terminals of its own"),
    ("/dev/shm", "not the host's, and bounded"),
    ("/proc", "of its own pid namespace"),
    ("/proc/sys", "read-only"),
    ("/run", "sockets of its own"),
    ("/run/git-sandbox", "our files: its own, so that it is read-only and cannot be moved"),
    ("/tmp", "its own, on disk"),
    ("/var/tmp", "the same; a link could be replaced"),
    ("$HOME", "its own, on disk"),
    ("$TREE", "the overlay"),
    ("/run/git-sandbox/bin/git-sandbox", "the agent's program"),
    ("/run/git-sandbox/objects/*", "the view of granted objects"),
];

/// Most masks there can be below `/proc`: see the table of the driver's plan.
const MASKS: usize = 16;

/// A file of `/etc` up to this size is copied and not mounted.
const COPY_LIMIT: u64 = 32 * 1024;

/// What makes processes and programs.
const MAKES: &str = "execve,clone,clone3,fork,vfork";

/// What waits for the disk.
const WAITS: &str = "fsync,fdatasync,syncfs,sync";

/// What looks at files.
const LOOKS: &str = "%stat,%lstat,%fstat,open,openat,openat2,getdents64";

/// A spawn under strace, with a file of calls for each process and thread.
fn traced(env: &TestEnv, repo: &Repo, trace: &Path, calls: &str) -> String {
    traced_as(env, repo, trace, calls, &["--rm", "-q", "--", "cat", "/proc/self/mountinfo"])
}

fn traced_as(env: &TestEnv, repo: &Repo, trace: &Path, calls: &str, args: &[&str]) -> String {
    // What only tests set makes a doubt of the repository and its configuration: git would be asked.
    let plain = env.sandbox_command(repo.dir(), &[&["spawn"], args].concat());
    let mut command = Command::new("strace");
    command.args(["-ff", "-qq", "-s", "256", "-e", &format!("trace={calls}"), "-o"]).arg(trace);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(repo.dir()).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env_remove("GIT_CEILING_DIRECTORIES").env_remove("GIT_CONFIG_NOSYSTEM");
    env.run(&mut command).ok()
}

#[test]
fn a_warm_spawn() {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    // The first one fills the store; with the same environment, which is part of what is remembered.
    traced(&env, &repo, &env.root().join("tmp/first"), MAKES);
    as_written(&env, &repo);
}

/// Runs a spawn and compares what it executes and mounts with what is written above.
fn as_written(env: &TestEnv, repo: &Repo) {
    let traces = env.root().join("tmp/counted");
    std::fs::create_dir_all(&traces).unwrap();
    let mountinfo = traced(env, repo, &traces.join("t"), MAKES);

    let mut programs = Vec::new();
    let mut processes = 0;
    for entry in std::fs::read_dir(&traces).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines() {
            let (call, result) = line.rsplit_once(" = ").unwrap_or((line, ""));
            if call.starts_with("execve(") && result == "0" {
                let argv: Vec<&str> = call.split_once('[').unwrap().1.split('"').skip(1).step_by(2).collect();
                let name = argv[0].rsplit('/').next().unwrap();
                programs.push(match name {
                    "git-sandbox" => format!("{name} {}", argv[1]),
                    // The product may have another name in its directory.
                    _ if argv.get(1).is_some_and(|role| role.starts_with("__")) => format!("git-sandbox {}", argv[1]),
                    "git" => argv.join(" "),
                    name => name.to_owned(),
                });
            } else if !call.starts_with("execve(")
                && !call.contains("CLONE_THREAD")
                && result.split(' ').next().is_some_and(|pid| pid.parse::<u32>().is_ok_and(|pid| pid > 0))
            {
                processes += 1;
            }
        }
    }
    programs.sort();
    let mut expected: Vec<&str> = PROGRAMS.iter().map(|(name, _)| *name).collect();
    expected.sort_unstable();
    assert_eq!(programs, expected);
    assert_eq!(processes, PROCESSES.len(), "{PROCESSES:?}");
    mounts(env, repo, &mountinfo);
}

/// How often a spawn with these arguments waits for the disk.
fn waits(env: &TestEnv, repo: &Repo, args: &[&str]) -> usize {
    let traces = tempfile::tempdir_in(env.root()).unwrap();
    traced_as(env, repo, &traces.path().join("t"), WAITS, args);
    let files = std::fs::read_dir(traces.path()).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| std::fs::read_to_string(file).unwrap().lines().filter(|line| line.contains("sync")).count()).sum()
}

/// Kilobytes of the program's code and constants that a process has mapped and in use. Pages that its start has
/// written are not among them.
fn of_the_program(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut counts, mut sum) = (false, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // A mapping: addresses, rights, offset, device, inode, path.
            [_, rights, _, _, inode, path] if inode != "0" => counts = rights == "r-xp" && path.starts_with('/'),
            ["Rss:", size, "kB"] if counts => sum += size.parse::<u64>().unwrap(),
            [addresses, _, _, _, _, ..] if addresses.contains('-') => counts = false,
            _ => {}
        }
    }
    sum
}

/// What only the start of a program needs is not held by the processes of a sandbox that wait.
#[test]
fn an_idle_sandbox_lets_go_of_its_program() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.sandbox(&["spawn", "-q", "-d", "idle"]).ok();
    let processes = env.live_processes();
    assert_eq!(processes.len(), 2);
    for (role, pid) in processes {
        // In use with none let go of: 5,000 and 2,500 in a release build, 16,000 and 5,000 in this one.
        let most = if role == "supervisor" { 10_000 } else { 4_000 };
        wait_until("the program's pages are not held", Duration::from_secs(120), || of_the_program(pid) < most);
    }
    // It works as before.
    assert_eq!(repo.sandbox(&["exec", "idle", "--", "echo", "still here"]).ok(), "still here\n");
}

/// Of a sandbox in which nothing was done nothing is left, and nothing that a power cut could take.
#[test]
fn what_leaves_nothing_waits_for_no_disk() {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    // What the snapshot stands on gets to the disk once; strace ends after all that was started.
    for _ in 0..2 {
        waits(&env, &repo, &["--rm", "-q", "--", "true"]);
    }
    // The record and its directory, where the command runs for long; here that is a machine with other things to do.
    let most = 2;
    assert!(waits(&env, &repo, &["--rm", "-q", "--", "true"]) <= most);
    // One that stays is on the disk when the spawn says so.
    assert!(waits(&env, &repo, &["-q", "stays", "--", "true"]) >= most);
}

/// The upper directory of a full copy is the whole tree: whether anything was done in it is told by times.
#[test]
fn a_copy_in_which_nothing_was_done_is_not_rescued() {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let rescues = |script: &str| {
        let traces = tempfile::tempdir_in(env.root()).unwrap();
        let args = ["--view", "copy", "-q", "--", "sh", "-c", script];
        traced_as(&env, &repo, &traces.path().join("t"), "execve", &args);
        let files = std::fs::read_dir(traces.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|file| std::fs::read_to_string(file).unwrap().contains("\"__rescue\"")).count()
    };
    assert_eq!(rescues("true"), 0);
    assert!(rescues("echo new >new") > 0);
}

/// What `merge --all` of ended sandboxes executes, however many they are, and why.
const MERGE: &[(&str, &str)] = &[
    ("git-sandbox", "the command itself"),
    ("git --version", "refuses a git that is too old"),
    ("git status", "whether anything here is uncommitted, which decides what is asked of the sandboxes"),
    ("git var", "who merges, and when: as git resolves it"),
    ("git config", "what converts files, and what would run what comes in"),
    ("git cat-file", "commits and blobs, in one conversation from the plan to its end"),
    ("git diff-tree", "what differs between trees, in one conversation"),
    ("git check-attr", "attributes of what is merged"),
    ("git rev-list", "how all of them stand to each other"),
    ("git merge-tree", "the merges"),
    ("git hash-object", "the merge commits"),
    ("git check-ignore", "whether a new file hides behind an ignore rule"),
    ("git pack-objects", "all that was made, as one pack"),
    ("git index-pack", "the same, safe from any `gc` until a ref names it"),
    ("git update-index", "the new index"),
    ("git update-ref", "moves HEAD"),
];

/// How often it waits for the disk: for the marker, its name and the line of the journal; for the pack and its index;
/// for the former files, what is known of them, and their names; for the branch, ORIG_HEAD and the index, and the names
/// of all three in two directories; for the line that `undo` reads, and its name.
const MERGE_WAITS: usize = 15;

/// Ten sandboxes are no more processes than two, and no more waits: git is spoken with, not started again.
#[test]
fn a_merge_of_many() {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.git(&["stash", "-u", "-q"]).ok();
    for name in ["a", "b", "c", "d", "e"] {
        let script = format!("echo {name} >new-{name} && git add -A && git commit -qm {name}");
        repo.sandbox(&["spawn", "-q", name, "--", "sh", "-c", &script]).ok();
    }
    repo.git(&["commit", "-q", "--allow-empty", "-m", "gone on"]).ok();
    let mut expected: Vec<&str> = MERGE.iter().map(|(name, _)| *name).collect();
    expected.sort_unstable();
    for names in [&["merge", "a", "b"][..], &["merge", "--all"]] {
        let trace = tempfile::tempdir_in(env.root()).unwrap();
        let plain = env.sandbox_command(repo.dir(), names);
        let mut command = Command::new("strace");
        command.args(["-ff", "-qq", "-s", "4096", "-e", "trace=execve,fsync,fdatasync,syncfs,sync", "-o"]);
        command
            .arg(trace.path().join("t"))
            .arg(plain.get_program())
            .args(plain.get_args())
            .current_dir(repo.dir())
            .env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env_remove("GIT_CEILING_DIRECTORIES").env_remove("GIT_CONFIG_NOSYSTEM");
        env.run(&mut command).ok();
        let (mut programs, mut waits) = (Vec::new(), 0);
        for entry in std::fs::read_dir(trace.path()).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let done = text.lines().filter(|line| line.ends_with(" = 0"));
            let (started, waited): (Vec<&str>, Vec<&str>) = done.partition(|line| line.starts_with("execve("));
            programs.extend(started.into_iter().map(program));
            waits += waited.len();
        }
        assert_eq!(waits, MERGE_WAITS, "{names:?}");
        programs.sort();
        assert_eq!(programs, expected, "{names:?}");
    }
    for name in ["a", "b", "c", "d", "e"] {
        assert!(repo.dir().join(format!("new-{name}")).exists(), "{name} was merged");
    }
}

/// A line of `execve` as a program and, of git, its verb.
fn program(line: &str) -> String {
    let argv: Vec<&str> = line.split_once('[').unwrap().1.split('"').skip(1).step_by(2).collect();
    let name = argv[0].rsplit('/').next().unwrap();
    if name != "git" {
        return "git-sandbox".to_owned();
    }
    let mut rest = argv[1..].iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "-C" | "-c" => drop(rest.next()),
            "--no-pager" | "--no-optional-locks" => {}
            flag if flag.starts_with("--git-dir=") => {}
            verb => return format!("git {verb}"),
        }
    }
    "git".to_owned()
}

/// Ends the watcher of a repository.
struct Watching<'r, 'e>(&'r Repo<'e>);

impl Drop for Watching<'_, '_> {
    fn drop(&mut self) {
        self.0.sandbox(&["watch", "--stop"]);
    }
}

/// How many files are looked at by a spawn in a tree of so many; with a watcher and without.
fn looks(files: usize) -> (usize, usize) {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for n in 0..files {
        repo.write(&format!("many/d{}/f{n}", n / 20), "x");
    }
    repo.sandbox(&["watch"]).ok();
    let _watching = Watching(&repo);
    let run = |name: &str| {
        let traces = env.root().join("tmp").join(name);
        std::fs::create_dir_all(&traces).unwrap();
        traced(&env, &repo, &traces.join("t"), LOOKS);
        let files = std::fs::read_dir(&traces).unwrap();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap().lines().count()).sum()
    };
    // The first fills the store, the second has no token to ask with if files were racy in the first.
    let _: usize = run("first") + run("second");
    let with = run("with");
    repo.git(&["config", "sandbox.watch", "never"]).ok();
    let _: usize = run("third");
    (with, run("without"))
}

#[test]
fn a_spawn_with_a_watcher() {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.sandbox(&["watch"]).ok();
    let _watching = Watching(&repo);
    for name in ["tmp/first", "tmp/second"] {
        traced(&env, &repo, &env.root().join(name), MAKES);
    }
    // Asking is no process and no mount.
    as_written(&env, &repo);
    let ((few, few_without), (many, many_without)) = (looks(200), looks(4000));
    assert!(many_without - few_without >= 3800, "the control: {few_without} and {many_without} without a watcher");
    // Some more or less: what is waited for is looked at again.
    assert!(many.abs_diff(few) <= 50, "{few} looks for 200 files, {many} for 4000");
}

fn mounts(env: &TestEnv, repo: &Repo, mountinfo: &str) {
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    for (at, _) in MOUNTS {
        let at = at.replace("$HOME", env.home().to_str().unwrap()).replace("$TREE", repo.dir().to_str().unwrap());
        known.insert(at, false);
    }
    let (mut masks, mut more) = (0, Vec::new());
    for line in mountinfo.lines() {
        let at = line.split(' ').nth(4).unwrap();
        let host = Path::new(at).symlink_metadata();
        let pattern = if at.starts_with("/run/git-sandbox/objects/") { "/run/git-sandbox/objects/*" } else { at };
        if let Some(seen) = known.get_mut(pattern).filter(|seen| !**seen) {
            *seen = true;
        } else if at.starts_with("/proc/") {
            masks += 1;
        } else if at.starts_with("/etc/") && host.as_ref().is_ok_and(|facts| facts.is_dir() || facts.len() > COPY_LIMIT)
            || Path::new(at).parent() == Some(Path::new("/")) && host.is_ok_and(|facts| facts.is_dir())
        {
            // One for each: what the host has decides how many.
        } else {
            more.push(at);
        }
    }
    assert!(more.is_empty(), "mounts that nobody argued for: {more:?}\n{mountinfo}");
    assert!(masks <= MASKS, "{masks} masks\n{mountinfo}");
    assert!(known.values().all(|seen| *seen), "not mounted, or under another name: {known:?}");
}
