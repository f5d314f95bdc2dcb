//! How cost grows with the tree and with what changed in it, and the memory of a capture.

use super::machine::{cold, peak};
use super::measure::{Contender, Sample, time};
use super::rows::{Bench, Rows};
use super::table::{Goal, Row, Unit};
use super::trees;
use sandbox_testkit::{Repo, is_root};
use std::cell::Cell;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// Tracked files of each tree; the rest is ignored.
const TRACKED: usize = 400;

/// Bytes of memory that a capture may take for each file.
const MEMORY: f64 = 100.0;

/// Files of the trees.
const SIZES: &[usize] = &[500, 20_000, 100_000];

/// Trees of 500, 20,000 and 100,000 files, or up to so many as was asked for.
pub fn growth(bench: &Bench) -> Rows {
    let mut rows = Vec::new();
    for files in bench.up_to(SIZES) {
        rows.extend(of_size(bench, files)?);
    }
    Ok(rows)
}

/// The same trees, with a watcher each.
pub fn watched(bench: &Bench) -> Rows {
    super::watched::of_sizes(bench, &bench.up_to(SIZES))
}

/// A million files: some minutes, and some GB of disk.
pub fn million(bench: &Bench) -> Rows {
    if !bench.asked_for("growth-million") {
        return Err("takes long: `--rows growth-million` measures it".to_owned());
    }
    // What the memory of a large one is compared with.
    let least = tree(bench, SIZES[0])?;
    let mut rows = memory(bench, &least, SIZES[0])?;
    rows.extend(of_size(bench, 1_000_000)?);
    rows.extend(super::watched::of_sizes(bench, &[SIZES[0], 1_000_000])?);
    Ok(rows)
}

/// A tree of so many files, made when it is first asked for.
pub fn tree<'b>(bench: &'b Bench, files: usize) -> Result<Repo<'b>, String> {
    let name = format!("growth-{files}");
    let repo = bench.env().repo_at(&name);
    if repo.has(".git") {
        return Ok(repo);
    }
    eprintln!("  making a repository of {files} files");
    trees::make(bench.env(), &name, TRACKED.min(files), files.saturating_sub(TRACKED))
}

fn of_size(bench: &Bench, files: usize) -> Rows {
    let repo = tree(bench, files)?;
    let mut rows = memory(bench, &repo, files)?;
    let floor = bench.floor()?;
    let round = Cell::new(0);
    let after = |changed: usize| {
        round.set(round.get() + 1);
        for n in 0..changed.min(files - TRACKED) {
            let (dir, file) = (n / 40, n % 40);
            let path = format!("node_modules/d{}/e{}/f{}/file{file}.txt", dir / 100, dir / 10 % 10, dir % 10);
            repo.write(&path, format!("changed {}\n", round.get()));
        }
        // As after an edit: not in the same tick of the clock.
        std::thread::sleep(Duration::from_millis(30));
        bench.spawn(&repo, &["--rm", "--", "true"])
    };
    let chilled = || {
        cold();
        bench.spawn(&repo, &["--rm", "--", "true"])
    };
    let mut contenders: Vec<Contender> = vec![
        Box::new(|| after(0)),
        Box::new(|| after(1)),
        Box::new(|| after(1000)),
        Box::new(|| time(&mut floor.command())),
    ];
    if is_root() {
        contenders.push(Box::new(chilled));
    }
    let mut samples = bench.rounds(&mut contenders)?.into_iter();
    drop(contenders);
    let mut next = || samples.next().ok_or("a contender is missing");
    let (same, one, thousand, floor) = (next()?, next()?, next()?, next()?);
    let row = |what: String, ours: Sample, peer: &str, other: Sample| Row {
        goal: Goal::None,
        ..Row::against(what, ours, peer, other, 0.0)
    };
    let unchanged = "the same, unchanged";
    rows.push(row(format!("`spawn -- true`, {files} files, unchanged"), same.clone(), "the floor, in C", floor));
    rows.push(row(format!("the same, {files} files, after 1 changed file"), one, unchanged, same.clone()));
    rows.push(row(format!("the same, {files} files, after 1,000 changed files"), thousand, unchanged, same.clone()));
    if let Ok(cold) = next() {
        rows.push(row(format!("the same, {files} files, with a cold cache"), cold, unchanged, same));
    }
    rows.push(at_once(bench, &repo, &format!("{files} files"))?);
    bench.run(&repo, &["gc"])?;
    Ok(rows)
}

/// Peak memory of the first capture, and of one that finds one changed file, less that of the program; of larger
/// trees also less that of the least one: what is left grows with the tree.
fn memory(bench: &Bench, repo: &Repo, files: usize) -> Rows {
    let program = peak(&mut bench.env().sandbox_command(repo.dir(), &["list"]))?;
    let warm = || peak(&mut bench.env().sandbox_command(repo.dir(), &["warm", "--quiet"])).map(|peak| peak - program);
    let first = warm()?;
    let same = warm()?;
    repo.write("node_modules/d0/e0/f0/file0.txt", "changed before it was measured\n");
    let changed = warm()?;
    let taken = [first, same, changed];
    let least = SIZES[0];
    if files <= least {
        bench.least_memory(taken);
    }
    let before = bench.memory_of_least().filter(|_| files > least);
    let names = ["the first capture", "a capture, unchanged", "a capture after 1 changed file"];
    let row = |n: usize| {
        let sample = |bytes: f64| Sample::new(vec![bytes]);
        match before {
            Some(before) => {
                let what = format!("memory of {}, {files} files, beyond that of {least}", names[n]);
                let goal = Goal::Absolute(MEMORY * (files - least) as f64);
                Row::alone(what, sample(taken[n] - before[n]), goal, Unit::Size)
            }
            None => {
                let what = format!("memory of {}, {files} files", names[n]);
                Row::alone(what, sample(taken[n]), Goal::None, Unit::Size)
            }
        }
    };
    Ok((0..names.len()).map(row).collect())
}

/// A hundred spawns at once; the sandboxes go afterwards.
pub fn at_once(bench: &Bench, repo: &Repo, what: &str) -> Result<Row, String> {
    let start = Instant::now();
    let outcomes: Vec<Result<Duration, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..100)
            .map(|_| {
                let args = ["spawn", "--quiet", "--rm", "--", "true"];
                let mut command = bench.env().sandbox_command(repo.dir(), &args);
                scope.spawn(move || time(&mut command))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".to_owned()))).collect()
    });
    let whole = start.elapsed();
    outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    let sample = Sample::new(vec![whole.as_secs_f64()]);
    Ok(Row::alone(format!("100 × `spawn -- true` at once, {what}"), sample, Goal::None, Unit::Time))
}

/// The C program that does what is least: namespaces, an overlay, a pivot, an exec.
pub struct Floor {
    program: std::path::PathBuf,
    dirs: [std::path::PathBuf; 3],
}

impl Floor {
    /// Takes a program that was built, and makes its directories.
    pub fn new(bench: &Bench, program: std::path::PathBuf) -> Result<Self, String> {
        let dirs = ["lower", "upper", "work"].map(|name| bench.root().join("overlay").join(name));
        for dir in &dirs {
            fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        }
        Ok(Self { program, dirs })
    }

    /// One run.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.dirs);
        command
    }
}
