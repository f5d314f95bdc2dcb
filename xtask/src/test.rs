//! `cargo xtask test`: the one test command.
//!
//! ```text
//! install ─► build once ─► for each user × git: test executables ─► totals
//!
//!                    a git   another git
//!   ordinary user    all        –          every test runs as both users and with every git;
//!   root              –        all         --all: every one of them in every combination
//! ```
//!
//! One thing is not run twice by default: the contract suite over `--view copy`. How files come into a sandbox has
//! nothing to do with who runs it, and copies are slow.
//!
//! The executables are copied to a directory that every user can read, on a file system that an
//! overlay can stand on, and run from there: nothing of the build directory changes meanwhile.

use crate::build::{self, Built, TestExecutable};
use crate::runner::{self, Totals};
use crate::user::User;
use crate::{clients, install};
use sandbox_testkit::{Git, gits, is_root};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    fast: bool,
    all: bool,
    /// A test that failed is not run again.
    strict: bool,
    no_install: bool,
    filter: Option<String>,
    /// Only the soak, for so many seconds in all.
    soak: Option<u64>,
}

impl Options {
    /// Reads the arguments after `test`.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        for arg in args {
            match *arg {
                "--fast" => options.fast = true,
                "--all" => options.all = true,
                "--strict" => options.strict = true,
                "--no-install" => options.no_install = true,
                flag if flag.starts_with('-') => return Err(format!("unknown option '{flag}'")),
                filter => options.filter = Some(filter.to_owned()),
            }
        }
        Ok(options)
    }

    /// Reads the arguments after `soak`.
    pub fn parse_soak(args: &[&str]) -> Result<Self, String> {
        let mut options = Self { soak: Some(10 * 60), ..Self::default() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--minutes" => {
                    let minutes =
                        args.next().and_then(|text| text.parse::<u64>().ok()).filter(|n| (1..=10_000).contains(n));
                    options.soak = Some(minutes.ok_or("--minutes needs a number")? * 60);
                }
                "--no-install" => options.no_install = true,
                other => return Err(format!("unknown argument '{other}'")),
            }
        }
        Ok(options)
    }
}

/// One pass over all executables.
#[derive(Clone, Debug, PartialEq)]
struct Pass {
    user: User,
    git: Git,
    /// Over `--view copy` too.
    copies: bool,
}

/// Names of tests over `--view copy` have this in them.
const COPIES: &str = "::namespace_copy::";

impl std::fmt::Display for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "as {} with {}", self.user.name, self.git)
    }
}

/// What will be run, and what will not.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    passes: Vec<Pass>,
    left_out: Vec<String>,
}

/// Decides who runs the tests with which git.
fn plan(options: &Options, me: &User, ordinary: Option<Result<User, String>>, gits: &[Git]) -> Plan {
    let mut plan = Plan::default();
    let mut users = Vec::new();
    match ordinary {
        None => plan.left_out.push("as root: not run by root".to_owned()),
        Some(Ok(user)) => users.push(user),
        Some(Err(reason)) => plan.left_out.push(format!("as an ordinary user: {reason}")),
    }
    users.push(me.clone());
    for (n, git) in gits.iter().enumerate() {
        for (m, user) in users.iter().enumerate() {
            // Who runs git and which git it is seldom have to do with each other: each of them once is enough by default.
            if options.all || gits.len() == 1 || n % users.len() == m {
                let copies = options.all || plan.passes.is_empty();
                plan.passes.push(Pass { user: user.clone(), git: git.clone(), copies });
            }
        }
    }
    if options.fast {
        plan.passes.truncate(1);
        plan.left_out.clear();
        return plan;
    }
    if gits.len() < 2 {
        plan.left_out.push("with a second git: this machine has one".to_owned());
    }
    for pass in plan.passes.iter().filter(|pass| !pass.copies) {
        plan.left_out.push(format!("{pass}: the contract suite over `--view copy`, which `--all` runs"));
    }
    plan
}

/// Runs everything; whether nothing failed.
pub fn run(options: &Options) -> Result<bool, String> {
    let start = Instant::now();
    install::install(install::TESTS, !options.no_install);
    let ordinary = is_root().then(|| User::ordinary(!options.no_install));
    let plan = plan(options, &User::current(), ordinary, &gits());
    println!("plan:");
    for pass in &plan.passes {
        println!("  {pass}");
    }
    for left_out in &plan.left_out {
        println!("  not {left_out}");
    }
    let built = build::tests()?;
    println!("built {} test executables in {:.0} s", built.tests.len(), start.elapsed().as_secs_f64());
    let suite = options.all.then(|| install::pjdfstest(!options.no_install)).flatten();
    let tools = clients::install(!options.no_install);
    install::guest_kernel(built.product.as_deref(), &tools, !options.no_install);
    let stage = Stage { users: plan.passes.len().max(1) as u64, ..Stage::new(&built, suite.as_deref(), &tools)? };
    let mut totals = Totals::default();
    for left_out in &plan.left_out {
        *totals.skipped.entry(format!("not at all, {left_out}")).or_default() += 1;
    }
    for pass in &plan.passes {
        totals.add(&stage.run(pass, options)?);
    }
    if options.all {
        totals.add(&documentation_tests());
    }
    if totals.skips() > 0 {
        println!("\nskipped:");
        for (reason, count) in &totals.skipped {
            println!("  {count} × {reason}");
        }
    }
    if !totals.unsteady.is_empty() {
        println!("\npassed only when run alone (`--strict` takes that for a failure):");
        for name in &totals.unsteady {
            println!("  {name}");
        }
    }
    if !totals.broken.is_empty() {
        println!("\nfailed:");
        for name in &totals.broken {
            println!("  {name}");
        }
    }
    println!("\nin {:.0} s:", start.elapsed().as_secs_f64());
    println!("{totals}");
    Ok(totals.failed == 0)
}

/// A directory with the executables, and one for temporary files of each user.
struct Stage {
    dir: tempfile::TempDir,
    product: Option<PathBuf>,
    /// pjdfstest, for the tests that only `--all` runs.
    suite: Option<PathBuf>,
    /// Clients of other makes, copied.
    tools: PathBuf,
    tests: Vec<TestExecutable>,
    /// How many passes share the time of a soak.
    users: u64,
}

impl Stage {
    fn new(built: &Built, suite: Option<&Path>, tools: &Path) -> Result<Self, String> {
        let base = disk()?;
        let make = || -> std::io::Result<Self> {
            let dir = tempfile::Builder::new().prefix("git-sandbox-test.").tempdir_in(&base)?;
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
            let bin = dir.path().join("bin");
            fs::create_dir(&bin)?;
            let copy = |from: &Path, name: &str| -> std::io::Result<PathBuf> {
                let to = bin.join(name);
                fs::copy(from, &to)?;
                fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
                Ok(to)
            };
            let product = built.product.as_ref().map(|from| copy(from, "git-sandbox")).transpose()?;
            let suite = suite.map(|from| copy(from, "pjdfstest")).transpose()?;
            // Elsewhere the ordinary user might not reach it.
            let copied = dir.path().join("tools");
            if tools.is_dir() {
                Command::new("cp").args(["-R", "--reflink=auto"]).arg(tools).arg(&copied).status()?;
            }
            let mut tests = built.tests.clone();
            for test in &mut tests {
                test.path = copy(&test.path, &test.name.replace('/', "-"))?;
            }
            Ok(Self { dir, product, suite, tools: copied, tests, users: 1 })
        };
        make().map_err(|error| format!("cannot copy the tests to '{}': {error}", base.display()))
    }

    fn run(&self, pass: &Pass, options: &Options) -> Result<Totals, String> {
        let start = Instant::now();
        println!("\n{pass}");
        let temp = self.temp(&pass.user).map_err(|error| format!("cannot make a directory: {error}"))?;
        let mut totals = Totals::default();
        let wanted = |test: &&TestExecutable| options.soak.is_none() || test.name.ends_with("soak");
        for test in self.tests.iter().filter(wanted) {
            let start = Instant::now();
            let more = Duration::from_secs(options.soak.unwrap_or(0));
            let (mut counts, failure) = runner::run(&mut self.command(test, pass, &temp, options), more);
            let mut failed = failure.as_deref().map(runner::failures).unwrap_or_default();
            if !options.strict {
                self.alone(test, pass, &temp, options, &mut failed, &mut counts);
            }
            // A harness that took an argument for a filter, or a table that is empty, is no suite that passed.
            let (mut counts, failure) =
                match counts == Totals::default() && self.lists_tests(test, pass, &temp, options) {
                    true => (Totals { failed: 1, ..counts }, Some(format!("{}: none of its tests ran", test.name))),
                    false => (counts, failure),
                };
            if counts.failed > 0 {
                let names = if failed.is_empty() { "the whole".to_owned() } else { failed.join(", ") };
                counts.broken.push(format!("{}: {names}, {pass}", test.name));
            }
            totals.add(&counts);
            if counts != Totals::default() {
                println!("  {:24} {counts} ({:.1} s)", test.name, start.elapsed().as_secs_f64());
            }
            if let Some(text) = failure {
                println!("{}", if options.soak.is_some() { &text } else { runner::told(&text) });
            }
        }
        println!("  {totals} ({:.0} s)", start.elapsed().as_secs_f64());
        Ok(totals)
    }

    /// Runs the few that failed among others again, one by one: on a machine of which others take the half, a
    /// deadline may pass that nothing is wrong with. Who passes is told by name in the totals, and what it had
    /// printed is printed all the same.
    fn alone(
        &self,
        test: &TestExecutable,
        pass: &Pass,
        temp: &Path,
        options: &Options,
        failed: &mut Vec<String>,
        counts: &mut Totals,
    ) {
        /// More are no accident.
        const MOST: usize = 3;
        // What tries at random says nothing by trying something else.
        let random = test.name.ends_with("soak");
        if random || failed.len() != counts.failed || failed.len() > MOST {
            return;
        }
        failed.retain(|name| {
            let mut command = self.command(test, pass, temp, &Options { filter: None, ..options.clone() });
            let (again, _) = runner::run(command.args(["--exact", name]), Duration::ZERO);
            let passed = again.failed == 0 && again.passed == 1;
            if passed {
                counts.failed -= 1;
                counts.passed += 1;
                counts.unsteady.push(format!("{}: {name}, {pass}", test.name));
            }
            !passed
        });
    }

    /// Whether it has tests at all, as it says itself.
    fn lists_tests(&self, test: &TestExecutable, pass: &Pass, temp: &Path, options: &Options) -> bool {
        let listed = self.command(test, pass, temp, options).arg("--list").output();
        listed.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains(": test"))
    }

    /// A directory for temporary files that belongs to the user.
    fn temp(&self, user: &User) -> std::io::Result<PathBuf> {
        let dir = self.dir.path().join(&user.name);
        fs::create_dir_all(&dir)?;
        // Open to be passed through: root's tests act in repositories of other users below it.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        if is_root() {
            chown(&dir, Some(user.uid), Some(user.gid))?;
        }
        Ok(dir)
    }

    fn command(&self, test: &TestExecutable, pass: &Pass, temp: &Path, options: &Options) -> Command {
        let mut command = Command::new(&test.path);
        // A test of a sandbox waits more than it computes.
        let threads = std::thread::available_parallelism().map_or(2, usize::from) + 1;
        command.env_clear().args(["--show-output", &format!("--test-threads={threads}")]);
        if let Some(filter) = &options.filter {
            command.arg(filter);
        }
        let repeated = ["SOAK_SEED", "SOAK_TELL"].map(|name| (name, std::env::var_os(name)));
        if options.all {
            command.arg("--include-ignored");
        }
        if !pass.copies && test.name.ends_with("contract") {
            command.args(["--skip", COPIES]);
        }
        let git_dir = pass.git.path.parent().unwrap_or(Path::new("/usr/bin")).to_owned();
        let standard = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];
        let path = std::env::join_paths([git_dir].into_iter().chain(standard.map(PathBuf::from)));
        pass.user.apply(&mut command);
        if let Some(seconds) = options.soak {
            command.env("SOAK_SECONDS", (seconds / self.users).to_string());
        }
        command.envs(repeated.into_iter().filter_map(|(name, value)| Some((name, value?))));
        command
            .current_dir(temp)
            .env("PATH", path.unwrap_or_default())
            .env("TMPDIR", temp)
            .env("LANG", "C.UTF-8")
            .env("TESTKIT_GIT", &pass.git.path)
            .env("TESTKIT_TOOLS", &self.tools)
            .env("CARGO_MANIFEST_DIR", &test.manifest_dir)
            .env("INSTA_WORKSPACE_ROOT", build::workspace())
            .env("INSTA_UPDATE", "no");
        if let Some(product) = &self.product {
            command.env("GIT_SANDBOX_BIN", product);
        }
        if let Some(suite) = &self.suite {
            command.env("PJDFSTEST", suite);
        }
        command
    }
}

/// A directory for the tests on a file system that an overlay can have its upper directory on.
pub fn disk() -> Result<PathBuf, String> {
    const OVERLAYFS: i64 = 0x794c_7630;
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    const NFS: i64 = 0x6969;
    let target = build::workspace().join("target");
    let wanted = std::env::var_os("TMPDIR").map(PathBuf::from);
    let candidates = wanted.into_iter().chain(["/var/tmp", "/tmp"].map(PathBuf::from)).chain([target]);
    let fit = |dir: &PathBuf| {
        let kind = rustix::fs::statfs(dir).map(|stat| stat.f_type);
        dir.is_dir() && kind.is_ok_and(|kind| ![OVERLAYFS, TMPFS, RAMFS, NFS].contains(&kind))
    };
    let mut candidates = candidates;
    candidates.find(fit).ok_or_else(|| {
        "no directory for the tests on a local disk: set TMPDIR to one (in a container: a volume)".into()
    })
}

/// Runs the examples of the documentation, as whoever runs this.
fn documentation_tests() -> Totals {
    println!("\ndocumentation");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--workspace", "--doc", "--quiet"]).current_dir(build::workspace());
    let (totals, failure) = runner::run(&mut command, Duration::ZERO);
    println!("  {totals}");
    if let Some(text) = failure {
        println!("{text}");
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: u32) -> User {
        User { name: name.into(), uid, gid: uid, home: "/h".into() }
    }

    fn git(path: &str, minor: u32) -> Git {
        Git { path: path.into(), version: (2, minor, 0) }
    }

    fn text(plan: &Plan) -> String {
        let mut text = String::new();
        for pass in &plan.passes {
            text.push_str(&format!("{pass}\n"));
        }
        for left_out in &plan.left_out {
            text.push_str(&format!("not {left_out}\n"));
        }
        text
    }

    #[test]
    fn root_runs_everything_as_two_users_with_every_git() {
        let gits = [git("/usr/bin/git", 39), git("/usr/local/bin/git", 47)];
        let plan = plan(&Options::default(), &user("root", 0), Some(Ok(user("ann", 7))), &gits);
        assert_eq!(
            text(&plan),
            "as ann with git 2.39.0 (/usr/bin/git)\n\
             as root with git 2.47.0 (/usr/local/bin/git)\n\
             not as root with git 2.47.0 (/usr/local/bin/git): the contract suite over `--view copy`, which `--all` runs\n"
        );
        let all = Options::parse(&["--all"]).unwrap();
        let plan = super::plan(&all, &user("root", 0), Some(Ok(user("ann", 7))), &gits);
        assert_eq!(plan.passes.len(), 4, "{}", text(&plan));
    }

    #[test]
    fn what_cannot_be_run_is_said() {
        let plan = plan(&Options::default(), &user("ann", 7), None, &[git("/usr/bin/git", 39)]);
        assert_eq!(
            text(&plan),
            "as ann with git 2.39.0 (/usr/bin/git)\n\
             not as root: not run by root\n\
             not with a second git: this machine has one\n"
        );
    }

    /// Runs a shell script as if it were an executable of tests.
    fn run_script(script: &str, strict: bool) -> Totals {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("suite");
        fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let test = TestExecutable { name: "a/suite".into(), path, manifest_dir: dir.path().into() };
        let stage = Stage { tools: dir.path().into(), dir, product: None, suite: None, tests: vec![test], users: 1 };
        let pass = Pass { user: User::current(), git: git("/usr/bin/git", 39), copies: true };
        stage.run(&pass, &Options { strict, ..Options::default() }).unwrap()
    }

    #[test]
    fn what_failed_among_others_is_run_again_alone() {
        let result = |passed, failed| format!("echo 'test result: x. {passed} passed; {failed} failed; 0 ignored'");
        let fails = format!("printf '\\nfailures:\\n    a::b\\n'; {}; exit 101", result(4, 1));
        let alone = format!("case \"$*\" in *--exact\\ a::b) {};; *) {fails};; esac", result(1, 0));
        let totals = run_script(&alone, false);
        assert_eq!((totals.passed, totals.failed, totals.unsteady.len(), totals.broken.len()), (5, 0, 1, 0));
        assert!(totals.unsteady[0].starts_with("a/suite: a::b, as "), "{totals:?}");
        let totals = run_script(&alone, true);
        assert_eq!((totals.passed, totals.failed, totals.unsteady.len()), (4, 1, 0));
        // What fails alone, too, and what has nothing to run by that name.
        for again in [fails.as_str(), &result(0, 0)] {
            let totals = run_script(&format!("case \"$*\" in *--exact*) {again};; *) {fails};; esac"), false);
            assert_eq!((totals.passed, totals.failed, totals.unsteady.len()), (4, 1, 0));
            assert!(totals.broken[0].starts_with("a/suite: a::b, as "), "{totals:?}");
        }
        // Who died says no names.
        let totals = run_script("kill -9 $$", false);
        assert_eq!((totals.failed, totals.broken.len()), (1, 1));
    }

    #[test]
    fn fast_is_one_pass() {
        let gits = [git("/usr/bin/git", 39), git("/usr/local/bin/git", 47)];
        let options = Options::parse(&["--fast", "merge"]).unwrap();
        let plan = plan(&options, &user("root", 0), Some(Ok(user("ann", 7))), &gits);
        assert_eq!(text(&plan), "as ann with git 2.39.0 (/usr/bin/git)\n");
        assert!(Options::parse(&["--slow"]).is_err());
    }
}
