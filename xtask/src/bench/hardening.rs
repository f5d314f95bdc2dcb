//! Rows of what the wall's own layers cost, without the namespaces and mounts of a sandbox: each command with them and
//! without, one after the other, so that what is told is of pairs and not of two medians.

use super::measure::{Sample, time};
use super::rows::{Bench, Rows};
use super::table::{Goal, Row, Unit};
use crate::build;
use std::process::Command;

/// Pairs of each row; a start takes so little that it needs more of them.
const PAIRS: usize = 10;
const STARTS: usize = 20 * PAIRS;

/// A start, a compile, and what does nothing but call the kernel.
pub fn hardening(bench: &Bench) -> Rows {
    let program = build::example("sandbox-drivers", "hardening")?;
    let dir = bench.root().join("hardening");
    std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make '{}': {error}", dir.display()))?;
    let source: String = (0..3000).map(|n| format!("int f{n}(int a){{return a*{n}+(a>>3)%7;}}\n")).collect();
    std::fs::write(dir.join("big.c"), source).map_err(|error| format!("cannot write 'big.c': {error}"))?;
    // Each pair as the seconds with the wall and without it.
    let pairs = |count: usize, words: &[&str]| -> Result<Vec<(f64, f64)>, String> {
        let run = |mode: &str| {
            let seconds = time(Command::new(&program).arg(mode).args(words).current_dir(&dir))?.as_secs_f64();
            Ok::<f64, String>(seconds)
        };
        run("bare")?;
        (0..count).map(|_| run("bare").and_then(|bare| Ok((run("wall")?, bare)))).collect()
    };
    let less = |pairs: Vec<(f64, f64)>| Sample::new(pairs.into_iter().map(|(wall, bare)| wall - bare).collect());
    let ratio = |pairs: Vec<(f64, f64)>| Sample::new(pairs.into_iter().map(|(wall, bare)| wall / bare).collect());
    let compile = ["cc", "-O1", "-c", "-o", "big.o", "big.c"];
    let calls = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=200000", "status=none"];
    Ok(vec![
        Row::alone(
            "the wall's layers: more for a start",
            less(pairs(STARTS, &["true"])?),
            Goal::Absolute(0.002),
            Unit::Time,
        ),
        Row::alone("the same: a compile", ratio(pairs(PAIRS, &compile)?), Goal::Absolute(1.02), Unit::Times),
        Row::alone(
            "the same: 200,000 reads and writes of a byte",
            ratio(pairs(PAIRS, &calls)?),
            Goal::None,
            Unit::Times,
        ),
    ])
}
