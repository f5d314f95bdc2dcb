//! What the wall's own layers cost: the filter of system calls, Landlock, and what is given up before them, without
//! the namespaces and mounts that make a sandbox.
//!
//! ```text
//!   cargo run --release -p sandbox-drivers --example hardening [RUNS]
//!
//!   bare   this program again ─► exec
//!   wall   this program again ─► no_new_privs, capabilities, Landlock's rules, the session's filter ─► exec
//! ```
//! Pairs, one after the other; what is told is the median of the differences (`true`) and of the ratios (a compile,
//! and 200 000 reads of one byte), with their quartiles.

use rustix::fs::{CWD, Mode, OFlags, openat};
use sandbox_sys::landlock::{self, Rights, Ruleset};
use sandbox_sys::{caps, seccomp};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("bare") => become_command(&args[2..]),
        Some("wall") => match harden() {
            Ok(()) => become_command(&args[2..]),
            Err(error) => {
                eprintln!("cannot harden: {error}");
                ExitCode::from(125)
            }
        },
        runs => {
            measure(runs.and_then(|runs| runs.parse().ok()).unwrap_or(10));
            ExitCode::SUCCESS
        }
    }
}

fn become_command(words: &[String]) -> ExitCode {
    let error = Command::new(&words[0]).args(&words[1..]).exec();
    eprintln!("cannot execute '{}': {error}", words[0]);
    ExitCode::from(127)
}

/// As the driver and the agent do it for a session, with as many rules.
fn harden() -> std::io::Result<()> {
    caps::no_new_privs()?;
    if rustix::process::geteuid().is_root() {
        caps::lock_securebits()?;
    }
    caps::drop_all()?;
    let abi = landlock::abi();
    if abi >= landlock::FIRST_USABLE {
        let rules = Ruleset::new(abi)?;
        let here = std::env::current_dir()?;
        let all =
            ["/run", "/tmp", "/var/tmp", "/dev/shm"].map(Path::new).into_iter().chain([here.as_path(), here.as_path()]);
        let fixed = [("/", Rights::Read), ("/proc", Rights::ReadWriteFiles), ("/dev", Rights::Devices)];
        let fixed = fixed.into_iter().map(|(path, rights)| (Path::new(path), rights));
        for (path, rights) in fixed.chain(all.map(|path| (path, Rights::All))) {
            rules.allow(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?, rights)?;
        }
        rules.enforce()?;
    }
    // Without the notifier, whose cost is that of a rename.
    let (_, session) = sandbox_drivers::namespace::wall::programs(false, false)?;
    seccomp::load(&seccomp::Program::from_bytes(&session)?)
}

fn timed(mode: &str, words: &[&str]) -> Duration {
    let start = Instant::now();
    let status = Command::new("/proc/self/exe").arg(mode).args(words).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{mode} {words:?}");
    start.elapsed()
}

fn measure(runs: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::env::set_current_dir(&dir).expect("it was just made");
    let source: String = (0..3000).map(|n| format!("int f{n}(int a){{return a*{n}+(a>>3)%7;}}\n")).collect();
    std::fs::write("big.c", source).expect("it is ours");
    let quartiles = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let at = |part: usize| values[(values.len() - 1) * part / 4];
        (at(1), at(2), at(3))
    };
    let pairs = |runs: usize, words: &[&str]| -> Vec<(Duration, Duration)> {
        timed("bare", words);
        (0..runs).map(|_| (timed("bare", words), timed("wall", words))).collect()
    };
    let ms = |(bare, wall): &(Duration, Duration)| (wall.as_secs_f64() - bare.as_secs_f64()) * 1000.0;
    let (low, median, high) = quartiles(pairs(runs * 20, &["true"]).iter().map(ms).collect());
    println!("a start      {median:+.2} ms  ({low:+.2} to {high:+.2}), goal +2");
    let ratio = |(bare, wall): &(Duration, Duration)| wall.as_secs_f64() / bare.as_secs_f64();
    for (what, words) in [
        ("a compile", &["cc", "-O1", "-c", "-o", "big.o", "big.c"][..]),
        ("system calls", &["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=200000", "status=none"][..]),
    ] {
        let (low, median, high) = quartiles(pairs(runs, words).iter().map(ratio).collect());
        println!(
            "{what:<12} {median:.3}x  ({low:.3} to {high:.3}){}",
            if what == "a compile" { ", goal 1.02" } else { "" }
        );
    }
}
