//! P8 and P10: what sessions push, from clones that are behind, and beside very many refs.

use super::super::measure::{Contender, Sample, interleave, time};
use super::super::rows::{Bench, Rows};
use super::super::table::{Goal, Row, Unit};
use super::kept::advance;
use super::stage::{Stage, git_in, printed};
use sandbox_testkit::TestEnv;
use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Commits that a clone is behind.
const BEHIND: usize = 100;
/// Refs of a session that has very many.
const CROWD: usize = 50_000;

/// A clone of the tip without blobs and files, as an agent's that writes little.
fn partial(env: &TestEnv, stage: &Stage, name: &str, dir: &Path) -> Result<(), String> {
    let args = ["clone", "-q", "--depth=1", "--filter=blob:none", "--no-checkout"];
    time(git_in(env, env.root()).args(args).arg(stage.ours(name)).arg(dir)).map(drop)
}

/// A copy of a clone with one more commit of one file, made without the blobs that it lacks.
struct Work<'b> {
    env: &'b TestEnv,
    dir: PathBuf,
}

impl<'b> Work<'b> {
    fn new(env: &'b TestEnv, clone: &Path, text: &str) -> Result<Self, String> {
        let this = Self { env, dir: env.root().join("tmp/work") };
        let _ = fs::remove_dir_all(&this.dir);
        time(Command::new("cp").arg("-R").arg(clone).arg(&this.dir))?;
        let file = env.root().join("tmp/change");
        fs::write(&file, text).map_err(|error| error.to_string())?;
        let git = || git_in(env, &this.dir);
        time(git().args(["read-tree", "HEAD"]))?;
        let blob = printed(git().args(["hash-object", "-w"]).arg(&file))?;
        let entry = format!("100644,{blob},agent.txt");
        time(git().args(["update-index", "--add", "--cacheinfo", &entry]))?;
        let tree = printed(git().args(["write-tree"]))?;
        let commit = printed(git().args(["commit-tree", "-m", text, "-p", "HEAD", &tree]))?;
        time(git().args(["update-ref", "refs/heads/work", &commit]))?;
        Ok(this)
    }

    /// `git push`, set up as `mirror clone` sets a clone up.
    fn push(&self, identity: &str, to: &str) -> Command {
        let mut command = git_in(self.env, &self.dir);
        command.args(["-c", identity, "-c", "push.negotiate=true", "push", "-q", "origin"]);
        command.arg(format!("refs/heads/work:{to}"));
        command
    }
}

/// How many requests for blobs a command made that it did not have.
fn lazy_fetches(env: &TestEnv, mut command: Command) -> Result<usize, String> {
    let trace = env.root().join("tmp/trace");
    let _ = fs::remove_file(&trace);
    time(command.env("GIT_TRACE", &trace))?;
    let trace = fs::read_to_string(&trace).map_err(|error| error.to_string())?;
    Ok(trace.lines().filter(|line| line.contains("fetch") && line.contains("--filter=blob:none --stdin")).count())
}

/// P8: one commit from a clone that is far behind, against the same from a fresh one.
pub fn pushed(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let name = "generated";
    let (stale, fresh) = (env.root().join("stale"), env.root().join("fresh"));
    partial(env, stage, name, &stale)?;
    advance(env, stage, name, BEHIND)?;
    partial(env, stage, name, &fresh)?;
    let pushes = Cell::new(0);
    // Each is the first push of its session: nothing that it has is known by an earlier one.
    let ready = |clone: &Path| -> Result<(Work, String, String), String> {
        let n = pushes.replace(pushes.get() + 1);
        let identity = stage.session(name, &format!("p{n}"))?;
        Ok((Work::new(env, clone, &format!("change {n}\n"))?, identity, format!("refs/agents/p{n}")))
    };
    let push = |clone: &Path| -> Result<Duration, String> {
        let (work, identity, to) = ready(clone)?;
        time(&mut work.push(&identity, &to))
    };
    let mut contenders: [Contender; 2] = [Box::new(|| push(&stale)), Box::new(|| push(&fresh))];
    let [behind, even] = super::take(interleave(bench.few(9), &mut contenders)?)?;
    drop(contenders);
    let (work, identity, to) = ready(&stale)?;
    let lazy = lazy_fetches(env, work.push(&identity, &to))?;
    let limit = 0.05 + 2.0 * even.median();
    Ok(vec![Row {
        what: format!("push of 1 commit from a partial clone {BEHIND} commits behind, {name}: {lazy} lazy fetches"),
        ours: behind,
        peer: Some(("the same from a fresh one".to_owned(), even)),
        goal: Goal::Absolute(limit),
        unit: Unit::Time,
    }])
}

/// P10: a session with very many refs, against one with none.
pub fn crowded(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let name = "own";
    let (crowd, alone) = (stage.session(name, "crowd")?, stage.session(name, "alone")?);
    let clone = env.root().join("pusher");
    partial(env, stage, name, &clone)?;
    let rounds = Cell::new(0);
    let push = |identity: &str, id: &str| -> Result<Duration, String> {
        let n = rounds.replace(rounds.get() + 1);
        let work = Work::new(env, &clone, &format!("change {n}\n"))?;
        time(&mut work.push(identity, &format!("refs/agents/{id}/push{n}")))
    };
    push(&crowd, "crowd")?;
    push(&alone, "alone")?;
    // As if they had been pushed: fifty thousand refspecs do not fit into a command.
    let dir = stage.mirrored(name)?;
    let stem = dir.file_stem().unwrap_or_default().to_owned();
    let own = stage.store.join("scratch").join(stem).join("crowd.git");
    let id = printed(
        git_in(env, &own)
            .args(["-c", "safe.bareRepository=all", "for-each-ref", "--format=%(objectname)"])
            .arg("refs/agents"),
    )?;
    let mut refs = String::new();
    (0..CROWD)
        .try_for_each(|n| writeln!(refs, "create refs/agents/crowd/{n} {id}"))
        .map_err(|error| error.to_string())?;
    let list = env.root().join("tmp/refs");
    fs::write(&list, refs).map_err(|error| error.to_string())?;
    let mut update = git_in(env, &own);
    update.args(["-c", "safe.bareRepository=all", "update-ref", "--stdin"]);
    update.stdin(fs::File::open(&list).map_err(|error| error.to_string())?).stdout(Stdio::null());
    if !update.status().is_ok_and(|status| status.success()) {
        return Err("`git update-ref` failed".to_owned());
    }
    time(git_in(env, &own).args(["-c", "safe.bareRepository=all", "pack-refs", "--all"]))?;

    let url = stage.ours(name);
    let look = |identity: &str| time(git_in(env, env.root()).args(["-c", identity, "ls-remote", &url, "HEAD"]));
    let mut rows = Vec::new();
    let mut row = |what: &str, goal: Goal, samples: Vec<Sample>| -> Result<(), String> {
        let [ours, other] = super::take(samples)?;
        let what = format!("{what} of a session with {CROWD} refs, {name}");
        rows.push(Row { goal, ..Row::against(what, ours, "with none", other, 0.0) });
        Ok(())
    };
    let mut contenders: [Contender; 2] = [Box::new(|| look(&crowd)), Box::new(|| look(&alone))];
    row("`ls-remote`", Goal::Ratio(1.5), interleave(bench.few(9), &mut contenders)?)?;
    // Git tells who pushes all of its own refs, and there is no protocol of fewer.
    let mut contenders: [Contender; 2] = [Box::new(|| push(&crowd, "crowd")), Box::new(|| push(&alone, "alone"))];
    row("push of 1 commit", Goal::None, interleave(bench.few(5), &mut contenders)?)?;
    Ok(rows)
}
