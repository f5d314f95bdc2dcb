//! P11: memory and processor time of the service itself, beside those of the git that it runs.

use super::super::machine::pss;
use super::super::measure::{Sample, time};
use super::super::rows::{Bench, Rows};
use super::super::table::{Goal, Row, Unit};
use super::stage::git_in;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Clones at once.
const CLIENTS: usize = 16;
const MIB: f64 = 1024.0 * 1024.0;

/// Ticks of processor time of a process, and of its children that have ended, by proc_pid_stat(5).
fn ticks(pid: u32) -> Result<(f64, f64), String> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read '{path}': {error}"))?;
    // The name may have anything in it, but ends at the last bracket; the third field is behind it.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |n: usize| fields.get(n - 3).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((field(14) + field(15), field(16) + field(17)))
}

/// What the service takes while it streams whole histories to many, and how much of the work is its own.
pub fn streaming(bench: &Bench) -> Rows {
    let (env, stage) = (bench.env(), bench.mirror()?);
    let (before, began) = (pss(stage.pid())?, ticks(stage.pid())?);
    let over = AtomicBool::new(false);
    let url = stage.ours("generated");
    let (most, failed) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut most = 0.0_f64;
            while !over.load(Ordering::Relaxed) {
                most = most.max(pss(stage.pid()).unwrap_or(0.0));
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let one = |n: usize| {
            let mut command = git_in(env, env.root());
            command.args(["clone", "-q", "--bare", &url]).arg(env.root().join(format!("tmp/stream-{n}")));
            scope.spawn(move || time(&mut command).err())
        };
        let all: Vec<_> = (0..CLIENTS).map(one).collect();
        let failed: Vec<String> = all.into_iter().filter_map(|thread| thread.join().unwrap_or(None)).collect();
        over.store(true, Ordering::Relaxed);
        (sampler.join().unwrap_or(f64::NAN), failed)
    });
    (0..CLIENTS).for_each(|n| drop(fs::remove_dir_all(env.root().join(format!("tmp/stream-{n}")))));
    if let Some(error) = failed.first() {
        return Err(error.clone());
    }
    let (own, git) = ticks(stage.pid()).map(|(own, git)| (own - began.0, git - began.1))?;
    let each = Sample::new(vec![(most - before).max(0.0) / CLIENTS as f64]);
    let share = Sample::new(vec![own / git.max(1.0)]);
    Ok(vec![
        Row::alone(
            format!("PSS for each of {CLIENTS} clones that are streamed"),
            each,
            Goal::Absolute(MIB),
            Unit::Size,
        ),
        Row::alone("processor time of the service for that of its git", share, Goal::Absolute(0.1), Unit::Times),
    ])
}

/// What the service takes when nothing happens, after everything that came before.
pub fn idle(bench: &Bench) -> Rows {
    let stage = bench.mirror()?;
    let sample = Sample::new(vec![pss(stage.pid())?]);
    Ok(vec![Row::alone("PSS of the service, idle", sample, Goal::Absolute(40.0 * MIB), Unit::Size)])
}

#[cfg(test)]
mod tests {
    use super::ticks;

    #[test]
    fn the_time_of_children_is_told_apart() {
        // An ended child that was busy for a while: some ticks of 10 ms.
        let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done";
        let before = ticks(std::process::id()).unwrap().1;
        assert!(std::process::Command::new("sh").args(["-c", busy]).status().unwrap().success());
        assert!(ticks(std::process::id()).unwrap().1 > before);
    }
}
