//! The store over time: captures ahead of time, stacks that are folded, what `gc` takes and what it must not.

use sandbox_testkit::{Child, Repo, State, TestEnv, wait_until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .map(|all| all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

/// `repos/<id>` of the only repository.
fn repo_dir(env: &TestEnv) -> PathBuf {
    let repos = env.state().join("repos");
    let ids = names(&repos);
    assert_eq!(ids.len(), 1, "{ids:?}");
    repos.join(&ids[0])
}

/// The snapshot that the next capture of the only work tree starts from.
fn latest(env: &TestEnv) -> Value {
    let repo = repo_dir(env);
    let files = names(&repo.join("latest"));
    assert_eq!(files.len(), 1, "{files:?}");
    let latest = json(&fs::read_to_string(repo.join("latest").join(&files[0])).unwrap());
    let id = latest["snapshot"].as_str().unwrap();
    json(&fs::read_to_string(repo.join("snapshots").join(format!("{id}.json"))).unwrap())
}

fn layers(env: &TestEnv) -> Vec<String> {
    let layers = latest(env)["layers"].as_array().unwrap().clone();
    layers.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// Lets the clock tick, so that what was just written is not racy any more.
fn tick() {
    std::thread::sleep(Duration::from_millis(30));
}

#[track_caller]
fn spawn(repo: &Repo, script: &str) -> String {
    repo.sandbox(&["spawn", "--rm", "-q", "--", "sh", "-c", script]).ok()
}

/// Holds a lock as long as the value lives.
fn hold(lock: &Path) -> fs::File {
    let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(lock).unwrap();
    file.lock().unwrap();
    file
}

#[test]
fn what_was_captured_ahead_is_not_copied_again() {
    let env = TestEnv::new();
    let repo = State::Dirty.build(&env, "repo");
    tick();
    let first = repo.sandbox(&["warm"]).ok();
    assert!(first.starts_with("captured: ") && first.contains(" copied ("), "{first}");
    let again = repo.sandbox(&["warm"]).ok();
    assert!(again.starts_with("captured: ") && !again.contains("copied"), "{again}");
    let before = layers(&env);
    let told = repo.sandbox(&["spawn", "--rm", "--", "git", "status", "--porcelain"]).expect(0);
    assert!(!told.stderr.contains("copied"), "{told}");
    assert_eq!(told.stdout, repo.git(&["status", "--porcelain"]).stdout);
    assert_eq!(layers(&env), before);

    repo.write("more", "x");
    tick();
    let report = json(&repo.sandbox(&["warm", "--json"]).ok());
    assert_eq!((&report["version"], &report["copied_files"], &report["layers"]), (&1.into(), &1.into(), &2.into()));
    assert_eq!(report["snapshot"], latest(&env)["id"]);
    assert_eq!(repo.sandbox(&["list"]).stdout, repo.sandbox(&["list"]).stdout);
    assert!(names(&env.state().join("sandboxes")).is_empty(), "it makes no sandbox");
}

#[test]
fn a_hook_captures_and_never_fails() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.git(&["branch", "elsewhere"]).ok();
    let hook = repo.dir().join(".git/hooks/post-checkout");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\nexec git-sandbox warm --quiet\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let seen = repo.git(&["checkout", "-q", "elsewhere"]).expect(0);
    assert_eq!((seen.stdout.as_str(), seen.stderr.as_str()), ("", ""));
    let captured = layers(&env);
    assert_eq!(captured.len(), 1);

    // While another capture holds the repository it is over at once.
    let busy = hold(&repo_dir(&env).join("lock"));
    repo.git(&["checkout", "-q", "-"]).expect(0);
    drop(busy);
    assert_eq!(layers(&env), captured);

    // In the background.
    fs::write(&hook, "#!/bin/sh\nexec git-sandbox warm --quiet --detach\n").unwrap();
    repo.write("new", "x");
    repo.git(&["checkout", "-q", "elsewhere"]).expect(0);
    wait_until("the capture in the background", PATIENCE, || layers(&env).len() == 2);

    // The store cannot be used: git's own command does not fail, and without --quiet it is said.
    fs::write(env.state().join("format"), "git-sandbox 9999\n").unwrap();
    repo.git(&["checkout", "-q", "-"]).expect(0);
    fs::write(&hook, "#!/bin/sh\nexec git-sandbox warm --quiet\n").unwrap();
    repo.git(&["checkout", "-q", "elsewhere"]).expect(0);
    let said = repo.sandbox(&["warm"]).expect(128);
    assert!(said.stderr.contains("has format 9999"), "{said}");
    fs::write(env.state().join("format"), "git-sandbox 1\n").unwrap();
    let nowhere = env.sandbox(env.root(), &["warm", "--quiet"]).expect(0);
    assert_eq!(nowhere.stderr, "");
}

#[test]
fn several_at_once_make_one_capture() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for n in 0..200 {
        repo.write(&format!("many/{n}"), format!("{n}").repeat(100));
    }
    tick();
    let mut all: Vec<Child> = (0..6).map(|_| env.start(repo.dir(), &["warm"])).collect();
    for child in &mut all {
        assert_eq!(child.wait(PATIENCE), 0);
    }
    assert_eq!(layers(&env).len(), 1);
    assert_eq!(names(&env.state().join("tmp")), [""; 0]);
    let shown = spawn(&repo, "cat many/* | sha256sum");
    assert_eq!(shown, repo.sh("cat many/* | sha256sum").ok());
}

/// Nine spawns, each after another change, while nobody may fold.
fn deep(env: &TestEnv, repo: &Repo) -> fs::File {
    spawn(repo, "true");
    let fold = hold(&repo_dir(env).join("fold.lock"));
    for n in 0..8 {
        tick();
        repo.write(&format!("change/{n}"), format!("{n}").repeat(20_000));
        if n == 5 {
            repo.sandbox(&["spawn", "-q", "-d", "live"]).ok();
        } else {
            spawn(repo, "true");
        }
    }
    assert_eq!(layers(env).len(), 9);
    fold
}

const LOOK: &str = "find . -mindepth 1 -path ./.git -prune -o -printf '%P %i %C@ %T@ %n %s\\n' | sort; \
    find . -path ./.git -prune -o -type f -exec sha256sum {} + | sort; git status --porcelain";

#[test]
fn a_deep_stack_is_folded_in_the_background() {
    let env = TestEnv::new();
    let repo = State::Dirty.build(&env, "repo");
    let fold = deep(&env, &repo);
    let look = || repo.sandbox(&["exec", "live", "--", "sh", "-c", LOOK]).ok();
    let before = look();
    drop(fold);

    // Killed by the kernel in the middle: only temporary things are left, and nothing has moved.
    let (deep_layers, all) = (layers(&env), names(&repo_dir(&env).join("layers")));
    let (id, snapshot) = (repo_dir(&env), latest(&env)["id"].as_str().unwrap().to_owned());
    let id = id.file_name().unwrap().to_str().unwrap().to_owned();
    let state = env.state();
    let role = |limit: &str| {
        let script = format!("ulimit -c 0; {limit} exec git-sandbox __sync '{}' {id} {snapshot}", state.display());
        repo.sh(&script)
    };
    let killed = role("ulimit -f 8;");
    assert_ne!(killed.status, 0, "{killed}");
    let left: Vec<String> = names(&env.state().join("tmp"));
    assert!(left.len() == 1 && left[0].starts_with("fold-"), "{left:?}");
    assert_eq!((layers(&env), names(&repo_dir(&env).join("layers"))), (deep_layers.clone(), all));
    let busy = hold(&repo_dir(&env).join("fold.lock"));
    repo.sandbox(&["gc"]).ok();
    assert_eq!(names(&env.state().join("tmp")), left, "somebody may be working on it");
    drop(busy);
    repo.sandbox(&["gc"]).ok();
    assert_eq!(names(&env.state().join("tmp")), [""; 0]);

    // To the end this time. While it works, a spawn goes on: only renames are done under the lock.
    role("").expect(0);
    let folded = layers(&env);
    assert_eq!((folded.len(), folded.last()), (2, deep_layers.last()));
    assert_eq!(names(&env.state().join("tmp")), [""; 0]);

    // Whoever lives notices nothing, not even after the old layers' other users are gone.
    assert_eq!(look(), before);
    repo.sandbox(&["gc"]).ok();
    assert_eq!(look(), before);
    repo.sandbox(&["exec", "live", "--", "sh", "-c", "echo more >>change/2 && mv change other && cat other/*"]).ok();

    // A new one stands on the folded stack, without a copy, and sees the host's tree.
    let told = repo.sandbox(&["spawn", "--rm", "--", "sh", "-c", "cat change/* | sha256sum; git status --porcelain"]);
    let told = told.expect(0);
    assert!(!told.stderr.contains("copied"), "{told}");
    assert_eq!(told.stdout, repo.sh("cat change/* | sha256sum; git status --porcelain").ok());
    assert_eq!(layers(&env), folded);

    // And by itself, once it is deep again.
    for n in 0..7 {
        tick();
        repo.write(&format!("again/{n}"), "x");
        spawn(&repo, "true");
    }
    wait_until("the stack is folded", PATIENCE, || layers(&env).len() < 8);
    assert_eq!(spawn(&repo, "ls again"), repo.sh("ls again").ok());
}

/// Bytes that a directory takes, each file once.
fn disk(dir: &Path) -> u64 {
    let mut sum = 0;
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            sum += meta.blocks() * 512;
            if meta.is_dir() {
                waiting.push(path);
            }
        }
    }
    sum
}

#[test]
fn branches_back_and_forth_do_not_grow_the_store() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let fill = |word: &str| {
        for n in 0..80 {
            repo.write(&format!("src/part{n}"), word.repeat(2000));
        }
    };
    repo.write(".gitignore", "deps/\n");
    for n in 0..50 {
        repo.write(&format!("deps/{n}"), "d".repeat(10_000));
    }
    fill("main ");
    repo.git(&["add", "-A"]).ok();
    repo.git(&["commit", "-q", "-m", "main"]).ok();
    repo.git(&["checkout", "-q", "-b", "elsewhere"]).ok();
    fill("other ");
    repo.git(&["commit", "-q", "-a", "-m", "elsewhere"]).ok();
    repo.git(&["checkout", "-q", "-"]).ok();
    spawn(&repo, "true");
    let mut sizes = Vec::new();
    for round in 0..10 {
        tick();
        repo.git(&["checkout", "-q", if round % 2 == 0 { "elsewhere" } else { "-" }]).ok();
        let inside = spawn(&repo, "cat src/* deps/* | sha256sum; git status --porcelain; git rev-parse HEAD");
        assert_eq!(inside, repo.sh("cat src/* deps/* | sha256sum; git status --porcelain; git rev-parse HEAD").ok());
        assert_eq!(layers(&env).len(), 2, "round {round}");
        repo.sandbox(&["gc"]).ok();
        sizes.push(disk(&repo_dir(&env).join("layers")));
    }
    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
    assert!(*most < least + least / 4, "{sizes:?}");
}

#[test]
fn gc_shows_what_it_will_do_and_takes_what_nothing_stands_on() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.write("big", "x".repeat(300_000));
    tick();
    spawn(&repo, "true");
    repo.sandbox(&["spawn", "-q", "-d", "live"]).ok();
    let read = || repo.sandbox(&["exec", "live", "--", "sh", "-c", "sha256sum big; git log --oneline"]).ok();
    let before = read();

    // What is in use is no cache, whatever its size.
    repo.git(&["config", "sandbox.cacheSize", "0"]).ok();
    let plan = json(&repo.sandbox(&["gc", "--dry-run", "--json"]).ok());
    assert_eq!((&plan["version"], &plan["dry_run"], &plan["cache_bytes"]), (&1.into(), &true.into(), &0.into()));
    assert_eq!(plan["remove"].as_array().unwrap().len(), 0, "{plan}");
    repo.sandbox(&["gc"]).ok();
    assert_eq!(read(), before);

    // Dropped: now it is kept only for the next spawn.
    repo.sandbox(&["drop", "live"]).ok();
    repo.git(&["config", "sandbox.cacheSize", "10%"]).ok();
    let shown = repo.sandbox(&["gc", "-n"]).expect(0);
    assert!(shown.stderr.contains("kept for the next spawns: "), "{shown}");
    let plan = json(&repo.sandbox(&["gc", "--dry-run", "--json"]).ok());
    assert!(plan["idle_bytes"].as_u64().unwrap() > 300_000, "{plan}");
    let kept = layers(&env);
    repo.sandbox(&["gc"]).ok();
    assert_eq!(layers(&env), kept);

    repo.git(&["config", "sandbox.cacheSize", "100k"]).ok();
    let plan = json(&repo.sandbox(&["gc", "--dry-run", "--json"]).ok());
    let kinds: Vec<&str> =
        plan["remove"].as_array().unwrap().iter().map(|item| item["kind"].as_str().unwrap()).collect();
    assert!(kinds.starts_with(&["capture", "snapshot"]) && kinds.contains(&"layer"), "{kinds:?}");
    assert_eq!(plan["idle_bytes"], 0);
    assert_eq!(layers(&env), kept, "a plan changes nothing");
    let done = repo.sandbox(&["gc", "--json"]).expect(0);
    assert_eq!(json(&done.stdout)["remove"], plan["remove"]);
    assert_eq!(names(&repo_dir(&env).join("layers")), [""; 0]);
    assert_eq!(names(&repo_dir(&env).join("latest")), [""; 0]);

    repo.git(&["config", "sandbox.cacheSize", "much"]).ok();
    let refused = repo.sandbox(&["gc"]).expect(128);
    assert_eq!(
        refused.stderr,
        "error: 'much' is not a value of sandbox.cacheSize\n\
         hint: it is a size such as 20g, a part of the file system such as 5%, or none\n"
    );

    // It can be made again, and `none` keeps everything.
    assert_eq!(spawn(&repo, "sha256sum big"), repo.sh("sha256sum big").ok());
    repo.git(&["config", "sandbox.cacheSize", "none"]).ok();
    assert_eq!(json(&repo.sandbox(&["gc", "-n", "--json"]).ok())["cache_bytes"], u64::MAX);
}

/// What only another branch, a dropped stash or an earlier sandbox's index holds is neither listed nor read;
/// the same questions find all of it in a sandbox that was granted everything.
#[test]
fn one_branch_shows_nothing_of_the_others() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let main = repo.git(&["symbolic-ref", "--short", "HEAD"]).ok().trim().to_owned();
    repo.git(&["checkout", "-q", "-b", "private"]).ok();
    repo.commit("secret.txt", "on the private branch\n");
    let mut hidden = vec![repo.id("private"), repo.id("private:secret.txt")];
    spawn(&repo, "true");
    repo.git(&["checkout", "-q", &main]).ok();
    repo.write("README.md", "stashed once\n");
    repo.git(&["stash"]).ok();
    hidden.extend([repo.id("stash"), repo.id("stash:README.md")]);
    spawn(&repo, "true");
    repo.git(&["stash", "drop"]).ok();
    repo.write("staged.txt", "staged once\n");
    repo.git(&["add", "staged.txt"]).ok();
    hidden.push(repo.id(":staged.txt"));
    let seen = spawn(&repo, "git cat-file --batch-all-objects --batch-check='%(objectname)'");
    assert!(seen.contains(&hidden[4]), "as long as it is staged it belongs to what is seen");
    repo.git(&["rm", "-q", "-f", "staged.txt"]).ok();

    let ask = format!(
        "git cat-file --batch-all-objects --batch-check='%(objectname)'; \
         for id in {}; do git cat-file -e $id 2>/dev/null && echo reads $id; done; \
         find .git \"$(cat .git/objects/info/alternates)\" -name '*.pack' | while read pack; do \
           git verify-pack -v \"${{pack%.pack}}.idx\"; done",
        hidden.join(" ")
    );
    let seen = spawn(&repo, &ask);
    assert!(seen.contains(&repo.id("HEAD")), "{seen}");
    for id in &hidden {
        assert!(!seen.contains(id.as_str()), "{id} is seen inside: {seen}");
    }
    // The control: the same questions can find them.
    repo.git(&["config", "sandbox.objects", "all"]).ok();
    let seen = spawn(&repo, &ask);
    for id in &hidden {
        assert!(seen.contains(&format!("reads {id}\n")), "{id} is not seen with everything granted: {seen}");
    }
}

/// With everything granted the host's packs are not copied, and the host may do what it likes with its own.
#[test]
fn all_objects_cost_no_disk_and_outlive_a_gc_of_the_host() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.git(&["gc", "-q"]).ok();
    repo.git(&["config", "sandbox.objects", "all"]).ok();
    let packs = repo.dir().join(".git/objects/pack");
    let pack = names(&packs).into_iter().find(|name| name.ends_with(".pack")).unwrap();
    let inode = fs::metadata(packs.join(&pack)).unwrap().ino();
    let told = repo.sandbox(&["spawn", "-d", "a"]).expect(0);
    assert!(told.stderr.contains("every object of this repository is visible inside"), "{told}");
    let views = repo_dir(&env).join("views");
    let view = views.join(&names(&views)[0]).join("objects/pack");
    let copied = fs::metadata(view.join(&pack)).unwrap().ino() != inode;
    assert_eq!(copied, sandbox_testkit::is_root(), "only where the owner has to be another one");
    let mode = fs::metadata(packs.join(&pack)).unwrap().mode();
    repo.commit("more", "x");
    repo.git(&["repack", "-q", "-a", "-d"]).ok();
    repo.git(&["gc", "-q", "--prune=now"]).ok();
    assert!(!names(&packs).contains(&pack));
    repo.sandbox(&[
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "git fsck && git log -p >/dev/null && git commit -q --allow-empty -m in",
    ])
    .ok();
    assert_eq!(fs::metadata(view.join(&pack)).unwrap().mode(), mode);
}

/// The repository's id is in its git directory, which all state directories share: what another one's sandboxes
/// have there is theirs, running or not.
#[test]
fn repair_leaves_alone_what_another_state_directory_has() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.sandbox(&["spawn", "-q", "mine", "--", "sh", "-c", "echo x >x; git add x; git commit -qm x"]).ok();
    let refs = repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).ok();
    assert!(refs.contains("refs/sandbox/mine"), "{refs}");
    let pack = repo.dir().join(".git/objects/pack").join(format!("tmp_sandbox_{}_pack-1.pack", std::process::id()));
    std::fs::create_dir_all(pack.parent().unwrap()).unwrap();
    std::fs::write(&pack, "an import that is under way").unwrap();

    let other = env.root().join("other-state");
    let there = |args: &[&str]| env.run(env.sandbox_command(repo.dir(), args).env("GIT_SANDBOX_STATE", &other));
    there(&["spawn", "-q", "--rm", "theirs", "--", "true"]).ok();
    let said = there(&["repair"]);
    assert!(said.status <= 1, "{said}");
    assert!(format!("{said}").contains("refs/sandbox/mine"), "it is told: {said}");
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).ok(), refs);
    assert!(pack.exists());
    repo.sandbox(&["drop", "--force", "mine"]).ok();
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).ok(), "");
}
