//! Rows of what brings results together: the matrix of collisions, a merge of ten.

use super::measure::{interleave, time};
use super::rows::{Bench, Rows, take};
use super::table::{Goal, Row, Unit};
use super::trees;
use sandbox_testkit::Repo;
use std::fs;
use std::path::{Path, PathBuf};

/// Makes sandboxes of one commit each, all of them ended: two files of their own, and the last line of one that
/// `shared` of them have in common.
fn commits<'b>(bench: &Bench, repo: &Repo<'b>, names: &[String], shared: usize) -> Result<(), String> {
    for (n, name) in names.iter().enumerate() {
        let common = if n < shared { format!("echo {n} >>src/d0/e0/f0/file0.txt") } else { "true".to_owned() };
        let script = format!(
            "echo {n} >>src/d0/e0/f1/file{}.txt && echo {n} >made-{n} && {common} && git add -A && git commit -qm {name}",
            n % 40
        );
        bench.spawn(repo, &[name, "--", "sh", "-c", &script])?;
    }
    Ok(())
}

/// Files of this name below a directory.
fn named(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                _ if entry.file_name() == name => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// The matrix of 30 sandboxes over 20,000 files: from nothing, and once it is known.
pub fn conflicts(bench: &Bench) -> Rows {
    const SANDBOXES: usize = 30;
    let repo = trees::make(bench.env(), "matrix", 20_000, 0)?;
    let names: Vec<String> = (0..SANDBOXES).map(|n| format!("m{n}")).collect();
    commits(bench, &repo, &names, SANDBOXES / 2)?;
    // Its status is 1 when anything collides.
    let matrix = || time(&mut repo.sh_command("git sandbox conflicts --json >/dev/null; test $? -le 1"));
    matrix()?;
    let store = bench.root().to_owned();
    let kept = named(&store, "conflicts.json");
    let [cached, cold] = take(interleave(
        bench.few(7),
        &mut [
            Box::new(matrix),
            Box::new(|| {
                kept.iter().for_each(|file| drop(fs::remove_file(file)));
                matrix()
            }),
        ],
    )?)?;
    bench.run(&repo, &["drop", "--all", "--force"])?;
    if kept.is_empty() {
        return Err("no file with what is known of collisions".to_owned());
    }
    Ok(vec![
        Row::alone(
            format!("`conflicts` of {SANDBOXES} sandboxes over 20,000 files, cold"),
            cold,
            Goal::Absolute(1.5),
            Unit::Time,
        ),
        Row::alone("the same, cached", cached, Goal::Absolute(0.05), Unit::Time),
    ])
}

/// Ten sandboxes into a branch that has gone on, against ten `git merge`.
pub fn merge_ten(bench: &Bench) -> Rows {
    const SANDBOXES: usize = 10;
    let repo = trees::make(bench.env(), "ten", 500, 0)?;
    let names: Vec<String> = (0..SANDBOXES).map(|n| format!("t{n}")).collect();
    commits(bench, &repo, &names, 0)?;
    repo.git(&["commit", "-q", "--allow-empty", "-m", "gone on"]).expect(0);
    let start = repo.id("HEAD");
    let again = |took| {
        repo.git(&["reset", "-q", "--hard", &start]).expect(0);
        took
    };
    let git =
        names.iter().map(|name| format!("git merge -q --no-edit sandbox/{name}")).collect::<Vec<_>>().join(" && ");
    let [ours, git] = take(interleave(
        bench.few(9),
        &mut [
            Box::new(|| again(time(&mut bench.env().sandbox_command(repo.dir(), &["merge", "--all", "--yes"])))),
            Box::new(|| again(time(&mut repo.sh_command(&git)))),
        ],
    )?)?;
    bench.run(&repo, &["drop", "--all", "--force"])?;
    Ok(vec![Row::against("`merge --all` of ten sandboxes", ours, "ten `git merge`", git, 0.5)])
}
