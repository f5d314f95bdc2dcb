//! P9 and P10: what a hundred refreshes leave behind, and how soon a push is seen.

use super::super::measure::{Contender, Sample, interleave, time};
use super::super::rows::{Bench, Rows};
use super::super::table::{Goal, Row, Unit};
use super::input;
use super::stage::{Stage, git_in, printed, until};
use sandbox_testkit::TestEnv;
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Refreshes that bring something, and how many go between two geometric repacks: as with the defaults.
const REFRESHES: usize = 100;
const BETWEEN: usize = 20;

fn moved(env: &TestEnv, stage: &Stage, name: &str, to: &str) -> Result<(), String> {
    time(git_in(env, &stage.upstream(name)).args(["update-ref", "refs/heads/main", to])).map(drop)
}

/// Moves `main` of the upstream so many commits on, and lets the mirror see it once.
pub fn advance(env: &TestEnv, stage: &Stage, name: &str, commits: usize) -> Result<(), String> {
    let ahead = input::ahead(env, &stage.upstream(name), commits)?;
    moved(env, stage, name, ahead.last().ok_or("no commit")?)?;
    stage.refresh(name)
}

/// What `git upload-pack` has made for a client: the server's part of a fetch, without the client's.
fn packed(env: &TestEnv, dir: &Path, revs: &str, more: &[&str]) -> Result<Duration, String> {
    let mut command = git_in(env, dir);
    command.args(["-c", "safe.bareRepository=all", "pack-objects", "--revs", "--thin", "--stdout", "--quiet"]);
    command.arg("--delta-base-offset").args(more).stdin(Stdio::piped()).stdout(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(revs.as_bytes()).map_err(|error| error.to_string())?;
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(start.elapsed()),
        other => Err(format!("`git pack-objects` in '{}': {other:?}", dir.display())),
    }
}

/// P9: the server's time after many refreshes, against the same repository packed from nothing.
pub fn kept(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let name = "generated";
    for (n, id) in input::ahead(env, &stage.upstream(name), REFRESHES)?.iter().enumerate() {
        moved(env, stage, name, id)?;
        stage.refresh(name)?;
        if n % BETWEEN == BETWEEN - 1 {
            stage.admin("POST", &format!("/v1/repos/{}/repack", stage.name(name)), &json!({}))?;
        }
    }
    let kept = stage.mirrored(name)?;
    let fresh = env.root().join("fresh.git");
    time(Command::new("cp").arg("-R").arg(&kept).arg(&fresh))?;
    time(git_in(env, &fresh).args(["-c", "safe.bareRepository=all", "repack", "-adbq"]))?;
    let tip = printed(git_in(env, &stage.upstream(name)).args(["rev-parse", "refs/heads/main"]))?;
    let old = printed(git_in(env, &stage.upstream(name)).args(["rev-parse", "refs/heads/main~50"]))?;
    let all = format!("{tip}\n--not\n\n");
    let mut rows = Vec::new();
    for (what, revs, more) in [
        ("everything", all.clone(), &[][..]),
        ("everything without blobs", all, &["--filter=blob:none"]),
        ("the last 50 commits", format!("{tip}\n--not\n{old}\n\n"), &[]),
    ] {
        let mut contenders: [Contender; 2] =
            [Box::new(|| packed(env, &kept, &revs, more)), Box::new(|| packed(env, &fresh, &revs, more))];
        let samples = interleave(bench.few(7), &mut contenders)?;
        let [ours, other] = super::take(samples)?;
        let what = format!("`git pack-objects` of {what} after {REFRESHES} refreshes, {name}");
        rows.push(Row::against(what, ours, "the same, packed whole with a bitmap", other, 1.3));
    }
    Ok(rows)
}

/// P10: from a forge's webhook to what clients see.
pub fn webhook(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let (name, mut times) = ("own", Vec::new());
    for id in input::ahead(env, &stage.upstream(name), bench.few(9))? {
        moved(env, stage, name, &id)?;
        let start = Instant::now();
        stage.hook(name)?;
        until("what was pushed is seen", || {
            let mut list = git_in(env, env.root());
            let seen = printed(list.args(["ls-remote", &stage.ours(name), "refs/heads/main"])).ok()?;
            seen.starts_with(&id).then_some(())
        })?;
        times.push(start.elapsed().as_secs_f64());
    }
    let what = "from a webhook to `ls-remote` showing it, upstream 20 ms away, own";
    Ok(vec![Row::alone(what, Sample::new(times), Goal::Absolute(1.0), Unit::Time)])
}
