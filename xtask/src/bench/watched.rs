//! What a spawn takes with a watcher, in trees of each size: it must not grow with the tree.

use super::growth::{at_once, tree};
use super::measure::Contender;
use super::rows::{Bench, Rows};
use super::table::{Goal, Row, Unit};
use sandbox_testkit::Repo;
use std::time::Duration;

/// At 100,000 files at most this many times as long as at the least.
const GROWTH: f64 = 1.3;

/// Ends the watcher of a tree, whatever happens.
pub struct Watching<'e>(Repo<'e>);

impl<'e> Watching<'e> {
    /// Starts one and waits until it is of use.
    pub fn start(bench: &Bench, repo: Repo<'e>) -> Result<Self, String> {
        bench.run(&repo, &["watch"])?;
        let watching = Self(repo);
        // The first has nothing to ask with; the second may still find what was written just before.
        for _ in 0..2 {
            bench.spawn(&watching.0, &["--rm", "--", "true"])?;
        }
        Ok(watching)
    }

    /// How often it could not answer.
    fn doubts(&self) -> String {
        let status = self.0.sandbox(&["watch", "--status", "--json"]).stdout;
        status.split(',').find(|field| field.contains("\"doubts\"")).unwrap_or("no answer").to_owned()
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.sandbox(&["watch", "--stop"]);
    }
}

/// Trees of some sizes, the least first; each takes its turn.
pub fn of_sizes(bench: &Bench, sizes: &[usize]) -> Rows {
    let mut trees = Vec::new();
    for files in sizes {
        trees.push(Watching::start(bench, tree(bench, *files)?)?);
    }
    let before: Vec<String> = trees.iter().map(Watching::doubts).collect();
    let spawn = |watching: &Watching, round: Option<usize>| {
        if let Some(round) = round {
            watching.0.write("node_modules/d0/e0/f0/file0.txt", format!("changed {round}\n"));
            // As after an edit: not in the same tick of the clock.
            std::thread::sleep(Duration::from_millis(30));
        }
        bench.spawn(&watching.0, &["--rm", "--", "true"])
    };
    let mut contenders: Vec<Contender> = Vec::new();
    for watching in &trees {
        contenders.push(Box::new(|| spawn(watching, None)));
        let mut round = 0;
        contenders.push(Box::new(move || {
            round += 1;
            spawn(watching, Some(round))
        }));
    }
    let samples = bench.rounds(&mut contenders)?;
    drop(contenders);
    if before != trees.iter().map(Watching::doubts).collect::<Vec<_>>() {
        return Err("a watcher could not answer: whole trees were looked at".to_owned());
    }
    let mut rows = Vec::new();
    if let (Some(watching), Some(files)) = (trees.last(), sizes.last()) {
        rows.push(at_once(bench, &watching.0, &format!("with the watcher, {files} files"))?);
    }
    for (n, files) in sizes.iter().enumerate() {
        for (at, what) in ["unchanged", "after 1 changed file"].into_iter().enumerate() {
            let what = format!("`spawn -- true` with the watcher, {files} files, {what}");
            let (ours, least) = (samples[2 * n + at].clone(), samples[at].clone());
            rows.push(match n {
                0 => Row::alone(what, ours, Goal::None, Unit::Time),
                _ => Row::against(what, ours, format!("the same, {} files", sizes[0]), least, GROWTH),
            });
        }
    }
    Ok(rows)
}
