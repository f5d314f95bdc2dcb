//! P7: how a sandbox of this machine gets its files: `mirror clone`, as users type it.

use super::super::measure::{Contender, interleave, time};
use super::super::rows::{Bench, Rows};
use super::super::table::{Goal, Row, Unit};
use super::clone;
use super::stage::{INPUTS, git_in};
use std::fs;

/// The verb in its two usual shapes, against what one would type without it.
pub fn provision(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let mut rows = Vec::new();
    time(git_in(env, env.root()).args(["config", "--global", "sandbox.mirrorStore"]).arg(&stage.store))?;
    for name in INPUTS {
        let ours = |shape: &str| {
            let dir = env.root().join("tmp/provisioned");
            let verb = ["mirror", "clone", "--quiet", "--no-fallback", "--mirror", &stage.http, "--shape", shape];
            let took = time(env.sandbox_command(env.root(), &verb).arg(stage.direct(name)).arg(&dir))?;
            fs::remove_dir_all(&dir).map_err(|error| error.to_string())?;
            Ok(took)
        };
        let mut contenders: [Contender; 4] = [
            Box::new(|| ours("shared")),
            Box::new(|| ours("tip")),
            Box::new(|| clone(env, &stage.daemon(name), &["--depth=1"])),
            Box::new(|| clone(env, &stage.direct(name), &["--depth=1"])),
        ];
        let samples = interleave(bench.few(5), &mut contenders)?;
        let [shared, tip, daemon, direct] = &samples[..] else { return Err("a contender is missing".to_owned()) };
        let peers = [("`git clone --depth=1` from `git daemon`", daemon), ("the same from 20 ms away", direct)];
        for (what, ours) in [("shared", shared), ("tip", tip)] {
            rows.extend(peers.iter().enumerate().map(|(n, (peer, other))| Row {
                what: format!("`mirror clone --shape {what}` with checkout, {name}"),
                ours: ours.clone(),
                peer: Some(((*peer).to_owned(), (*other).clone())),
                goal: if n == 0 && what == "shared" { Goal::Ratio(0.25) } else { Goal::None },
                unit: Unit::Time,
            }));
        }
    }
    Ok(rows)
}
