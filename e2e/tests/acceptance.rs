//! Nothing is lost: each command that makes, publishes or destroys is killed at each of its steps, or meets a full
//! disk there, and is run again, alone or twice at once. Then everything is as if it had run once: the host's tree
//! and refs, what came home, and nothing is left over.
//!
//! The steps are the fault points in the source (`sandbox_sys::fault`): each must be reached here, and none may be
//! reached that is not in the source. Only a build with debug assertions has them.

use sandbox_testkit::{Child, Repo, State, TestEnv, is_root, skip, tree_digest, which};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// A command and what has to be there before it.
struct Scenario {
    /// What its points begin with.
    prefix: &'static str,
    prepare: fn(&Repo<'_>),
    command: &'static [&'static str],
    /// Its points are those of another scenario: each is only killed at, and the full disk is that one's.
    shared: bool,
}

impl Scenario {
    const fn new(prefix: &'static str, prepare: fn(&Repo<'_>), command: &'static [&'static str]) -> Self {
        Self { prefix, prepare, command, shared: false }
    }

    /// Which of [`SCENARIOS`] it is.
    fn number(&'static self) -> usize {
        SCENARIOS.iter().position(|one| std::ptr::eq(one, self)).expect("it is one of them")
    }

    const fn shared(self) -> Self {
        Self { shared: true, ..self }
    }
}

const NUMBER: usize = 17;

static SCENARIOS: [Scenario; NUMBER] = [
    Scenario::new("spawn", |_| {}, &["spawn", "-q", "x", "--", "true"]),
    Scenario::new("import", not_home, &["fetch", "x"]),
    Scenario::new("merge", committed, &["merge", "x"]),
    Scenario::new("drop", rescued_and_here, &["drop", "x"]),
    Scenario::new("trash", committed, &["drop", "--force", "x"]),
    Scenario::new("empty", trashed, &["trash", "empty", "--yes"]),
    Scenario::new("gc", outdated, &["gc"]),
    Scenario::new("rescue", not_rescued, &["rescue", "x"]),
    Scenario::new("rescue", not_rescued, &["drop", "--force", "x"]),
    Scenario::new("merge", committed_in_two, &["merge", "x"]),
    Scenario::new("merge", committed, &["apply", "x"]).shared(),
    Scenario::new("merge", applied, &["undo", "1"]).shared(),
    Scenario::new("import", not_home, &["branch", "x", "kept"]).shared(),
    Scenario::new("check", committed, &["merge", "--check", "true", "x"]).shared(),
    Scenario::new("checkpoint", committed, &["checkpoint", "x"]),
    Scenario::new("restore", kept, &["restore", "x", "1"]),
    Scenario::new("finish", resolved, &["merge", "--no-ff", "--edit", "--sign", "x"]),
];

/// A commit of many objects, uncommitted edits on both sides.
const WORK: &str = "mkdir many && for n in $(seq 120); do echo $n >many/$n; done && git add many && git mv a moved && \
                    git commit -qm made && echo left >left";

fn committed(repo: &Repo<'_>) {
    repo.sandbox(&["spawn", "-q", "x", "--", "sh", "-ec", WORK]).ok();
}

/// The second repository, where there is one.
fn other(repo: &Repo<'_>) -> PathBuf {
    repo.dir().with_file_name("other")
}

/// A commit in each of two repositories.
fn committed_in_two(repo: &Repo<'_>) {
    let other = other(repo);
    let path = other.to_str().expect("it is text");
    repo.git(&["clone", "-q", ".", path]).ok();
    let work = format!("{WORK}; cd '{path}' && echo other >>a && git commit -qam other");
    repo.sandbox(&["spawn", "-q", "x", "--with", path, "--", "sh", "-ec", &work]).ok();
}

/// Its commit is in the sandbox, and not here: as if the host had been away.
fn not_home(repo: &Repo<'_>) {
    committed(repo);
    let refs = repo.git(&["for-each-ref", "--format=%(refname)", "refs/sandbox", "refs/sandbox-meta"]).stdout;
    for name in refs.lines() {
        repo.git(&["update-ref", "-d", name]).ok();
    }
    repo.git(&["reflog", "expire", "--all", "--expire=now"]).ok();
    repo.git(&["gc", "-q", "--prune=now"]).ok();
}

/// The host has all that was rescued from it.
fn rescued_and_here(repo: &Repo<'_>) {
    repo.sandbox(&["spawn", "-q", "x", "--", "sh", "-ec", "echo b >>a && git commit -qam made && echo l >left"]).ok();
    repo.sandbox(&["merge", "x"]).ok();
    repo.sandbox(&["apply", "x"]).ok();
    let shown = repo.sandbox(&["show", "x"]).ok();
    assert!(shown.contains("rescued     "), "{shown}");
}

/// It has a rescue, and more since: as if it had crashed.
fn not_rescued(repo: &Repo<'_>) {
    committed(repo);
    let shown = repo.sandbox(&["show", "--json", "x"]).ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("it is JSON");
    let dir = PathBuf::from(shown["directory"].as_str().expect("it has a directory"));
    fs::write(dir.join("trees/0/upper/more"), "more\n").expect("it is ours");
}

/// What it left uncommitted is here.
fn applied(repo: &Repo<'_>) {
    committed(repo);
    repo.sandbox(&["apply", "x"]).ok();
}

/// It has a checkpoint, and is not as it was then.
fn kept(repo: &Repo<'_>) {
    committed(repo);
    repo.sandbox(&["checkpoint", "x"]).ok();
    let script = "echo more >more; rm left; git commit -qam again --allow-empty; echo home >~/home";
    repo.sandbox(&["exec", "x", "--", "sh", "-ec", script]).ok();
    repo.sandbox(&["stop", "x"]).ok();
}

/// Its tip is a merge that resolved a conflict, which is to be remembered; messages are edited and commits signed.
fn resolved(repo: &Repo<'_>) {
    let script = "git checkout -qb side && sed -i 's/^1$/side/' a && git commit -qam side && git checkout -q main && \
                  sed -i 's/^1$/main/' a && git commit -qam main && ! git merge -q side && \
                  printf 'both\\n2\\n3\\n' >a && git commit -qam merged";
    repo.sandbox(&["spawn", "-q", "--clean", "x", "--", "sh", "-ec", script]).ok();
    let signs = repo.env().root().join("signs");
    fs::write(&signs, "#!/bin/sh\ncat >/dev/null; echo '[GNUPG:] SIG_CREATED ' >&2; echo signed\n").expect("it is new");
    fs::set_permissions(&signs, fs::Permissions::from_mode(0o755)).expect("it is ours");
    for (key, value) in [
        ("rerere.enabled", "true"),
        ("core.editor", "sed -i '1s/^/Edited: /'"),
        ("gpg.program", signs.to_str().expect("it is text")),
    ] {
        repo.git(&["config", key, value]).ok();
    }
}

fn trashed(repo: &Repo<'_>) {
    committed(repo);
    repo.sandbox(&["drop", "--force", "x"]).ok();
}

fn outdated(repo: &Repo<'_>) {
    repo.sandbox(&["spawn", "-q", "--rm", "x", "--", "true"]).ok();
    repo.write("more", "x\n");
    repo.sandbox(&["spawn", "-q", "--rm", "y", "--", "true"]).ok();
}

/// A repository with a history, an uncommitted edit and an untracked file.
fn world(env: &TestEnv) -> Repo<'_> {
    let repo = State::Plain.build(env, "repo");
    repo.commit("a", "1\n2\n3\n");
    repo.commit("b", "1\n");
    repo.write("b", "1\nmine\n");
    repo.write("untracked", "u\n");
    repo
}

/// All that is to be the same: as text, so that a difference can be read.
fn state(env: &TestEnv, repo: &Repo<'_>) -> String {
    let mut out = String::new();
    let mut say = |what: &str, text: String| out.push_str(&format!("{what}:\n{text}\n"));
    // Names, kinds, modes and contents; what a merge writes is as old as the merge.
    let times = regex::Regex::new(r"\b\d{10}\.\d+").expect("it is a pattern");
    say("tree", times.replace_all(&tree_digest(repo.dir()), "").into_owned());
    let other = other(repo);
    if let Some(path) = other.to_str().filter(|_| other.is_dir()) {
        say("other tree", times.replace_all(&tree_digest(&other), "").into_owned());
        say("other status", repo.git(&["-C", path, "status", "--porcelain=v1", "--branch"]).stdout);
        let refs = ["-C", path, "for-each-ref", "--format=%(refname) %(objecttype) %(tree) %(subject)"];
        say("other refs", repo.git(&refs).stdout);
    }
    say("status", repo.git(&["status", "--porcelain=v1", "--branch"]).stdout);
    // Ids have the time in them; what they name has not.
    say("refs", repo.git(&["for-each-ref", "--format=%(refname) %(objecttype) %(tree) %(subject)"]).stdout);
    say("fsck", repo.git(&["fsck", "--full", "--no-dangling"]).to_string());
    let listed = repo.sandbox(&["list", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&listed).unwrap_or_default();
    let names = json["sandboxes"].as_array().map_or(0, Vec::len);
    say("sandboxes", names.to_string());
    say("trash", entries(&env.state().join("trash")).len().to_string());
    say("left", leftovers(env, repo).join("\n"));
    out
}

/// What the vaults have: names without the ids in them, and trees, since commits have the time in them.
fn vault(env: &TestEnv, repo: &Repo<'_>) -> String {
    let id = regex::Regex::new(r"refs/trash/[0-9a-f]{32}/").expect("it is a pattern");
    let mut all = Vec::new();
    for vault in entries(&env.state().join("repos")).into_iter().map(|repo| repo.join("packs")) {
        let dir = format!("--git-dir={}", vault.display());
        let refs = repo.git(&[&dir, "for-each-ref", "--format=%(refname) %(objecttype) %(tree) %(subject)"]).stdout;
        let fsck = repo.git(&[&dir, "fsck", "--full", "--strict", "--no-dangling"]);
        all.push(format!("{}{fsck}", id.replace_all(&refs, "refs/trash/ID/")));
    }
    // Their directories have random names.
    all.sort_unstable();
    all.concat()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Whatever a command must not leave behind, on the host and in the state directory.
fn leftovers(env: &TestEnv, repo: &Repo<'_>) -> Vec<String> {
    let mut left = repo.left_in_git();
    left.extend(
        ["open", "tmp"].iter().flat_map(|part| entries(&env.state().join(part))).map(|p| p.display().to_string()),
    );
    for dir in entries(&env.state().join("sandboxes")) {
        if !dir.join("sandbox.json").exists() {
            left.push(format!("half made: {}", dir.display()));
        }
        for checkpoint in entries(&dir.join("checkpoints")).into_iter().filter(|path| path.is_dir()) {
            if !checkpoint.join("checkpoint.json").exists() {
                left.push(format!("half made: {}", checkpoint.display()));
            }
        }
    }
    for names in entries(&env.state().join("repos")).iter().flat_map(|repo| entries(&repo.join("names"))) {
        let id = fs::read_to_string(&names).unwrap_or_default();
        if !env.state().join("sandboxes").join(id.trim()).exists() {
            left.push(format!("a name of nobody: {}", names.display()));
        }
    }
    for kept in entries(&env.state().join("repos")).iter().flat_map(|repo| entries(&repo.join("kept"))) {
        // The record, and its copy.
        let name = kept.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let id = name.split('.').next().unwrap_or_default();
        if !["sandboxes", "trash"].iter().any(|place| env.state().join(place).join(id).exists()) {
            left.push(format!("kept of nobody: {}", kept.display()));
        }
    }
    left.extend(env.live_processes().into_iter().map(|(role, pid)| format!("{role} {pid}")));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = env.root().display().to_string();
    left.extend(mounts.lines().filter(|line| line.contains(&root) && line.contains("overlay")).map(str::to_owned));
    left
}

fn with_fault(env: &TestEnv, repo: &Repo<'_>, args: &[&str], fault: &str) -> i32 {
    let mut command = env.sandbox_command(repo.dir(), args);
    command.env("GIT_SANDBOX_FAULT", fault).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Child::spawn(&mut command).wait(Duration::from_secs(60))
}

/// What a scenario begins with, made once and put back as it was as often as it is disturbed.
struct Stand<'e> {
    env: &'e TestEnv,
    repo: Repo<'e>,
    used: u32,
}

impl<'e> Stand<'e> {
    fn new(env: &'e TestEnv, scenario: &Scenario) -> Self {
        let repo = world(env);
        (scenario.prepare)(&repo);
        let stand = Self { env, repo, used: 0 };
        stand.move_all(&stand.part("saved"), true);
        stand
    }

    fn part(&self, name: &str) -> PathBuf {
        self.env.root().join(name)
    }

    /// Everything but what is set aside, copied as exactly as `cp` can or moved.
    fn move_all(&self, to: &Path, copy: bool) {
        fs::create_dir(to).expect("it is new");
        let aside = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name == "saved" || name.starts_with("used-") || name == "bin"
        };
        for path in entries(self.env.root()).into_iter().filter(|path| !aside(path)) {
            if copy {
                copy_all(&path, to);
            } else {
                fs::rename(&path, to.join(path.file_name().expect("it has a name"))).expect("it is in the same place");
            }
        }
    }

    /// As it was when it was made: what the last disturbance left is out of the way.
    fn again(&mut self) {
        if self.used > 0 {
            self.move_all(&self.part(&format!("used-{}", self.used)), false);
            for path in entries(&self.part("saved")) {
                copy_all(&path, self.env.root());
            }
        }
        self.used += 1;
    }
}

/// With modes, times, links among themselves and whiteouts.
fn copy_all(from: &Path, to: &Path) {
    // The kernel's own directory of an overlay may not be listed, by whoever it belongs to: only root copies it as it is.
    let mut closed = Vec::new();
    open_all(from, &mut closed);
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "cannot copy '{}'", from.display());
    let above = from.parent().expect("it is below the environment");
    for (path, mode) in closed.into_iter().rev() {
        let copy = to.join(path.strip_prefix(above).expect("it is below"));
        for path in [&path, &copy] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
        }
    }
}

/// Lets directories be listed that may not be; notes them with their modes, those above first.
fn open_all(dir: &Path, closed: &mut Vec<(PathBuf, u32)>) {
    let Ok(meta) = fs::symlink_metadata(dir) else { return };
    if !meta.is_dir() {
        return;
    }
    if meta.mode() & 0o500 != 0o500 {
        closed.push((dir.to_owned(), meta.mode() & 0o7777));
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("it is ours");
    }
    entries(dir).iter().for_each(|path| open_all(path, closed));
}

/// The points of a scenario, with how often each is reached; looked for once.
fn reached(scenario: &'static Scenario) -> &'static BTreeMap<String, u32> {
    static KNOWN: [OnceLock<BTreeMap<String, u32>>; NUMBER] = [const { OnceLock::new() }; NUMBER];
    KNOWN[scenario.number()].get_or_init(|| find_points(scenario))
}

fn find_points(scenario: &Scenario) -> BTreeMap<String, u32> {
    let env = TestEnv::new();
    let repo = world(&env);
    (scenario.prepare)(&repo);
    let log = env.root().join("reached");
    with_fault(&env, &repo, scenario.command, &format!("log:{}", log.display()));
    let mut points = BTreeMap::new();
    for line in fs::read_to_string(&log).unwrap_or_default().lines() {
        *points.entry(line.to_owned()).or_default() += 1;
    }
    points
}

/// The names in the source: texts of two words for what is called `point` or `stop`.
fn in_source() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e is below the workspace");
    let call = regex::Regex::new(r"\b(?:point|stop)\(([^)]*)\)").expect("it is a pattern");
    let name = regex::Regex::new(r#""([a-z]+\.[a-z]+)""#).expect("it is a pattern");
    let mut found = BTreeSet::new();
    let mut dirs = vec![root.join("src"), root.join("crates")];
    while let Some(dir) = dirs.pop() {
        for path in entries(&dir) {
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") && !path.ends_with("sys/src/fault.rs") {
                let text = fs::read_to_string(&path).unwrap_or_default();
                for call in call.captures_iter(&text) {
                    found.extend(name.captures_iter(&call[1]).map(|name| name[1].to_owned()));
                }
            }
        }
    }
    found
}

/// What the command does when nobody disturbs it: everywhere, and in the vaults; looked at once.
fn undisturbed(scenario: &'static Scenario) -> &'static (String, String) {
    static KNOWN: [OnceLock<(String, String)>; NUMBER] = [const { OnceLock::new() }; NUMBER];
    KNOWN[scenario.number()].get_or_init(|| look_undisturbed(scenario))
}

fn look_undisturbed(scenario: &Scenario) -> (String, String) {
    let env = TestEnv::new();
    let repo = world(&env);
    (scenario.prepare)(&repo);
    repo.sandbox(scenario.command).ok();
    (state(&env, &repo).replace(&env.root().display().to_string(), ""), vault(&env, &repo))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Again {
    /// The command once more.
    Alone,
    /// Twice at once.
    Twice,
    /// Another command first, which has to mend.
    AfterList,
}

/// Disturbs at one point, runs again, and compares.
fn disturb(
    stand: &mut Stand<'_>,
    scenario: &Scenario,
    fault: &str,
    again: Again,
    (expected, in_vault): &(String, String),
) {
    stand.again();
    let (env, repo) = (stand.env, &stand.repo);
    let killed = with_fault(env, repo, scenario.command, fault);
    assert!(killed != 0 || fault.ends_with("enospc") || fault.ends_with("eio"), "{fault}: nothing happened");
    if again == Again::AfterList {
        let listed = repo.sandbox(&["list"]);
        assert!(listed.status == 0 && !listed.stderr.contains("warning"), "{fault}: {listed}");
    }
    let run = || {
        let mut command = env.sandbox_command(repo.dir(), scenario.command);
        Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
    };
    let mut children = vec![run()];
    if again == Again::Twice {
        children.push(run());
    }
    let ends: Vec<i32> = children.iter_mut().map(|child| child.wait(Duration::from_secs(60))).collect();
    // What a run left for the next command to sweep is swept by the next command.
    repo.sandbox(&["gc"]).ok();
    let after = state(env, repo).replace(&env.root().display().to_string(), "");
    assert_eq!(&after, expected, "{} with {fault}, then {again:?} {ends:?}", scenario.prefix);
    // On a full disk it goes into the trash all the same, and the vault has what there was room for.
    if fault.ends_with("kill") {
        assert_eq!(&vault(env, repo), in_vault, "{} with {fault}, then {again:?} {ends:?}", scenario.prefix);
    }
}

/// Each point once, or each time that it is reached and `repeats` times over.
fn run(scenario: &'static Scenario, repeats: u32) -> u32 {
    let expected = undisturbed(scenario);
    let env = TestEnv::new();
    let mut stand = Stand::new(&env, scenario);
    let mut disturbed = 0;
    for (point, times) in reached(scenario).iter().filter(|(point, _)| point.starts_with(scenario.prefix)) {
        let at = if repeats == 1 { 1..=1 } else { 1..=*times };
        for nth in at {
            for round in 0..repeats {
                let again = [Again::AfterList, Again::Alone, Again::Twice];
                let again = if repeats == 1 { &again[disturbed as usize % 3..][..1] } else { &again[..] };
                for again in again {
                    disturb(&mut stand, scenario, &format!("{point}:{nth}:kill"), *again, expected);
                    disturbed += 1;
                }
                if round == 0 && !(scenario.shared && repeats == 1) {
                    disturb(&mut stand, scenario, &format!("{point}:{nth}:enospc"), Again::Alone, expected);
                    disturbed += 1;
                }
            }
        }
    }
    disturbed
}

macro_rules! scenarios {
    ($($name:ident $number:literal)*) => {$(
        #[test]
        fn $name() {
            let n = run(&SCENARIOS[$number], 1);
            assert!(n >= 2, "only {n} disturbances");
            println!("{}: {n} disturbances survived", stringify!($name));
        }
    )*};
}

scenarios! {
    create 0 import 1 merge 2 drop_saved 3 drop_into_the_trash 4 trash_empty 5 gc 6 rescue 7 drop_with_a_rescue 8
    merge_of_two_repositories 9 apply 10 undo 11 branch 12 merge_with_a_check 13 checkpoint 14 restore 15 finish 16
}

/// As long as the sandbox is there, so is what was rescued from it.
#[test]
fn a_drop_that_is_cut_short_keeps_the_rescue() {
    for (scenario, point) in [(&SCENARIOS[3], "drop.rename"), (&SCENARIOS[4], "trash.rename")] {
        let env = TestEnv::new();
        let repo = world(&env);
        (scenario.prepare)(&repo);
        let before = vault(&env, &repo);
        assert!(before.contains("refs/x/rescue "), "{before}");
        with_fault(&env, &repo, scenario.command, &format!("{point}:1:kill"));
        let shown = repo.sandbox(&["show", "x"]).ok();
        assert!(shown.contains("rescued     "), "{point}: {shown}");
        // Nothing is to be rescued anew, and it is under the name of the sandbox.
        repo.sandbox(&["rescue", "x"]).ok();
        assert_eq!(vault(&env, &repo), before, "{point}");
    }
}

/// Hours: by name, or with `--all`.
#[test]
#[ignore = "takes hours: each point each time that it is reached, 20 times over"]
fn everything_twenty_times() {
    let repeats = std::env::var("ACCEPTANCE_REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    for scenario in &SCENARIOS {
        println!("{}: {} disturbances survived", scenario.prefix, run(scenario, repeats));
    }
}

#[test]
fn every_point_of_the_source_is_reached() {
    let known: BTreeSet<String> = SCENARIOS.iter().flat_map(|scenario| reached(scenario).keys().cloned()).collect();
    assert_eq!(known, in_source());
}

/// A full disk is a real one: the state directory is a file system of its own with no block left.
#[test]
fn a_disk_without_room() {
    if !is_root() {
        skip!("only root can mount a small file system");
    }
    if which("mount").is_none() {
        skip!("no mount");
    }
    for scenario in SCENARIOS.iter().filter(|scenario| !scenario.shared) {
        let (expected, _) = undisturbed(scenario);
        let env = TestEnv::new();
        let repo = world(&env);
        fs::create_dir_all(env.state()).expect("the directory is new");
        let disk = Mounted::tmpfs(&env.state());
        (scenario.prepare)(&repo);
        let ballast = env.state().join("tmp/ballast");
        fill(&ballast);
        let full = repo.sandbox(scenario.command);
        if full.status != 0 {
            let said = &full.stderr;
            assert!(said.contains("No space left") || said.contains("room"), "{}: {full}", scenario.prefix);
        }
        let _ = fs::remove_file(&ballast);
        repo.sandbox(scenario.command);
        repo.sandbox(&["gc"]).ok();
        let after = state(&env, &repo).replace(&env.root().display().to_string(), "");
        assert_eq!(&after, expected, "{} on a full disk: {full}", scenario.prefix);
        repo.sandbox(&["drop", "--all", "--force"]);
        drop(disk);
    }
}

fn fill(path: &Path) {
    use std::io::Write;
    fs::create_dir_all(path.parent().expect("it is a path with a name")).expect("there is room for a name");
    let mut file = fs::File::create(path).expect("there is room for a name");
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

/// A small file system, unmounted at the end.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Self {
        let mode = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=700", "none"]).arg(at).status();
        assert!(mode.is_ok_and(|status| status.success()), "cannot mount a tmpfs at '{}'", at.display());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Points are for tests: the program that is given away has none, and reads no wish for one.
#[test]
fn a_release_build_has_no_points() {
    let here = std::env::current_exe().expect("/proc is mounted");
    let target = here.ancestors().nth(3).unwrap_or(Path::new("/"));
    let release = target.join("release/git-sandbox");
    let Ok(bytes) = fs::read(&release) else { skip!("no release build at '{}'", release.display()) };
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("merge.lock"), "this looks for texts the wrong way");
    for point in in_source().iter().filter(|point| *point != "merge.lock") {
        assert!(!has(point), "'{point}' is in '{}'", release.display());
    }
}
