//! The wall's own layers without the namespaces and mounts that make a sandbox: the filter of system calls, Landlock,
//! and what is given up before them. `cargo xtask bench --rows hardening` compares a command with them and without.
//!
//! ```text
//!   hardening bare COMMAND…   exec
//!   hardening wall COMMAND…   no_new_privs, capabilities, Landlock's rules, the session's filter ─► exec
//! ```

use rustix::fs::{CWD, Mode, OFlags, openat};
use sandbox_sys::landlock::{self, Rights, Ruleset};
use sandbox_sys::{caps, seccomp};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("bare") if args.len() > 2 => become_command(&args[2..]),
        Some("wall") if args.len() > 2 => match harden() {
            Ok(()) => become_command(&args[2..]),
            Err(error) => {
                eprintln!("cannot harden: {error}");
                ExitCode::from(125)
            }
        },
        _ => {
            eprintln!("usage: hardening bare|wall COMMAND…");
            ExitCode::from(2)
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
