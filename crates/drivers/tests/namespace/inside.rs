//! What runs inside: a stand-in for the agent, with the same duties at its start.

use sandbox_protocol::{AgentConfig, CONFIG_FD, CONTROL_FD};
use sandbox_sys::seccomp::Program;
use sandbox_sys::{caps, seccomp};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};

/// What a script did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

fn config() -> AgentConfig {
    let text = std::fs::read_to_string(format!("/proc/self/fd/{CONFIG_FD}")).expect("the parameters");
    serde_json::from_str(&text).expect("parameters as JSON")
}

/// PID 1.
pub fn agent() -> ExitCode {
    let config = config();
    if let Some((_, status)) = config.env.iter().find(|(name, _)| name == "AGENT_EXITS") {
        return ExitCode::from(status.parse::<u8>().unwrap_or(1));
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).expect("not dumpable");
    let base = Program::from_bytes(&config.base_filter.0).expect("a base filter");
    seccomp::load(&base).expect("the base filter loads");
    let socket = UnixStream::from(sandbox_sys::fork::inherited(CONTROL_FD).expect("the control channel"));
    let mut out = socket.try_clone().expect("a second handle");
    out.write_all(b"ready\n").expect("the first word");
    for line in BufReader::new(socket).lines() {
        let Ok(line) = line else { break };
        let script: String = serde_json::from_str(&line).expect("a script");
        let mut command = Command::new("/proc/self/exe");
        command.arg0("session").arg(&script).env_clear().envs(config.env.iter().cloned());
        command.current_dir(&config.cwd).stdin(Stdio::null());
        let outcome = match command.output() {
            Ok(output) => {
                let status = output.status;
                Outcome {
                    status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
                    stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                }
            }
            Err(error) => Outcome { status: -1, stdout: String::new(), stderr: error.to_string() },
        };
        let mut text = serde_json::to_string(&outcome).expect("an outcome");
        text.push('\n');
        if out.write_all(text.as_bytes()).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

/// What the nursery does for a session, then the shell.
pub fn session(script: String) -> ExitCode {
    let config = config();
    caps::drop_all().expect("no capabilities");
    // The stand-in answers no notifications.
    let filter = Program::from_bytes(&config.base_filter.0).expect("a filter");
    seccomp::load(&filter).expect("the filter loads");
    sandbox_sys::fork::close_from(3, None).expect("no descriptors");
    let error = Command::new("/bin/sh").args(["-c", &script]).exec();
    eprintln!("cannot execute /bin/sh: {error}");
    ExitCode::from(127)
}
