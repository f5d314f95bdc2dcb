//! `spawn --report FILE`: one JSON object about a run, for CI. Schema version 1 (docs/ci.md).
//!
//! ```text
//!   begun ──► exited | killed | timed-out | interrupted | detached | failed
//! ```
//! The file is written whole each time: when the command is about to start, when it has ended, and once more when
//! all is done. Whatever ends this program, the last of these is there.

use crate::error::{CliError, Outcome};
use crate::text::escape;
use sandbox_core::driver::{Isolation, Usage};
use sandbox_core::launch::{Limits, Network};
use sandbox_core::sandbox::Sandbox;
use sandbox_protocol::event::{Event, Happened, Verdict};
use sandbox_protocol::{ExitStatus, escape_bytes};
use sandbox_supervisor::RingLog;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// How much of the events' log is looked at.
const LOOK: u64 = 8 << 20;
/// How many refused hosts are named; all are counted.
const MOST_REFUSED: usize = 256;

/// What is told of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    version: u32,
    state: &'static str,
    name: Option<String>,
    id: Option<String>,
    command: Vec<String>,
    /// What this program exits with.
    status: Option<u8>,
    /// The signal that ended the command.
    signal: Option<i32>,
    error: Option<CliError>,
    times: Times,
    usage: Usage,
    limits: Wanted,
    /// `memory`, `pids`, `timeout`: what the run came to an end of.
    limits_hit: Vec<String>,
    refused: Vec<Refused>,
    refused_total: usize,
    isolation: Option<Isolated>,
    copied_out: Vec<Copied>,
    /// The sandbox is still there.
    kept: bool,
    #[serde(skip)]
    file: PathBuf,
    #[serde(skip)]
    since: Instant,
}

/// Milliseconds.
#[derive(Debug, Default, Serialize)]
struct Times {
    /// Since the epoch, when the verb began.
    began: u64,
    /// From there until the command was asked for.
    prepare_ms: Option<u64>,
    /// From there until it had ended.
    run_ms: Option<u64>,
    /// All together.
    total_ms: u64,
}

#[derive(Debug, Default, Serialize)]
struct Wanted {
    memory: Option<u64>,
    pids: Option<u32>,
    cpus: Option<f64>,
    timeout_seconds: Option<u64>,
}

/// What the network refused.
#[derive(Debug, PartialEq, Serialize)]
struct Refused {
    host: String,
    port: u16,
    reason: String,
    count: usize,
}

/// What really stood around the command.
#[derive(Debug, Serialize)]
struct Isolated {
    driver: String,
    level: Isolation,
    network: Network,
    nested: bool,
    /// Names of layers, as `show` tells them.
    enforced: Vec<String>,
    /// What the user went without.
    allow_weak: Vec<String>,
    /// What could not be had, in words.
    notes: Vec<String>,
}

/// What one `--copy-out` came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Copied {
    /// As it was asked for.
    pub from: String,
    /// On the host.
    pub to: PathBuf,
    pub files: usize,
    pub bytes: u64,
    /// What was left out, and why.
    pub skipped: Vec<(String, String)>,
    /// Why nothing (more) was copied.
    pub error: Option<String>,
}

impl Report {
    /// Begins the report of a run; an error when its file cannot be written.
    pub fn begin(file: &Path, command: &[std::ffi::OsString]) -> Result<Self, CliError> {
        use std::os::unix::ffi::OsStrExt;
        let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let report = Self {
            version: 1,
            state: "begun",
            name: None,
            id: None,
            command: command.iter().map(|word| escape_bytes(word.as_bytes())).collect(),
            status: None,
            signal: None,
            error: None,
            times: Times { began, ..Times::default() },
            usage: Usage::default(),
            limits: Wanted::default(),
            limits_hit: Vec::new(),
            refused: Vec::new(),
            refused_total: 0,
            isolation: None,
            copied_out: Vec::new(),
            kept: false,
            // The directory may be changed before the end.
            file: std::path::absolute(file).map_err(CliError::io(format!("write '{}'", file.display())))?,
            since: Instant::now(),
        };
        report.write()?;
        Ok(report)
    }

    fn ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn write(&self) -> Result<(), CliError> {
        let fail = || format!("write the report '{}'", self.file.display());
        let parent = self.file.parent().unwrap_or(Path::new("/"));
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| CliError::new("cannot write JSON").cause(error.to_string()))?;
        text.push(b'\n');
        let write = || -> std::io::Result<()> {
            let mut temp = tempfile::Builder::new().prefix(".report-").tempfile_in(parent)?;
            temp.write_all(&text)?;
            // As any file of the user's: a temporary one is only theirs to read.
            let mask = rustix::process::umask(rustix::fs::Mode::empty());
            rustix::process::umask(mask);
            rustix::fs::fchmod(temp.as_file(), rustix::fs::Mode::from_raw_mode(0o666) & !mask)?;
            temp.as_file().sync_all()?;
            temp.persist(&self.file).map(drop).map_err(|error| error.error)
        };
        write().map_err(|error| {
            CliError::io(fail())(error).hint("`--report FILE` names a file in a directory that exists")
        })
    }

    /// The sandbox is made; its command is about to be started.
    pub fn made(&mut self, sandbox: &Sandbox) {
        let record = &sandbox.record;
        let Limits { memory, pids, cpu_percent, .. } = record.limits;
        self.name = Some(sandbox.name().to_owned());
        self.id = Some(record.id.to_string());
        self.kept = true;
        let cpus = cpu_percent.map(|percent| f64::from(percent) / 100.0);
        self.limits = Wanted { memory, pids, cpus, timeout_seconds: record.timeout };
        self.times.prepare_ms = Some(self.ms());
        // What is not written now is written at the end.
        let _ = self.write();
    }

    /// The command has ended, and the sandbox with it; what it left is still there.
    pub fn ended(&mut self, sandbox: &Sandbox) {
        self.times.run_ms = self.times.prepare_ms.map(|before| self.ms().saturating_sub(before));
        let record = &sandbox.record;
        let status = sandbox.status().unwrap_or_default();
        self.state = match (status.timed_out, status.exited) {
            (true, _) => "timed-out",
            (false, Some((ExitStatus::Signal(_), _))) => "killed",
            (false, _) => "exited",
        };
        if let Some((ExitStatus::Signal(signal), _)) = status.exited {
            self.signal = Some(signal);
        }
        self.usage = status.usage.unwrap_or_default();
        self.limits_hit = std::mem::take(&mut self.usage.limits_hit);
        if status.timed_out {
            self.limits_hit.push("timeout".to_owned());
        }
        let log = RingLog::tail(&sandbox.dir.events(), LOOK).unwrap_or_default();
        (self.refused, self.refused_total) = refused(&log);
        let escaped = |words: &[String]| words.iter().map(|word| escape(word)).collect();
        self.isolation = Some(Isolated {
            driver: record.driver.clone(),
            level: sandbox_drivers::by_name(&record.driver)
                .map_or(Isolation::Namespace, sandbox_core::driver::Driver::isolation),
            network: record.network,
            nested: record.nested,
            enforced: escaped(&status.enforced),
            allow_weak: record.allow_weak.clone(),
            notes: escaped(&status.notes),
        });
        let _ = self.write();
    }

    /// It goes on without us, or was stopped at once.
    pub fn state(&mut self, state: &'static str) {
        self.state = state;
    }

    /// What was copied out.
    pub fn copied(&mut self, copied: Vec<Copied>) {
        self.copied_out = copied;
        let _ = self.write();
    }

    /// The sandbox was dropped.
    pub fn dropped(&mut self) {
        self.kept = false;
    }

    /// Writes the last word, and passes the outcome on.
    pub fn finish(mut self, outcome: Outcome) -> Outcome {
        self.times.total_ms = self.ms();
        match &outcome {
            Ok(status) => self.status = Some(*status),
            Err(error) => {
                if self.state == "begun" {
                    self.state = "failed";
                }
                // As the program does, whose verb runs a command.
                self.status = Some(if error.status == crate::error::FATAL { 125 } else { error.status });
                self.error = Some(error.clone());
            }
        }
        match (self.write(), outcome) {
            (Err(error), Ok(0)) => Err(error),
            (Err(error), outcome) => {
                error.print();
                outcome
            }
            (Ok(()), outcome) => outcome,
        }
    }
}

/// The different hosts, ports and reasons of refusals in the last life that a log tells of, and how many they were.
fn refused(log: &[u8]) -> (Vec<Refused>, usize) {
    let mut counts: BTreeMap<(String, u16, String), usize> = BTreeMap::new();
    let mut total = 0;
    for line in log.split(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Event>(line).map(|event| event.what) {
            Ok(Happened::Started { .. }) => {
                counts.clear();
                total = 0;
            }
            Ok(Happened::Network(network)) if network.verdict == Verdict::Refused => {
                total += 1;
                let key = (escape(&network.host), network.port, escape(&network.reason.unwrap_or_default()));
                if counts.len() < MOST_REFUSED || counts.contains_key(&key) {
                    *counts.entry(key).or_default() += 1;
                }
            }
            _ => {}
        }
    }
    let all = counts.into_iter().map(|((host, port, reason), count)| Refused { host, port, reason, count });
    (all.collect(), total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_last_life_are_counted_and_safe_to_print() {
        let line = |host: &str, verdict: &str| {
            format!(
                r#"{{"at":1,"event":"network","verdict":"{verdict}","host":"{host}","port":443,"reason":"not-allowed"}}"#
            ) + "\n"
        };
        let log = [
            line("before", "refused"),
            "{\"at\":2,\"event\":\"started\"}\n".into(),
            line("a", "refused"),
            line("a", "refused"),
            line("b\\u001b", "refused"),
            line("c", "allowed"),
            "half a li".into(),
        ]
        .concat();
        let (found, total) = refused(log.as_bytes());
        assert_eq!(total, 3);
        assert_eq!(found.iter().map(|r| (r.host.as_str(), r.count)).collect::<Vec<_>>(), [("a", 2), ("b\\u{1b}", 1)]);
        let (found, total) = refused((0..1000).map(|n| line(&n.to_string(), "refused")).collect::<String>().as_bytes());
        assert_eq!((found.len(), total), (MOST_REFUSED, 1000));
    }

    #[test]
    fn a_report_is_there_from_the_beginning_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r.json");
        let report = Report::begin(&file, &["make".into()]).unwrap();
        let read = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!((read()["state"].as_str(), read()["status"].as_u64()), (Some("begun"), None));
        let outcome = report.finish(Err(CliError::new("no").hint("yes")));
        assert_eq!(outcome.unwrap_err().message, "no");
        assert_eq!((read()["state"].as_str(), read()["status"].as_u64()), (Some("failed"), Some(125)));
        assert_eq!(read()["error"]["message"], "no");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = Report::begin(&dir.path().join("none/r.json"), &[]).unwrap_err();
        assert!(error.message.starts_with("cannot write the report '"), "{error:?}");
    }
}
