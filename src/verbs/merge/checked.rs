//! `merge --check CMD`: what would land is tested first, in fresh sandboxes; with several sandboxes as a queue
//! ([`sandbox_integrate::queue`]).
//!
//! ```text
//! gathered ─► plan of those that fit ─► queue over them ─┬─► all pass ──► planned again: the same tree? ─► it lands
//!                  ▲                                     │                     │ no: the host has moved
//!                  └──────── without who broke it ◄──────┘                     └─► all of it again, a few times
//! ```
//!
//! What counts is the tree: a result that was tested is tested, whichever commit it gets.

use super::carry::{do_it, tell_resolved};
use super::hooks::Hooks;
use super::place::{host, open};
use super::queue::{Broken, Queue, Told, Trees, say};
use super::several::{Gathered, gather, tell_left_out};
use crate::check::command::{Asked, Wanted, wanted};
use crate::check::fresh::Fresh;
use crate::check::kept;
use crate::check::runner::Runner;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::project::Project;
use crate::signals::Interrupt;
use crate::text::{escape, escape_lines};
use crate::verbs::{review, trees};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_integrate::queue::{self, Known};
use sandbox_integrate::{How, Landed, MergePlan, MergeRequest, What, plan_several, result_tree};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How often all of it is done again because the host has moved meanwhile.
const ROUNDS: usize = 3;

/// The check that a merge of these has to pass; `None`: none.
pub fn check(context: &Context, store: &Store, args: &cli::Merge) -> Result<Option<Wanted>, CliError> {
    let asked = Asked {
        command: args.check.as_deref(),
        none: args.no_check,
        timeout: args.check_timeout.as_deref(),
        jobs: args.jobs,
        dry_run: args.dry_run,
    };
    let first = match args.names.first() {
        Some(name) => Some(context.sandbox(store, name)?),
        None => super::super::stop::chosen(context, store, &[], true)?.into_iter().next(),
    };
    let Some(first) = first else { return Ok(None) };
    let host = match host(context, store, &first) {
        Ok(host) if !args.no_check => host,
        // What is wrong with it is told by the merge itself.
        _ => return Ok(None),
    };
    let Ok(top) = host.worktree() else { return Ok(None) };
    let project = Project::read(top)?;
    wanted(context, store, &first.mount().repo, &project, asked)
}

/// How one round has ended.
enum Round {
    Over(u8),
    /// The host is not what it was when this was computed.
    Moved,
}

/// All that one round has found.
struct Found {
    /// What lands; `None` if nothing is left.
    plan: Option<MergePlan>,
    merged: Vec<Landed>,
    left_out: Vec<sandbox_integrate::LeftOut>,
    broken: Vec<Broken>,
    /// It does not pass without any of them either.
    fails_alone: bool,
}

/// What is said when somebody asked for an end.
pub fn interrupted(asked: &AtomicBool) -> Option<CliError> {
    let text = "interrupted: nothing was merged, and nothing of the checks is left";
    asked.load(Ordering::SeqCst).then(|| CliError::new(text).status(130))
}

/// One merge that is checked.
struct Merging<'a> {
    context: &'a Context,
    store: &'a Store,
    args: &'a cli::Merge,
    /// How the commits shall be that it makes.
    commits: &'a super::Asked,
    wanted: &'a Wanted,
    asked: &'a Arc<AtomicBool>,
}

pub fn run(
    context: &Context,
    store: &Store,
    args: &cli::Merge,
    how: How,
    commits: &super::Asked,
    wanted: &Wanted,
) -> Outcome {
    if let [name] = args.names.as_slice()
        && args.only.is_none()
        && trees::merged_together(&context.sandbox(store, name)?)
    {
        return Err(CliError::usage(format!("'{name}' has several repositories, and a check knows one"))
            .hint("`--only PATH` merges one repository; `--no-check` merges all of them without a check"));
    }
    let asked = Arc::new(AtomicBool::new(false));
    let merging = Merging { context, store, args, commits, wanted, asked: &asked };
    let mut trees = Trees::new();
    for _ in 0..ROUNDS {
        match merging.round(how, &mut trees)? {
            Round::Over(status) => return Ok(status),
            Round::Moved => eprintln!("the branch here has moved meanwhile: what would land is computed again"),
        }
    }
    Err(CliError::new("the branch here moves all the time: nothing was merged")
        .cause(format!("{ROUNDS} times, what was checked was not what would have landed"))
        .hint("merge again when it is at rest"))
}

fn again<'a>(request: &MergeRequest<'a>) -> MergeRequest<'a> {
    MergeRequest { ..*request }
}

impl Merging<'_> {
    fn round(&self, how: How, trees: &mut Trees) -> Result<Round, CliError> {
        let Some(mut gathered) = gather(self.context, self.store, self.args)? else { return Ok(Round::Over(1)) };
        // For the order; what lands is found out below.
        gathered.plan(self.context, self.store, self.args, how, self.commits)?;
        let message = self.args.message.as_deref();
        let known = gathered.known.iter().flatten();
        let requests: Vec<MergeRequest<'_>> =
            known.map(|known| known.request(how, message, self.commits, &gathered.identity)).collect();
        let host = host(self.context, self.store, gathered.first())?;
        let project = Project::read(host.worktree()?)?;
        let fresh = Fresh::of(self.context, self.store, &host, project)?;
        let listening = Interrupt::listen(self.asked);
        let found = self.find(&gathered, &requests, &fresh, trees);
        drop(listening);
        // A terminal's interrupt reaches the git processes too.
        let mut found = found.map_err(|error| interrupted(self.asked).unwrap_or(error))?;
        self.tell(&found);
        let round = self.land(&gathered, &requests, &mut found, trees);
        if self.args.json && !matches!(round, Ok(Round::Moved)) {
            let landed = matches!(round, Ok(Round::Over(_))) && found.plan.is_some() && !self.args.dry_run;
            say(&Told::result(
                landed,
                &self.wanted.command,
                found.plan.as_ref(),
                &found.merged,
                &found.left_out,
                &found.broken,
            ));
        }
        round
    }

    /// Tests until it is known what lands.
    fn find(
        &self,
        gathered: &Gathered,
        requests: &[MergeRequest<'_>],
        fresh: &Fresh<'_>,
        trees: &mut Trees,
    ) -> Result<Found, CliError> {
        let mut broken: Vec<Broken> = Vec::new();
        loop {
            let is_broken = |request: &&MergeRequest<'_>| broken.iter().any(|broken| broken.name == request.name);
            let fitting: Vec<MergeRequest<'_>> =
                requests.iter().filter(|request| !is_broken(request)).map(again).collect();
            let planned = plan_several(&gathered.repo, &fitting, self.args.octopus)?;
            let (plan, merged, left_out) = (planned.plan, planned.merged, planned.left_out);
            let refused = (self.args.atomic || self.args.octopus) && (!left_out.is_empty() || !broken.is_empty());
            if self.args.dry_run || plan.is_none() || refused {
                return Ok(Found { plan, merged, left_out, broken, fails_alone: false });
            }
            let landing = merged.iter().filter(|landed| landed.what != What::UpToDate);
            let of = |landed: &Landed| fitting.iter().find(|request| request.name == landed.name).map(again);
            let members: Vec<MergeRequest<'_>> = landing.filter_map(of).collect();
            let mut queue = Queue {
                context: self.context,
                store: self.store,
                repo: &gathered.repo,
                fresh,
                wanted: self.wanted,
                members: &members,
                octopus: self.args.octopus,
                json: self.args.json,
                runner: Runner::new(self.asked),
                candidates: BTreeMap::new(),
                ready: Vec::new(),
                trees,
            };
            let verdict = queue::run(members.len(), self.wanted.jobs, &mut Known::new(), &mut queue)?;
            let blamed = queue.blame(&verdict.broken)?;
            let over = verdict.fails_alone || blamed.is_empty();
            broken.extend(blamed);
            if over {
                let plan = plan.filter(|_| !verdict.fails_alone);
                return Ok(Found { plan, merged, left_out, broken, fails_alone: verdict.fails_alone });
            }
            // Who collided only with one of those fits now.
        }
    }

    /// Who stays out, and why.
    fn tell(&self, found: &Found) {
        for landed in found.merged.iter().filter(|landed| landed.what == What::UpToDate && !self.args.all) {
            eprintln!("nothing to merge from '{}'", landed.name);
        }
        found.left_out.iter().for_each(tell_left_out);
        for broken in &found.broken {
            let (name, command) = (&broken.name, escape(&self.wanted.command));
            eprintln!("left out '{name}': `{command}` does not pass with it: {}", broken.words);
            kept::show(&broken.output, &broken.log);
        }
    }

    /// Lands what passed, if that still is what would land.
    fn land(
        &self,
        gathered: &Gathered,
        requests: &[MergeRequest<'_>],
        found: &mut Found,
        trees: &Trees,
    ) -> Result<Round, CliError> {
        if found.fails_alone {
            return Err(self.fails_here(gathered, trees)?);
        }
        let left = found.left_out.iter().map(|left| &left.name).chain(found.broken.iter().map(|broken| &broken.name));
        let left: Vec<String> = left.map(|name| format!("'{name}'")).collect();
        if !left.is_empty() && (self.args.atomic || self.args.octopus) {
            found.plan = None;
            let flag = if self.args.octopus { "--octopus" } else { "--atomic" };
            return Err(CliError::new(format!("cannot merge all of them: {} would be left out", left.join(", ")))
                .hint(format!("nothing was written; without `{flag}` the others are merged"))
                .status(1));
        }
        let status = (!left.is_empty()).into();
        let Some(plan) = &mut found.plan else {
            if left.is_empty() {
                eprintln!("nothing to merge");
            }
            return Ok(Round::Over(1));
        };
        if self.args.dry_run {
            if !self.args.json {
                print!("{}", escape_lines(&plan.describe()));
                println!("check     {}", escape(&self.wanted.command));
            }
            review::tell(self.context, &mut plan.warnings)?;
            return Ok(Round::Over(status));
        }
        // As the host is now: what was uncommitted when all began may be committed.
        let repo = open(self.context, self.store, gathered.first())?;
        let of = |landed: &Landed| requests.iter().find(|request| request.name == landed.name).map(again);
        let lands: Vec<MergeRequest<'_>> = found.merged.iter().filter_map(of).collect();
        let planned = plan_several(&repo, &lands, self.args.octopus)?;
        let Some(mut now) = planned.plan.filter(|_| planned.left_out.is_empty()) else { return Ok(Round::Moved) };
        let tree = result_tree(&repo, Some(now.head.new))?;
        if !trees.get(&tree).is_some_and(|(ended, _)| ended.passed()) {
            return Ok(Round::Moved);
        }
        review::tell(self.context, &mut now.warnings)?;
        if !review::agreed(self.context, &now.warnings, ("merge", &now.name), self.args.yes)? {
            return Err(review::declined());
        }
        tell_resolved(&now);
        self.commits.finish(self.context, &repo, &mut now)?;
        let lands = |sandbox: &&Sandbox| lands.iter().any(|request| request.name == sandbox.name());
        let sandboxes: Vec<&Sandbox> = gathered.sandboxes.iter().filter(lands).collect();
        let hooks = if self.args.with_hooks { Some(Hooks::keep(self.context, self.store, &repo)?) } else { None };
        match do_it(self.context, self.store, &sandboxes, &repo, &now) {
            Ok(()) => hooks.iter().for_each(|hooks| hooks.after(&now)),
            Err(_) if repo.head()?.commit != now.head.old => return Ok(Round::Moved),
            Err(error) => return Err(error),
        }
        found.plan = Some(now);
        Ok(Round::Over(status))
    }

    /// Nobody is to blame.
    fn fails_here(&self, gathered: &Gathered, trees: &Trees) -> Result<CliError, CliError> {
        let head = gathered.repo.head()?;
        let tree = result_tree(&gathered.repo, head.commit)?;
        let (command, branch) = (escape(&self.wanted.command), escape(head.short()));
        let mut error = CliError::new(format!("`{command}` does not pass on '{branch}' as it is"));
        if let Some((ended, output)) = trees.get(&tree) {
            error = error.cause(ended.words());
            let log = kept::keep(self.store, &gathered.first().mount().repo, "HEAD", output)?;
            kept::show(output, &log);
        }
        Ok(error
            .hint("no sandbox can be blamed, and nothing was merged: mend the branch first, or merge with `--no-check`")
            .status(1))
    }
}
