//! The doing part of a merge queue: each candidate becomes a commit, its tree is tested in a fresh sandbox, and what
//! is known of a tree is not tested again.

use crate::check::command::Wanted;
use crate::check::fresh::Fresh;
use crate::check::kept;
use crate::check::runner::{Finished, Runner};
use crate::check::task::{Outcome as Ended, Task};
use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use sandbox_core::store::Store;
use sandbox_git::Oid;
use sandbox_integrate::queue::{Candidate, Checker};
use sandbox_integrate::{Landed, LeftOut, MergePlan, MergeRequest, Repo, plan_several, result_pack, result_tree};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// What is known of trees: how the check ended, and what it printed.
pub type Trees = HashMap<Oid, (Ended, Vec<u8>)>;

/// One line of `--json`. Schema version 1.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Told<'a> {
    /// A check begins.
    Started { version: u32, sandboxes: Vec<&'a str>, tree: Oid },
    /// A check has ended.
    Finished {
        version: u32,
        sandboxes: Vec<&'a str>,
        tree: Oid,
        passed: bool,
        status: Option<i32>,
        timed_out: bool,
        seconds: f64,
    },
    /// The last line.
    Result {
        version: u32,
        landed: bool,
        command: &'a str,
        plan: Option<&'a MergePlan>,
        merged: &'a [Landed],
        left_out: Vec<Left<'a>>,
        broken: &'a [Broken],
    },
}

#[derive(Serialize)]
pub struct Left<'a> {
    name: &'a str,
    error: String,
}

impl<'a> Told<'a> {
    /// The last line.
    pub fn result(
        landed: bool,
        command: &'a str,
        plan: Option<&'a MergePlan>,
        merged: &'a [Landed],
        left_out: &'a [LeftOut],
        broken: &'a [Broken],
    ) -> Self {
        let left = |left: &'a LeftOut| Left { name: &left.name, error: left.error.to_string() };
        let left_out = left_out.iter().map(left).collect();
        Self::Result { version: 1, landed, command, plan, merged, left_out, broken }
    }
}

/// Prints a line of `--json`.
pub fn say(told: &Told<'_>) {
    if let Ok(line) = serde_json::to_string(told) {
        println!("{line}");
    }
}

/// One that does not pass.
#[derive(Clone, Serialize)]
pub struct Broken {
    /// The sandbox.
    pub name: String,
    /// The command's status with it.
    pub status: Option<i32>,
    /// It took too long.
    pub timed_out: bool,
    /// Where its output is kept.
    pub log: PathBuf,
    /// How it ended, in words.
    #[serde(skip)]
    pub words: String,
    /// The end of its output.
    #[serde(skip)]
    pub output: Vec<u8>,
}

/// A queue under way.
pub struct Queue<'a> {
    pub context: &'a Context,
    pub store: &'a Store,
    pub repo: &'a Repo,
    pub fresh: &'a Fresh<'a>,
    pub wanted: &'a Wanted,
    pub members: &'a [MergeRequest<'a>],
    pub octopus: bool,
    pub json: bool,
    pub runner: Runner<Candidate>,
    /// The tree of each candidate.
    pub candidates: BTreeMap<Candidate, Oid>,
    /// Those whose tree was known already.
    pub ready: Vec<(Candidate, bool)>,
    pub trees: &'a mut Trees,
}

impl Queue<'_> {
    fn names(&self, candidate: &[usize]) -> Vec<&str> {
        candidate.iter().map(|n| self.members[*n].name).collect()
    }

    fn shown(&self, candidate: &[usize]) -> String {
        match candidate {
            [] => "the branch as it is".to_owned(),
            some => self.names(some).iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", "),
        }
    }

    /// The commit that a candidate becomes; `None`: the branch has none yet.
    fn commit(&self, candidate: &[usize]) -> Result<Option<Oid>, CliError> {
        if candidate.is_empty() {
            return Ok(self.repo.head()?.commit);
        }
        let some: Vec<MergeRequest<'_>> = candidate.iter().map(|n| MergeRequest { ..self.members[*n] }).collect();
        let found = plan_several(self.repo, &some, self.octopus && some.len() > 1)?;
        if let Some(left) = found.left_out.into_iter().next() {
            return Err(left.error.into());
        }
        found.plan.map(|plan| Some(plan.head.new)).ok_or_else(|| CliError::new("nothing is left to merge"))
    }

    fn failed(&self, candidate: &Candidate) -> Option<&(Ended, Vec<u8>)> {
        self.trees.get(self.candidates.get(candidate)?).filter(|(ended, _)| !ended.passed())
    }

    /// Who broke it, each with the output of the smallest test that showed it, which is kept.
    pub fn blame(&self, broken: &[usize]) -> Result<Vec<Broken>, CliError> {
        let mut found = Vec::new();
        for n in broken {
            let with = self.candidates.keys().filter(|candidate| candidate.last() == Some(n));
            let shown = with.filter_map(|candidate| Some((candidate.len(), self.failed(candidate)?)));
            let Some((_, (ended, output))) = shown.min_by_key(|(len, _)| *len) else { continue };
            let name = self.members[*n].name.to_owned();
            let log = kept::keep(self.store, &self.fresh.repo_id()?, &name, output)?;
            let (status, timed_out, words) = (ended.status, ended.timed_out, ended.words());
            found.push(Broken { name, status, timed_out, log, words, output: output.clone() });
        }
        Ok(found)
    }
}

impl Checker for Queue<'_> {
    type Error = CliError;

    fn start(&mut self, candidate: &Candidate) -> Result<(), CliError> {
        let commit = self.commit(candidate)?;
        let tree = result_tree(self.repo, commit)?;
        self.candidates.insert(candidate.clone(), tree);
        let known = self.trees.get(&tree).map(|(ended, _)| ended.passed());
        let (Some(commit), None) = (commit, known) else {
            // A branch without a commit has nothing that could fail.
            self.ready.push((candidate.clone(), known.unwrap_or(true)));
            return Ok(());
        };
        if self.json {
            say(&Told::Started { version: 1, sandboxes: self.names(candidate), tree });
        } else {
            eprintln!("checking {} with `{}`", self.shown(candidate), escape(&self.wanted.command));
        }
        let place = self.fresh.make()?;
        let task = Task {
            driver: place.sandbox.record.driver.clone(),
            command: self.wanted.command.clone(),
            cwd: place.sandbox.record.cwd.clone(),
            commit: Some(commit.to_string()),
            seconds: self.wanted.seconds,
        };
        let pack = result_pack(self.repo, commit, self.repo.head()?.commit)?;
        self.runner.start(self.context, self.store, candidate.clone(), place, &task, &pack)
    }

    fn finished(&mut self) -> Result<(Candidate, bool), CliError> {
        if let Some(ready) = self.ready.pop() {
            return Ok(ready);
        }
        let Finished { key, outcome, output } = self.runner.finished()?;
        let (tree, passed) = (self.candidates[&key], outcome.passed());
        if self.json {
            let Ended { status, timed_out, seconds, .. } = outcome;
            say(&Told::Finished { version: 1, sandboxes: self.names(&key), tree, passed, status, timed_out, seconds });
        } else {
            eprintln!("{}: {}", self.shown(&key), outcome.words());
        }
        self.trees.insert(tree, (outcome, output));
        Ok((key, passed))
    }

    fn cancel(&mut self, candidate: &Candidate) {
        self.ready.retain(|(other, _)| other != candidate);
        self.runner.cancel(candidate);
    }
}
