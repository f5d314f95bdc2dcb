//! Several sandboxes at once: each onto the result of those before, and this working tree changes once.

use super::asked::Asked;
use super::carry::{do_it, tell_resolved};
use super::hooks::Hooks;
use super::known::Known;
use super::place::open_to_merge;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{escape, escape_lines};
use crate::verbs::conflicts::{HERE, Table, in_order, one_repository};
use crate::verbs::list::print_json;
use crate::verbs::{fetch, review, trees};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_git::Oid;
use sandbox_integrate::{
    Commit, Conflicts, How, Identity, Landed, LeftOut, MergeError, MergePlan, MergeRequest, Pair, Repo, SeveralPlan,
    What, best_order,
};
use serde::Serialize;

/// Schema version 1.
#[derive(Serialize)]
struct Several<'a> {
    version: u32,
    plan: Option<&'a MergePlan>,
    merged: &'a [Landed],
    left_out: Vec<Left<'a>>,
}

#[derive(Serialize)]
struct Left<'a> {
    name: &'a str,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    conflicts: Option<&'a Conflicts>,
    here: &'a [Commit],
    there: &'a [Commit],
}

/// How often it begins again because one of all was dropped meanwhile.
const TRIES: usize = 5;

/// What is merged, in its order, and what is known of it.
pub struct Gathered {
    /// The sandboxes; at least one.
    pub sandboxes: Vec<Sandbox>,
    /// What each knew, as far as it has commits.
    pub known: Vec<Option<Known>>,
    /// Where they go.
    pub repo: Repo,
    /// Who makes the commits.
    pub identity: Identity,
}

impl Gathered {
    /// The first of them.
    pub fn first(&self) -> &Sandbox {
        &self.sandboxes[0]
    }

    /// Plans them in the order in which most of them merge, which is told. As they were named, if all merge like that.
    pub fn plan(
        &mut self,
        context: &Context,
        store: &Store,
        args: &cli::Merge,
        how: How,
        asked: &Asked,
    ) -> Result<SeveralPlan, CliError> {
        let found = self.planned(args, how, asked)?;
        // All of them in any order are as many as there can be: only where one does not fit is there something to find.
        if args.in_order || how == How::FastForwardOnly || found.left_out.is_empty() {
            return Ok(found);
        }
        let order = order(context, store, &self.sandboxes)?;
        if order.is_sorted() {
            return Ok(found);
        }
        self.sandboxes = order.iter().map(|n| self.sandboxes[*n].clone()).collect();
        let mut known = std::mem::take(&mut self.known);
        self.known = order.iter().map(|n| known[*n].take()).collect();
        let names: Vec<&str> = self.sandboxes.iter().map(Sandbox::name).collect();
        eprintln!("in this order, so that most of them merge: {}", names.join(", "));
        self.planned(args, how, asked)
    }

    fn planned(&self, args: &cli::Merge, how: How, asked: &Asked) -> Result<SeveralPlan, CliError> {
        let (known, message) = (self.known.iter().flatten(), args.message.as_deref());
        let requests: Vec<MergeRequest<'_>> =
            known.map(|known| known.request(how, message, asked, &self.identity)).collect();
        Ok(sandbox_integrate::plan_several(&self.repo, &requests, args.octopus)?)
    }
}

/// Brings home what is asked for; `None`, which is told: there is nothing.
pub fn gather(context: &Context, store: &Store, args: &cli::Merge) -> Result<Option<Gathered>, CliError> {
    let mut tries = 0;
    loop {
        let there = if args.all { in_order(context, store, &[], true)? } else { Vec::new() };
        let gathered = gather_once(context, store, args);
        // Nothing is written yet: one of all that goes meanwhile does not keep the others.
        let gone = there.iter().find(|sandbox| !sandbox.dir.record().exists());
        tries += 1;
        match (gathered, gone) {
            (Err(_), Some(gone)) if tries < TRIES => {
                eprintln!("left out '{}': it was dropped meanwhile", gone.name());
            }
            (gathered, _) => return gathered,
        }
    }
}

fn gather_once(context: &Context, store: &Store, args: &cli::Merge) -> Result<Option<Gathered>, CliError> {
    let named = in_order(context, store, &args.names, args.all)?;
    let (alone, named): (Vec<Sandbox>, Vec<Sandbox>) =
        named.into_iter().partition(|sandbox| args.all && args.only.is_none() && trees::merged_together(sandbox));
    for sandbox in &alone {
        let name = sandbox.name();
        eprintln!("left out '{name}': it has several repositories; `git sandbox merge {name}` merges them together");
    }
    let named = named.into_iter().map(|sandbox| trees::one(sandbox, args.only.as_deref()));
    let named = named.collect::<Result<Vec<Sandbox>, CliError>>()?;
    one_repository(&named.iter().collect::<Vec<_>>())?;
    for sandbox in &named {
        fetch::bring(context, store, sandbox)?;
    }
    let mut sandboxes = Vec::new();
    for sandbox in named {
        let Some(tip) = work::tip(context.git()?, store, &sandbox)? else { continue };
        let base = sandbox.snapshot(store)?.git.base.as_deref().and_then(Oid::parse);
        if Some(tip) != base {
            sandboxes.push(sandbox);
        }
    }
    let Some(first) = sandboxes.first() else {
        eprintln!("no sandbox of this repository has commits");
        return Ok(None);
    };
    let (repo, clean, identity) = open_to_merge(context, store, first)?;
    let known = sandboxes.iter().map(|sandbox| Known::of(context, store, sandbox, !clean));
    let known = known.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Gathered { sandboxes, known, repo, identity }))
}

/// Several at once: each onto the result of those before, and this working tree changes once.
pub fn run(context: &Context, store: &Store, args: &cli::Merge, how: How, asked: &Asked) -> Outcome {
    let Some(mut gathered) = gather(context, store, args)? else { return Ok(1) };
    if !args.with_hooks {
        gathered.repo.keep_talking();
    }
    let mut found = gathered.plan(context, store, args, how, asked)?;
    let Gathered { sandboxes, repo, .. } = &gathered;
    let in_vain = !found.left_out.is_empty() && (args.atomic || args.octopus);
    let mut agreed = Ok(true);
    if let Some(plan) = &mut found.plan {
        review::tell(context, &mut plan.warnings)?;
        tell_resolved(plan);
        if !args.dry_run && !in_vain {
            agreed = review::agreed(context, &plan.warnings, ("merge", &plan.name), args.yes);
            if matches!(agreed, Ok(true)) {
                asked.finish(context, repo, plan)?;
            }
        }
    }
    if args.json {
        let left = found.left_out.iter().map(|left| Left {
            name: &left.name,
            error: left.error.to_string(),
            conflicts: match &left.error {
                MergeError::Conflicts { conflicts, .. } => Some(conflicts),
                _ => None,
            },
            here: &left.sides.0,
            there: &left.sides.1,
        });
        let (plan, left_out) = (found.plan.as_ref(), left.collect());
        print_json(&Several { version: 1, plan, merged: &found.merged, left_out })?;
    } else if let Some(plan) = found.plan.as_ref().filter(|_| args.dry_run) {
        print!("{}", escape_lines(&plan.describe()));
    }
    for landed in found.merged.iter().filter(|landed| landed.what == What::UpToDate && !args.all) {
        eprintln!("nothing to merge from '{}'", landed.name);
    }
    for left in &found.left_out {
        tell_left_out(left);
    }
    if in_vain {
        let names: Vec<String> = found.left_out.iter().map(|left| format!("'{}'", left.name)).collect();
        let flag = if args.octopus { "--octopus" } else { "--atomic" };
        return Err(CliError::new(format!("cannot merge all of them: {} would be left out", names.join(", ")))
            .hint(format!("nothing was written; without `{flag}` the others are merged"))
            .status(1));
    }
    let Some(plan) = found.plan else {
        if found.left_out.is_empty() {
            eprintln!("nothing to merge");
        }
        return Ok(1);
    };
    if !args.dry_run {
        if !agreed? {
            return Err(review::declined());
        }
        let hooks = if args.with_hooks { Some(Hooks::keep(context, store, repo)?) } else { None };
        do_it(context, store, &sandboxes.iter().collect::<Vec<_>>(), repo, &plan)?;
        hooks.iter().for_each(|hooks| hooks.after(&plan));
    }
    Ok((!found.left_out.is_empty()).into())
}

/// The order in which most of them merge, by their numbers.
fn order(context: &Context, store: &Store, sandboxes: &[Sandbox]) -> Result<Vec<usize>, CliError> {
    let count = sandboxes.len();
    let Some(table) = Table::read(context, store, sandboxes, false)? else { return Ok((0..count).collect()) };
    let at = |name: &str| table.tips.iter().position(|tip| tip.name == name);
    let collide = |a: Option<usize>, b: Option<usize>| {
        a.zip(b).is_some_and(|(a, b)| matches!(table.pair(a, b), Pair::Conflict { .. }))
    };
    let numbers: Vec<Option<usize>> = sandboxes.iter().map(|sandbox| at(sandbox.name())).collect();
    Ok(best_order(count, |a, b| collide(numbers[a], numbers[b]), |n| collide(at(HERE), numbers[n])))
}

/// One that does not fit: why, and which commits are against each other.
pub fn tell_left_out(left: &LeftOut) {
    let error = CliError::chain(&left.error);
    eprintln!("left out '{}': {}", left.name, error.message);
    let causes = match &left.error {
        MergeError::Conflicts { conflicts, .. } => conflicts.to_string().lines().map(str::to_owned).collect(),
        _ => error.causes,
    };
    for cause in causes {
        eprintln!("  {cause}");
    }
    for (side, commits) in [("here ", &left.sides.0), ("there", &left.sides.1)] {
        for commit in commits {
            eprintln!("  {side} {} {}", commit.id.short(), escape(&commit.subject));
        }
    }
}
