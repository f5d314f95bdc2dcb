//! Rows of what the wall's own layers cost, without the namespaces and mounts of a sandbox: each command with them and
//! without, one after the other, so that what is told is of pairs and not of two medians.

use super::measure::{Sample, time};
use super::rows::{Bench, Rows};
use super::table::{Goal, Row, Unit};
use crate::build;
use std::process::Command;
use std::time::{Duration, Instant};

/// Pairs of each row; a start takes so little that it needs more of them.
const PAIRS: usize = 10;
const STARTS: usize = 20 * PAIRS;
/// A row stops here, with the pairs that it has: its quartiles tell what so few are worth. Three rows and their first
/// runs take less than a minute also where other things run.
const ENOUGH: Duration = Duration::from_secs(15);
const LEAST: usize = 3;
/// Functions in what is compiled: about half a second of `cc -O1`.
const FUNCTIONS: usize = 600;

/// A start, a compile, and what does nothing but call the kernel.
pub fn hardening(bench: &Bench) -> Rows {
    let program = build::example("sandbox-drivers", "hardening")?;
    let dir = bench.root().join("hardening");
    std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make '{}': {error}", dir.display()))?;
    let source: String = (0..FUNCTIONS).map(|n| format!("int f{n}(int a){{return a*{n}+(a>>3)%7;}}\n")).collect();
    std::fs::write(dir.join("big.c"), source).map_err(|error| format!("cannot write 'big.c': {error}"))?;
    // Each pair as the seconds with the wall and without it.
    let pairs = |count: usize, words: &[&str]| -> Result<Vec<(f64, f64)>, String> {
        let run = |mode: &str| {
            let seconds = time(Command::new(&program).arg(mode).args(words).current_dir(&dir))?.as_secs_f64();
            Ok::<f64, String>(seconds)
        };
        run("bare")?;
        let (begun, mut pairs) = (Instant::now(), Vec::new());
        while pairs.len() < count && (pairs.len() < LEAST || begun.elapsed() < ENOUGH) {
            // Who is first takes turns too: what else runs on the machine does not favour one.
            let first = pairs.len() % 2 == 0;
            let before = run(if first { "bare" } else { "wall" })?;
            let after = run(if first { "wall" } else { "bare" })?;
            pairs.push(if first { (after, before) } else { (before, after) });
        }
        Ok(pairs)
    };
    let row = |what: &str, pairs: Vec<(f64, f64)>, of: fn(f64, f64) -> f64, goal, unit| {
        let what = format!("{what} ({} pairs)", pairs.len());
        Row::alone(what, Sample::new(pairs.into_iter().map(|(wall, bare)| of(wall, bare)).collect()), goal, unit)
    };
    fn less(wall: f64, bare: f64) -> f64 {
        wall - bare
    }
    fn ratio(wall: f64, bare: f64) -> f64 {
        wall / bare
    }
    let compile = ["cc", "-O1", "-c", "-o", "big.o", "big.c"];
    let calls = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=200000", "status=none"];
    Ok(vec![
        row("the wall's layers: more for a start", pairs(STARTS, &["true"])?, less, Goal::Absolute(0.002), Unit::Time),
        row("the same: a compile", pairs(PAIRS, &compile)?, ratio, Goal::Absolute(1.02), Unit::Times),
        row("the same: 200,000 reads and writes of a byte", pairs(PAIRS, &calls)?, ratio, Goal::None, Unit::Times),
    ])
}
