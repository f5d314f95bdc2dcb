//! The hot path is counted: what a warm `spawn` executes and mounts is written here with its reason, and
//! one more of either has to be argued for.

use sandbox_testkit::{Repo, State, TestEnv, skip, which};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

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

/// A spawn under strace, with a file of calls for each process and thread.
fn traced(env: &TestEnv, repo: &Repo, trace: &Path) -> String {
    // What only tests set makes a doubt of the repository and its configuration: git would be asked.
    let plain = env.sandbox_command(repo.dir(), &["spawn", "--rm", "-q", "--", "cat", "/proc/self/mountinfo"]);
    let mut command = Command::new("strace");
    command.args(["-ff", "-qq", "-s", "256", "-e", "trace=execve,clone,clone3,fork,vfork", "-o"]).arg(trace);
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
    traced(&env, &repo, &env.root().join("tmp/first"));
    let traces = env.root().join("tmp/counted");
    std::fs::create_dir_all(&traces).unwrap();
    let mountinfo = traced(&env, &repo, &traces.join("t"));

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
    mounts(&env, &repo, &mountinfo);
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
