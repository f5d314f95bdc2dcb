//! The rows: what is measured against what.

use super::Options;
use super::growth::Floor;
use super::machine::{LoopMount, available, cold, disk_usage, pss};
use super::measure::{Contender, Sample, interleave, rounds, time};
use super::table::{Goal, Row, Unit};
use super::trees;
use super::watched::Watching;
use crate::test::disk;
use sandbox_testkit::{Repo, TestEnv, gits, is_root, which};
use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Lines of the table, or why they were not measured.
pub type Rows = Result<Vec<Row>, String>;
/// A function that measures some lines of the table.
pub type Measure = fn(&Bench) -> Rows;

/// All rows, by the names that `--rows` chooses from.
pub const ROWS: &[(&str, Measure)] = &[
    ("spawn-small", spawn_small),
    ("spawn-large", spawn_large),
    ("spawn-changed", spawn_changed),
    ("growth", super::growth::growth),
    ("growth-watched", super::growth::watched),
    ("growth-million", super::growth::million),
    ("status", first_status),
    ("exec", exec),
    ("commit-back", commit_back),
    ("commits", commits),
    ("copy", copy),
    ("fork", fork),
    ("conflicts", super::together::conflicts),
    ("merge-ten", super::together::merge_ten),
    ("compile", compile),
    ("hardening", super::hardening::hardening),
    ("egress", super::egress::egress),
    ("list", list),
    ("burst", burst),
    ("memory", memory),
    ("first-capture", first_capture),
    ("first-capture-xfs", |bench| reflink(bench, "xfs")),
    ("first-capture-btrfs", |bench| reflink(bench, "btrfs")),
    ("vm", super::vm::vm),
    ("mirror-refs", super::mirror::refs),
    ("mirror-clones", super::mirror::clones),
    ("mirror-parallel", super::mirror::parallel),
    ("mirror-lazy", super::mirror::lazy),
    ("mirror-provision", super::mirror::provision),
    ("mirror-pushed", super::mirror::pushed),
    ("mirror-crowded", super::mirror::crowded),
    ("mirror-kept", super::mirror::kept),
    ("mirror-webhook", super::mirror::webhook),
    ("mirror-streaming", super::mirror::streaming),
    ("mirror-idle", super::mirror::idle),
];

const FLOOR: &str = include_str!("floor.c");
const STAT: &str = include_str!("stat.c");

/// What the rows share: an environment, the program, and two repositories.
pub struct Bench {
    env: TestEnv,
    product: PathBuf,
    files: usize,
    runs: usize,
    most: usize,
    asked: String,
    small: OnceCell<()>,
    large: OnceCell<()>,
    /// Peaks of the captures of the least tree: first, unchanged, after one change.
    least: OnceCell<[f64; 3]>,
    /// The mirror and its peers, or why there are none.
    mirror: OnceCell<Result<super::mirror::Stage, String>>,
}

impl Bench {
    /// Makes the environment; repositories are made when a row wants them.
    pub fn new(options: &Options, product: PathBuf) -> Result<Self, String> {
        let git = gits().into_iter().next().ok_or("no git")?;
        let env = TestEnv::below(&disk()?, git, product.clone());
        let (small, large) = (OnceCell::new(), OnceCell::new());
        let (files, runs, asked) = (options.files, options.runs.max(1), options.rows.clone());
        let (least, mirror) = (OnceCell::new(), OnceCell::new());
        Ok(Self { env, product, files, runs, most: options.most, asked, small, large, least, mirror })
    }

    /// Where everything is.
    pub fn root(&self) -> &Path {
        self.env.root()
    }

    fn repo(&self, name: &str, cell: &OnceCell<()>, tracked: usize, ignored: usize) -> Result<Repo<'_>, String> {
        if cell.get().is_none() {
            eprintln!("  making a repository of {tracked} tracked and {ignored} ignored files");
            trees::make(&self.env, name, tracked, ignored)?;
            // The first capture is a row of its own.
            self.spawn(&self.env.repo_at(name), &["--", "true"])?;
            let _ = cell.set(());
        }
        Ok(self.env.repo_at(name))
    }

    /// Whether a row was named, and not only matched or taken with all others.
    pub fn asked_for(&self, row: &str) -> bool {
        self.asked == row
    }

    /// Notes what the captures of the least tree took.
    pub fn least_memory(&self, taken: [f64; 3]) {
        let _ = self.least.set(taken);
    }

    /// What was noted.
    pub fn memory_of_least(&self) -> Option<[f64; 3]> {
        self.least.get().copied()
    }

    /// The sizes that are not above what was asked for; the least in any case.
    pub fn up_to(&self, sizes: &[usize]) -> Vec<usize> {
        sizes.iter().enumerate().filter(|(n, size)| *n == 0 || **size <= self.most).map(|(_, size)| *size).collect()
    }

    /// The least that a sandbox can cost, as a C program.
    pub fn floor(&self) -> Result<Floor, String> {
        Floor::new(self, self.c_program("floor", FLOOR)?)
    }

    /// The mirror and its peers, started when a row wants them first.
    pub fn mirror(&self) -> Result<&super::mirror::Stage, String> {
        self.mirror.get_or_init(|| super::mirror::Stage::new(&self.env, self.files)).as_ref().map_err(String::clone)
    }

    /// The environment.
    pub fn env(&self) -> &TestEnv {
        &self.env
    }

    /// The repository of 500 files.
    pub fn small(&self) -> Result<Repo<'_>, String> {
        self.repo("small", &self.small, 500, 0)
    }

    fn large(&self) -> Result<Repo<'_>, String> {
        self.repo("large", &self.large, self.files, self.files * 4)
    }

    /// Times `git sandbox spawn --quiet <args>`.
    pub fn spawn(&self, repo: &Repo, args: &[&str]) -> Result<Duration, String> {
        self.run(repo, &[&["spawn", "--quiet"], args].concat())
    }

    /// Times the product.
    pub fn run(&self, repo: &Repo, args: &[&str]) -> Result<Duration, String> {
        time(&mut self.env.sandbox_command(repo.dir(), args))
    }

    /// Builds one of our C programs.
    pub fn c_program(&self, name: &str, source: &str) -> Result<PathBuf, String> {
        let (file, program) = (self.root().join(format!("{name}.c")), self.root().join(name));
        fs::write(&file, source).map_err(|error| error.to_string())?;
        time(Command::new("cc").args(["-O2", "-pthread", "-o"]).arg(&program).arg(&file))?;
        Ok(program)
    }

    /// As many rounds as were asked for, at most so many.
    pub fn few(&self, most: usize) -> usize {
        self.runs.min(most)
    }

    /// Lets the contenders take turns as often as was asked for.
    pub fn rounds(&self, contenders: &mut [Contender]) -> Result<Vec<Sample>, String> {
        interleave(self.runs, contenders)
    }
}

/// Runs a script inside or outside that prints nanoseconds, and returns them as a duration.
pub fn printed(command: &mut Command) -> Result<Duration, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let nanos = text.lines().last().and_then(|line| line.trim().parse().ok());
    let nanos = nanos.ok_or_else(|| format!("printed no time: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    Ok(Duration::from_nanos(nanos))
}

/// Times a shell command from within, without the start of whatever it runs in.
pub fn timed(script: &str) -> String {
    format!("a=$(date +%s%N); {{ {script}; }} >&2 || exit 1; b=$(date +%s%N); echo $((b - a))")
}

/// Returns the samples, one per contender.
pub fn take<const N: usize>(samples: Vec<Sample>) -> Result<[Sample; N], String> {
    samples.try_into().map_err(|_| "a contender is missing".to_owned())
}

fn spawn_small(bench: &Bench) -> Rows {
    let repo = bench.small()?;
    let floor = bench.floor()?;
    let [ours, floor] =
        take(bench.rounds(&mut [
            Box::new(|| bench.spawn(&repo, &["--", "true"])),
            Box::new(|| time(&mut floor.command())),
        ])?)?;
    let mut rows = Vec::new();
    if which("bwrap").is_some() {
        let bwrap = || {
            let mut command = Command::new("bwrap");
            command.args(["--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true"]);
            time(&mut command)
        };
        let [ours, bwrap] =
            take(bench.rounds(&mut [Box::new(|| bench.spawn(&repo, &["--", "true"])), Box::new(bwrap)])?)?;
        rows.push(Row::against("`spawn -- true`, 500 files, warm", ours, "`bwrap --unshare-all … true`", bwrap, 2.0));
    } else {
        rows.push(Row::alone("`spawn -- true`, 500 files, warm", ours.clone(), Goal::None, Unit::Time));
    }
    rows.push(Row {
        goal: Goal::None,
        ..Row::against("the same", ours, "the floor: namespaces, overlay, pivot in C", floor, 0.0)
    });
    Ok(rows)
}

fn spawn_large(bench: &Bench) -> Rows {
    let (small, large) = (bench.small()?, bench.large()?);
    let stat = bench.c_program("stat", STAT)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let tree = bench.root().join("worktree");
    let tree_text = tree.to_string_lossy().into_owned();
    let worktree = || {
        let time = time(bench.env.command("git", large.dir()).args(["worktree", "add", "-q", "--detach", &tree_text]));
        large.git(&["worktree", "remove", "--force", &tree_text]).expect(0);
        time
    };
    let clone = || {
        let time = time(bench.env.command("git", large.dir()).args(["clone", "-q", "--local", ".", &tree_text]));
        let _ = fs::remove_dir_all(&tree);
        time
    };
    let ours = || bench.spawn(&large, &["--", "true"]);
    let status = || time(bench.env.command("git", large.dir()).arg("status"));
    let [unwatched, least, stat, on_host] = take(bench.rounds(&mut [
        Box::new(ours),
        Box::new(|| bench.spawn(&small, &["--", "true"])),
        Box::new(|| time(Command::new(&stat).arg(large.dir()).arg(&threads))),
        Box::new(status),
    ])?)?;
    // Seconds each, and they spread little.
    let few = bench.few(4);
    let [beside, worktree, clone] = take(interleave(few, &mut [Box::new(ours), Box::new(worktree), Box::new(clone)])?)?;
    let [watched, watched_least, watched_status, watched_worktree] = {
        let _watching = [Watching::start(bench, bench.large()?)?, Watching::start(bench, bench.small()?)?];
        let [ours, least, status] = take(bench.rounds(&mut [
            Box::new(ours),
            Box::new(|| bench.spawn(&small, &["--", "true"])),
            Box::new(status),
        ])?)?;
        [ours, least, status, worktree.clone()]
    };
    let (ours, status) = (unwatched, on_host);
    let files = bench.files;
    let what = format!("`spawn -- true`, {files} tracked + {} ignored files, warm, unchanged", files * 4);
    Ok(vec![
        Row::against(what.clone(), beside, "`git worktree add`", worktree.clone(), 0.4),
        Row::against(format!("{what}, with the watcher"), watched.clone(), "`git worktree add`", watched_worktree, 0.1),
        Row::against(
            "the capture in it with the watcher (less the spawn of 500 files)",
            watched.less(watched_least.median()),
            "`git status` on the host",
            watched_status,
            1.5,
        ),
        Row::against(
            "the capture in it (less the spawn of 500 files)",
            ours.less(least.median()),
            "stat of every entry in C, same threads",
            stat,
            1.3,
        ),
        Row::alone("`git status` of it on the host", status, Goal::None, Unit::Time),
        Row::alone("`git worktree add` of it", worktree, Goal::None, Unit::Time),
        Row::alone("`git clone --local` of it", clone, Goal::None, Unit::Time),
    ])
}

fn spawn_changed(bench: &Bench) -> Rows {
    let repo = bench.large()?;
    let count = std::cell::Cell::new(0);
    let change = |files: usize| {
        count.set(count.get() + 1);
        for n in 0..files {
            let file = format!("node_modules/d0/e{}/f{}/file{}.txt", n / 400 % 10, n / 40 % 10, n % 40);
            repo.write(&file, format!("changed {}\n", count.get()));
        }
    };
    let after = |files: usize| {
        change(files);
        bench.spawn(&repo, &["--", "true"])
    };
    let [one, thousand, none] = take(bench.rounds(&mut [
        Box::new(|| after(1)),
        Box::new(|| after(1000)),
        Box::new(|| bench.spawn(&repo, &["--", "true"])),
    ])?)?;
    let against = |what: &str, ours, none: &Sample| Row {
        goal: Goal::None,
        ..Row::against(what, ours, "the same, unchanged", none.clone(), 0.0)
    };
    Ok(vec![
        against("`spawn` of it after 1 changed file", one, &none),
        against("`spawn` of it after 1,000 changed files", thousand, &none),
    ])
}

fn first_status(bench: &Bench) -> Rows {
    let repo = bench.large()?;
    let script = timed("GIT_OPTIONAL_LOCKS=0 git status");
    let [ours, host] = take(bench.rounds(&mut [
        Box::new(|| {
            printed(&mut bench.env.sandbox_command(repo.dir(), &["spawn", "--quiet", "--", "sh", "-c", &script]))
        }),
        Box::new(|| printed(&mut repo.sh_command(&script))),
    ])?)?;
    Ok(vec![Row::against("the first `git status` inside, same tree", ours, "`git status` on the host", host, 1.2)])
}

fn exec(bench: &Bench) -> Rows {
    let repo = bench.small()?;
    let name = "bench-exec";
    bench.spawn(&repo, &["-d", name])?;
    let run = || bench.run(&repo, &["exec", name, "--", "true"]);
    let what = "`exec NAME -- true` in a live sandbox";
    let live = bench.env.live_processes();
    let init = live.iter().find(|(role, _)| role == "init").map(|(_, pid)| pid.to_string());
    let goal = Goal::Absolute(0.005);
    let row = match init.filter(|_| is_root() && which("nsenter").is_some()) {
        Some(pid) => {
            let nsenter =
                || time(Command::new("nsenter").args(["-t", &pid, "-m", "-p", "-i", "-u", "-n", "/bin/true"]));
            let [ours, other] = take(bench.rounds(&mut [Box::new(run), Box::new(nsenter)])?)?;
            Row { goal, ..Row::against(what, ours, "`nsenter … true`", other, 0.0) }
        }
        None => {
            let [ours] = take(bench.rounds(&mut [Box::new(run)])?)?;
            Row::alone(what, ours, goal, Unit::Time)
        }
    };
    bench.run(&repo, &["drop", "--force", name])?;
    Ok(vec![row])
}

fn commit_back(bench: &Bench) -> Rows {
    let repo = bench.small()?;
    let name = "bench-commit";
    let clone = bench.root().join("fetch-source");
    let clone_text = clone.to_string_lossy().into_owned();
    repo.git(&["clone", "-q", ".", &clone_text]).expect(0);
    bench.spawn(&repo, &["-d", name])?;
    let script = format!("git commit -q --allow-empty -m x && {}", timed("git push -q host HEAD"));
    let fetch = || {
        bench.env.git(&clone, &["commit", "-q", "--allow-empty", "-m", "x"]).expect(0);
        time(bench.env.command("git", repo.dir()).args(["fetch", "-q", &clone_text, "HEAD:refs/bench/fetched"]))
    };
    let [ours, fetch] = take(bench.rounds(&mut [
        Box::new(|| {
            // As somebody types it: many within a second are a flood, and wait.
            std::thread::sleep(Duration::from_millis(1200));
            printed(&mut bench.env.sandbox_command(repo.dir(), &["exec", name, "--", "sh", "-c", &script]))
        }),
        Box::new(fetch),
    ])?)?;
    bench.run(&repo, &["drop", "--force", name])?;
    Ok(vec![Row::against(
        "commit-back of one commit (`git push host`, inside)",
        ours,
        "`git fetch` from a path",
        fetch,
        3.0,
    )])
}

/// A hundred commits, each synced inside, so that a power cut takes none of them.
fn commits(bench: &Bench) -> Rows {
    let repo = bench.small()?;
    let name = "bench-commits";
    bench.spawn(&repo, &["-d", name])?;
    let script = "for n in $(seq 100); do git commit -q --allow-empty -m $n; done";
    let host = bench.root().join("commits");
    repo.git(&["clone", "-q", ".", &host.to_string_lossy()]).expect(0);
    let outside = |script: &str| {
        let script = format!("cd {} && {}", host.display(), timed(script));
        printed(&mut repo.sh_command(&script))
    };
    let synced = script.replace("git commit", "git -c core.fsync=committed,pack-metadata,reference,index commit");
    let [ours, plain, synced] = take(interleave(
        bench.few(5),
        &mut [
            Box::new(|| {
                let script = timed(script);
                printed(&mut bench.env.sandbox_command(repo.dir(), &["exec", name, "--", "sh", "-c", &script]))
            }),
            Box::new(|| outside(script)),
            Box::new(|| outside(&synced)),
        ],
    )?)?;
    bench.run(&repo, &["drop", "--force", name])?;
    let row = |ours, peer: &str, other| Row {
        goal: Goal::None,
        ..Row::against("100 commits inside, each on the disk", ours, peer, other, 0.0)
    };
    Ok(vec![
        row(ours.clone(), "on the host, synced in the same way", synced),
        row(ours, "on the host, as git does it by itself", plain),
    ])
}

/// A full copy instead of an overlay.
fn copy(bench: &Bench) -> Rows {
    const FILES: usize = 5_000;
    let repo = trees::make(&bench.env, "copied", FILES, 0)?;
    let target = bench.root().join("copied-by-cp");
    let spawn = |view: &str| bench.spawn(&repo, &["--view", view, "--rm", "--", "true"]);
    let [copy, overlay, cp] = take(interleave(
        bench.few(7),
        &mut [
            Box::new(|| spawn("copy")),
            Box::new(|| spawn("overlay")),
            Box::new(|| {
                let took = time(Command::new("cp").args(["-a", "--reflink=auto"]).arg(repo.dir()).arg(&target));
                let _ = fs::remove_dir_all(&target);
                took
            }),
        ],
    )?)?;
    let what = format!("`spawn --view copy -- true`, {FILES} files");
    let row = |peer: &str, other| Row { goal: Goal::None, ..Row::against(&what, copy.clone(), peer, other, 0.0) };
    Ok(vec![row("`cp -a`, not synced", cp), row("the same with an overlay", overlay)])
}

/// Forks of 10 MB of changes in 500 files, until an idle one runs.
fn fork(bench: &Bench) -> Rows {
    let repo = bench.small()?;
    let fill = "mkdir made && cd made && for n in $(seq 500); do head -c 20000 /dev/urandom >$n; done";
    for name in ["fork-live", "fork-stopped"] {
        bench.spawn(&repo, &["-d", name])?;
        bench.run(&repo, &["exec", name, "--", "sh", "-c", fill])?;
    }
    bench.run(&repo, &["stop", "fork-stopped"])?;
    let of = |name: &str| {
        let took = bench.run(&repo, &["fork", "--quiet", "-d", name, "forked"])?;
        bench.run(&repo, &["drop", "--force", "forked"])?;
        Ok(took)
    };
    let samples = take(bench.rounds(&mut [Box::new(|| of("fork-live")), Box::new(|| of("fork-stopped"))])?)?;
    let [live, stopped] = samples;
    bench.run(&repo, &["drop", "--force", "fork-live", "fork-stopped"])?;
    let row = |what: &str, sample| Row::alone(what, sample, Goal::Absolute(0.05), Unit::Time);
    Ok(vec![
        row("`fork -d` of a live sandbox with 10 MB of changes (500 files)", live),
        row("the same of a stopped one", stopped),
    ])
}

fn compile(bench: &Bench) -> Rows {
    let repo = bench.env.repo_at("c-project");
    if !repo.has(".git") {
        for n in 0..20 {
            let body: String = (0..80).map(|f| format!("int f{n}_{f}(int x) {{ int s = {f}; for (int i = 0; i < x; i++) s = s * 31 + i / (s | 1); return s; }}\n")).collect();
            repo.write(&format!("src/f{n}.c"), body);
        }
        repo.git(&["init", "-q"]).expect(0);
        repo.git(&["add", "-A"]).expect(0);
        repo.git(&["commit", "-q", "-m", "C"]).expect(0);
    }
    let name = "bench-compile";
    bench.spawn(&repo, &["-d", name])?;
    let script = timed("mkdir -p out && for f in src/*.c; do cc -O1 -c -o out/$(basename $f).o $f; done");
    let [ours, host] = take(interleave(
        10,
        &mut [
            Box::new(|| {
                printed(&mut bench.env.sandbox_command(repo.dir(), &["exec", name, "--", "sh", "-c", &script]))
            }),
            Box::new(|| printed(&mut repo.sh_command(&script))),
        ],
    )?)?;
    bench.run(&repo, &["drop", "--force", name])?;
    Ok(vec![Row::against("compiling 20 C files inside (10 pairs)", ours, "on the host", host, 1.05)])
}

/// Sandboxes in the background, dropped at the end whatever happens.
struct Herd<'b> {
    bench: &'b Bench,
    repo: Repo<'b>,
}

impl<'b> Herd<'b> {
    fn new(bench: &'b Bench) -> Result<Self, String> {
        Ok(Self { repo: bench.small()?, bench })
    }

    fn add(&self, from: usize, to: usize) -> Result<(), String> {
        for n in from..to {
            self.bench.spawn(&self.repo, &["-d", &format!("herd{n}")])?;
        }
        Ok(())
    }
}

impl Drop for Herd<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.bench.run(&self.repo, &["drop", "--all", "--force"]) {
            eprintln!("{error}");
        }
    }
}

fn list(bench: &Bench) -> Rows {
    let herd = Herd::new(bench)?;
    herd.add(0, 100)?;
    let [ours] = take(bench.rounds(&mut [Box::new(|| bench.run(&herd.repo, &["list"]))])?)?;
    Ok(vec![Row::alone("`list` of 100 live sandboxes", ours, Goal::Absolute(0.1), Unit::Time)])
}

fn burst(bench: &Bench) -> Rows {
    let herd = Herd::new(bench)?;
    let start = Instant::now();
    let outcomes: Vec<Result<Duration, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..100)
            .map(|n| {
                let mut command =
                    bench.env.sandbox_command(herd.repo.dir(), &["spawn", "--quiet", "-d", &format!("burst{n}")]);
                scope.spawn(move || time(&mut command))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".to_owned()))).collect()
    });
    let whole = start.elapsed();
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    if let Some(first) = failed.first() {
        return Err(format!("{} of 100 failed, the first: {first}", failed.len()));
    }
    let each = Sample::new(outcomes.into_iter().flatten().map(|time| time.as_secs_f64()).collect());
    Ok(vec![
        Row::alone("100 × `spawn -d` at once", Sample::new(vec![whole.as_secs_f64()]), Goal::Absolute(3.0), Unit::Time),
        Row::alone("each of them", each, Goal::None, Unit::Time),
    ])
}

fn memory(bench: &Bench) -> Rows {
    const MANY: usize = 200;
    /// Who has had nothing to do for so long is idle.
    const IDLE: Duration = Duration::from_secs(1);
    let herd = Herd::new(bench)?;
    let before = available();
    herd.add(0, 1)?;
    let pair = |skip: &[u32]| -> Result<(f64, Vec<u32>), String> {
        std::thread::sleep(IDLE);
        let pids: Vec<u32> = bench.env.live_processes().into_iter().map(|(_, pid)| pid).collect();
        let new: Vec<u32> = pids.iter().copied().filter(|pid| !skip.contains(pid)).collect();
        let sizes: Result<Vec<f64>, String> = new.iter().map(|pid| pss(*pid)).collect();
        Ok((sizes?.iter().sum(), pids))
    };
    let (first, _) = pair(&[])?;
    let sandboxes = bench.env.state().join("sandboxes");
    let own = fs::read_dir(&sandboxes).ok().and_then(|mut dirs| dirs.next()?.ok()).map(|dir| disk_usage(&dir.path()));
    herd.add(1, MANY - 1)?;
    let (_, others) = pair(&[])?;
    herd.add(MANY - 1, MANY)?;
    let (last, _) = pair(&others)?;
    let all = (before - available()) / MANY as f64;
    let row = |what: &str, value: f64, limit: f64| {
        Row::alone(what, Sample::new(vec![value]), Goal::Absolute(limit), Unit::Size)
    };
    const MIB: f64 = 1024.0 * 1024.0;
    let mut rows = vec![
        row("PSS of supervisor and agent, the 1st idle sandbox", first, 3.0 * MIB),
        row("PSS of supervisor and agent, the 200th", last, 3.0 * MIB),
        row("memory of the machine per idle sandbox, at 200", all, 6.0 * MIB),
    ];
    if let Some(own) = own {
        rows.push(row("disk of one idle sandbox beyond shared layers", own as f64, 200.0 * 1024.0));
    }
    Ok(rows)
}

/// The first capture of a tree into an empty store, against copying it in each of these ways; all
/// cold, all synced.
fn captures(bench: &Bench, env: &TestEnv, repo: &Repo, ways: &[&str]) -> Result<Vec<Sample>, String> {
    let target = env.root().join("copy");
    let ours = || {
        let _ = fs::remove_dir_all(env.state());
        cold();
        let start = Instant::now();
        time(&mut env.sandbox_command(repo.dir(), &["spawn", "--quiet", "--", "true"]))?;
        rustix::fs::sync();
        Ok(start.elapsed())
    };
    let mut contenders: Vec<Contender> = vec![Box::new(ours)];
    for way in ways {
        let target = &target;
        contenders.push(Box::new(move || {
            cold();
            let start = Instant::now();
            time(Command::new("cp").args(["-a", way]).arg(repo.dir()).arg(target))?;
            rustix::fs::sync();
            let time = start.elapsed();
            let _ = fs::remove_dir_all(target);
            Ok(time)
        }));
    }
    // Each is as cold as the first: none is run only to warm up.
    rounds(bench.runs.min(3), 0, &mut contenders)
}

fn first_capture(bench: &Bench) -> Rows {
    let repo = bench.large()?;
    let [ours, copy] = take(captures(bench, &bench.env, &repo, &["--reflink=never"])?)?;
    Ok(vec![Row::against("first capture of the large tree, cold, synced", ours, "`cp -a`, the same", copy, 0.7)])
}

fn reflink(bench: &Bench, kind: &str) -> Rows {
    let source = bench.large()?;
    let mount = LoopMount::new(bench.root(), kind, 12)?;
    let env = TestEnv::below(&mount.at, bench.env.git_used().clone(), bench.product.clone());
    let repo = env.repo_at("large");
    time(Command::new("cp").args(["-a", "--reflink=never"]).arg(source.dir()).arg(repo.dir()))?;
    let samples = captures(bench, &env, &repo, &["--reflink=never", "--reflink=always"])?;
    let [ours, copy, cloned] = take(samples)?;
    let what = format!("first capture of the large tree on {kind}, with reflinks");
    let rows = vec![
        Row::against(&what, ours.clone(), "`cp -a --reflink=never`, the same", copy, 0.5),
        Row { goal: Goal::None, ..Row::against(&what, ours, "`cp -a --reflink=always`", cloned, 0.0) },
    ];
    drop(env);
    drop(mount);
    Ok(rows)
}
