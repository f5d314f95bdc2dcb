//! `pick`: commits of a sandbox one by one on top of the branch here. All of them, or none.

use super::list::print_json;
use super::merge::{Asked, do_it, identity, open, tell_resolved};
use super::review;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{escape, escape_lines};
use sandbox_core::work;
use sandbox_git::Oid;
use sandbox_integrate::{Commit, How, MergeError, MergeRequest, Repo, commits};

pub fn run(context: &Context, args: &cli::Pick) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    super::fetch::bring(context, &store, &sandbox)?;
    super::trees::tell_others(context, &store, &sandbox, &format!("pick {}", sandbox.name()))?;
    let name = sandbox.name();
    let base = sandbox.snapshot(&store)?.git.base.as_deref().and_then(Oid::parse);
    let tip = work::tip(context.git()?, &store, &sandbox)?.filter(|tip| Some(*tip) != base);
    let Some(tip) = tip else {
        eprintln!("no commits in '{name}'{}", super::trees::of_which(&sandbox));
        return Ok(1);
    };
    let repo = open(context, &store, &sandbox)?;
    let made = Made { name, base, list: commits(&repo, base, tip, None)?, tip };
    let chosen = made.chosen(&repo, &args.revs)?;
    let identity = identity(context, &repo)?;
    let asked = Asked::pick(args)?;
    let request = MergeRequest {
        name,
        base,
        tip,
        captured: None,
        captured_index: None,
        left_inside: None,
        how: How::FastForward,
        choices: &asked.choices,
        message: None,
        identity: &identity,
    };
    let plan = sandbox_integrate::plan_pick(&repo, &request, &chosen, args.note);
    let Some(mut plan) = plan.map_err(|error| not_picked(name, error))? else {
        eprintln!("nothing to pick from '{name}': it is all here");
        return Ok(1);
    };
    review::tell(context, &mut plan.warnings)?;
    tell_resolved(&plan);
    let agreed = match args.dry_run {
        true => Ok(false),
        false => review::agreed(context, &plan.warnings, ("pick", name), args.yes),
    };
    if matches!(agreed, Ok(true)) {
        asked.finish(context, &repo, &mut plan)?;
    }
    if args.json {
        print_json(&plan)?;
    } else if args.dry_run {
        print!("{}", escape_lines(&plan.describe()));
    }
    if !args.dry_run {
        if !agreed? {
            return Err(review::declined());
        }
        do_it(context, &store, &[&sandbox], &repo, &plan)?;
    }
    Ok(0)
}

/// The same refusal as of a merge, with the next step of this one.
fn not_picked(name: &str, error: MergeError) -> CliError {
    let uncommitted = matches!(error, MergeError::Conflicts { .. });
    let failure = CliError::from(error);
    if !uncommitted {
        return failure;
    }
    let hint = "nothing was written; commit or stash the files named and pick again".to_owned();
    CliError { message: format!("cannot pick from '{name}'"), hints: vec![hint], ..failure }
}

/// The commits that a sandbox made, the newest first.
struct Made<'a> {
    name: &'a str,
    base: Option<Oid>,
    tip: Oid,
    list: Vec<Commit>,
}

impl Made<'_> {
    /// The commits that are meant, in the order in which they are put on top.
    fn chosen(&self, repo: &Repo, revs: &[String]) -> Result<Vec<Oid>, CliError> {
        let mut chosen = Vec::new();
        if revs.is_empty() {
            chosen.extend(self.list.iter().rev().map(|commit| commit.id));
        }
        for rev in revs {
            match rev.split_once("..") {
                Some((from, to)) => {
                    let from = if from.is_empty() { self.base } else { Some(self.id(from, true)?) };
                    let to = self.id(if to.is_empty() { "HEAD" } else { to }, false)?;
                    let range = commits(repo, from, to, None)?;
                    chosen.extend(range.iter().rev().map(|commit| commit.id).filter(|id| self.find(*id).is_some()));
                }
                None => chosen.push(self.id(rev, false)?),
            }
        }
        if let Some(merge) = chosen.iter().filter_map(|id| self.find(*id)).find(|commit| commit.parents.len() > 1) {
            let text = format!("'{}' is a merge commit, and cannot be picked", merge.id.short());
            return Err(CliError::new(text).hint(format!(
                "`git sandbox merge {0}` takes all of '{0}'; `git sandbox log {0}` lists the commits to choose from",
                self.name
            )));
        }
        Ok(chosen)
    }

    fn find(&self, id: Oid) -> Option<&Commit> {
        self.list.iter().find(|commit| commit.id == id)
    }

    /// Finds a commit by a name: `HEAD` or an id's beginning, and any number of `~N` and `^`. Only
    /// `as_start` of a range may be the commit that the sandbox started from.
    fn id(&self, rev: &str, as_start: bool) -> Result<Oid, CliError> {
        let unknown = || {
            CliError::new(format!("'{}' is not a commit that '{}' made", escape(rev), self.name))
                .hint(format!("`git sandbox log {}` lists them", self.name))
                .status(1)
        };
        let (word, mut steps) = rev.split_at(rev.find(['~', '^']).unwrap_or(rev.len()));
        let hex = word.len() >= 4 && word.bytes().all(|b| b.is_ascii_hexdigit());
        let mut at = match word {
            "HEAD" | "@" => self.tip,
            _ if hex => {
                let ids = self.list.iter().map(|commit| commit.id).chain(self.base.filter(|_| as_start));
                let mut found = ids.filter(|id| id.to_string().starts_with(&word.to_ascii_lowercase()));
                match (found.next(), found.next()) {
                    (Some(id), None) => id,
                    _ => return Err(unknown()),
                }
            }
            _ => return Err(unknown()),
        };
        while let Some(step) = steps.chars().next() {
            let digits = steps[1..].find(|c: char| !c.is_ascii_digit()).unwrap_or(steps.len() - 1);
            let count = match (step, &steps[1..=digits]) {
                (_, "") | ('^', "1") => 1,
                ('~', digits) => digits.parse().map_err(|_| unknown())?,
                _ => return Err(unknown()),
            };
            for _ in 0..count {
                at = self.find(at).and_then(|commit| commit.parents.first().copied()).ok_or_else(unknown)?;
            }
            steps = &steps[1 + digits..];
        }
        (self.find(at).is_some() || as_start && Some(at) == self.base).then_some(at).ok_or_else(unknown)
    }
}
