//! The rows of the mirror: against `git daemon` and `git http-backend` behind Apache on an identically packed
//! repository, and against the upstream itself behind a round trip of 20 ms.
//!
//! ```text
//! upstream/*.git ─ git daemon ─ delay (20 ms) ─┬◄── "direct"
//!                                              └─► mirror serve ◄── ours, http:// and git://
//!                                                      │ its repositories, copied when they are fresh
//!                                                      └─► peers/*.git ◄── git daemon, Apache
//! ```

mod delay;
mod input;
mod kept;
mod peers;
mod provision;
mod pushed;
mod stage;
mod taken;

pub use kept::{kept, webhook};
pub use provision::provision;
pub use pushed::{crowded, pushed};
pub use stage::Stage;
pub use taken::{idle, streaming};

use super::measure::{Contender, Sample, interleave, time};
use super::rows::{Bench, Rows, take};
use super::table::{Goal, Row, Unit};
use sandbox_testkit::TestEnv;
use stage::{INPUTS, git_in};
use std::fs;
use std::time::{Duration, Instant};

/// Clones, and removes what was cloned outside of the time.
fn clone(env: &TestEnv, url: &str, args: &[&str]) -> Result<Duration, String> {
    let dir = env.root().join("tmp/clone");
    let took = time(git_in(env, env.root()).args(["clone", "-q"]).args(args).arg(url).arg(&dir))?;
    fs::remove_dir_all(&dir).map_err(|error| error.to_string())?;
    Ok(took)
}

/// One line against `git daemon`, with lines of the other peers behind it.
fn against(
    bench: &Bench,
    stage: &Stage,
    what: &str,
    name: &str,
    goal: f64,
    measure: impl Fn(&str) -> Result<Duration, String>,
) -> Rows {
    let mut urls = vec![("`git daemon`", stage.daemon(name)), ("direct, 20 ms away", stage.direct(name))];
    urls.extend(stage.apache(name).map(|url| ("`git http-backend` behind Apache", url)));
    let ours = stage.ours(name);
    let mut contenders: Vec<Contender> = vec![Box::new(|| measure(&ours))];
    for (_, url) in &urls {
        contenders.push(Box::new(|| measure(url)));
    }
    let samples = interleave(bench.few(9), &mut contenders)?;
    drop(contenders);
    let (ours, others) = samples.split_first().ok_or("nothing was measured")?;
    let what = format!("{what}, {name}");
    let rows = urls.iter().zip(others).enumerate().map(|(n, ((peer, _), other))| Row {
        what: what.clone(),
        ours: ours.clone(),
        peer: Some(((*peer).to_owned(), other.clone())),
        goal: if n == 0 { Goal::Ratio(goal) } else { Goal::None },
        unit: Unit::Time,
    });
    Ok(rows.collect())
}

/// P1: the refs.
pub fn refs(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    eprintln!("  {}", stage.about.join(", "));
    let list = |url: &str| time(git_in(env, env.root()).args(["ls-remote", url, "HEAD"]));
    let mut rows = against(bench, stage, "`ls-remote` by HTTP", "own", 0.2, list)?;
    let (ours, daemon) = (stage.ours_git("own"), stage.daemon("own"));
    let [ours, daemon] = take(bench.rounds(&mut [Box::new(|| list(&ours)), Box::new(|| list(&daemon))])?)?;
    rows.push(Row::against("`ls-remote` by git://, own", ours, "`git daemon`", daemon, 0.1));
    Ok(rows)
}

/// P2, P3, P6: clones of the usual shapes.
pub fn clones(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let mut rows = Vec::new();
    for name in INPUTS {
        for (what, goal, args) in [
            ("tip without blobs, no checkout", 0.45, &["--depth=1", "--filter=blob:none", "--no-checkout"][..]),
            ("`--depth=1` with checkout", 0.4, &["--depth=1"]),
            ("tip without blobs, then checkout", 0.35, &["--depth=1", "--filter=blob:none"]),
            ("everything, no checkout", 1.0, &["--no-checkout"]),
        ] {
            rows.extend(against(bench, stage, what, name, goal, |url| clone(env, url, args))?);
        }
    }
    Ok(rows)
}

/// P4: many at once.
pub fn parallel(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let many = |url: &str, clients: usize| -> (Duration, usize) {
        let start = Instant::now();
        let dir = |n: usize| env.root().join(format!("tmp/many-{n}"));
        let failed = std::thread::scope(|scope| {
            let one = |n: usize| {
                let mut command = git_in(env, env.root());
                command.args(["clone", "-q", "--depth=1", "--no-checkout", url]).arg(dir(n));
                scope.spawn(move || usize::from(time(&mut command).is_err()))
            };
            let all: Vec<_> = (0..clients).map(one).collect();
            all.into_iter().map(|thread| thread.join().unwrap_or(1)).sum()
        });
        let took = start.elapsed();
        (0..clients).for_each(|n| drop(fs::remove_dir_all(dir(n))));
        (took, failed)
    };
    let mut rows = Vec::new();
    for name in INPUTS {
        let (ours, daemon) = (stage.ours(name), stage.daemon(name));
        let eight = |url: &str| match many(url, 8) {
            (took, 0) => Ok(took),
            (_, failed) => Err(format!("{failed} of 8 clones failed")),
        };
        let few = bench.few(5);
        let samples = interleave(few, &mut [Box::new(|| eight(&ours)), Box::new(|| eight(&daemon))])?;
        let [a, b] = take(samples)?;
        rows.push(Row::against(format!("8 × `--depth=1` at once, no checkout, {name}"), a, "`git daemon`", b, 0.25));
        let ((took, failed), (theirs, lost)) = (many(&ours, 64), many(&daemon, 64));
        let sample = |took: Duration| Sample::new(vec![took.as_secs_f64()]);
        rows.push(Row {
            what: format!("64 × the same, {name}: {failed} failed"),
            ours: sample(took),
            peer: Some((format!("`git daemon`: {lost} failed"), sample(theirs))),
            goal: Goal::None,
            unit: Unit::Time,
        });
    }
    Ok(rows)
}

/// P5: one blob that a partial clone lacks.
pub fn lazy(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let mut rows = Vec::new();
    for name in INPUTS {
        let fetch = |url: &str| -> Result<Duration, String> {
            let dir = env.root().join("tmp/lazy");
            let args = ["clone", "-q", "--depth=1", "--filter=blob:none", "--no-checkout", url];
            time(git_in(env, env.root()).args(args).arg(&dir))?;
            let list = git_in(env, &dir).args(["ls-tree", "-r", "HEAD"]).output().map_err(|error| error.to_string())?;
            let list = String::from_utf8_lossy(&list.stdout).into_owned();
            let blob = list.lines().nth(7).and_then(|line| line.split([' ', '\t']).nth(2)).ok_or("no blob")?.to_owned();
            let took = time(git_in(env, &dir).args(["cat-file", "blob", &blob]))?;
            fs::remove_dir_all(&dir).map_err(|error| error.to_string())?;
            Ok(took)
        };
        rows.extend(against(bench, stage, "one blob of a partial clone", name, 0.45, fetch)?);
    }
    Ok(rows)
}
