//! `events`: what happened in and around sandboxes, from `log/events.jsonl`.

use super::logs::{distinct, write};
use super::stop::chosen;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::event_words::{failed, time, words};
use crate::follow::{Follower, Lines, last};
use crate::prefix::Prefixes;
use crate::text::{escape, escape_json};
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::SandboxDir;
use sandbox_protocol::event::{Event, Happened, Verdict};
use sandbox_supervisor::RingLog;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Bytes of a log that `list` looks at, from its end.
const LOOK: u64 = 256 * 1024;

pub fn run(context: &Context, args: &cli::Events) -> Outcome {
    let store = context.store()?;
    let sandboxes = distinct(chosen(context, &store, &args.names, args.all)?);
    let names: Vec<&str> = sandboxes.iter().map(Sandbox::name).collect();
    let named = args.all || sandboxes.len() > 1;
    let prefixes = Prefixes::new(context, &names);
    let mut sources: Vec<Source> = sandboxes.iter().enumerate().map(|(n, sandbox)| Source::new(n, sandbox)).collect();
    let mut first = true;
    loop {
        let mut new = Vec::new();
        for source in &mut sources {
            let n = source.n;
            new.extend(source.read()?.into_iter().map(|line| (n, line)));
        }
        // Each log is in order; several are put together by their times.
        new.sort_by_key(|(_, line)| line.at);
        if std::mem::take(&mut first) {
            new = last(new, args.lines);
        }
        let silent = new.is_empty();
        let mut text = String::new();
        for (n, line) in new {
            match (args.json, named) {
                (true, false) => text.push_str(&line.text),
                // A name needs no escapes.
                (true, true) => text.push_str(&format!("{{\"sandbox\":\"{}\",{}", names[n], &line.text[1..])),
                (false, false) => text.push_str(&line.words(names[n])),
                (false, true) => text.push_str(&format!("{}{}", prefixes.of(n), line.words(names[n]))),
            }
            text.push('\n');
        }
        if !write(text.as_bytes())? {
            return Ok(0);
        }
        sources.retain(|source| !source.ended);
        if sources.is_empty() || !args.follow {
            return Ok(0);
        }
        if silent {
            std::thread::sleep(Duration::from_millis(50 + 2 * sources.len().min(200) as u64));
        }
    }
}

struct Source<'a> {
    n: usize,
    sandbox: &'a Sandbox,
    follower: Follower,
    lines: Lines,
    ended: bool,
}

impl<'a> Source<'a> {
    fn new(n: usize, sandbox: &'a Sandbox) -> Self {
        let (follower, lines) = (Follower::new(&sandbox.dir.events()), Lines::default());
        Self { n, sandbox, follower, lines, ended: false }
    }

    /// Whole lines that are events. A log that is full begins with half a line: that is left out, as is
    /// what a cut of the power spoiled.
    fn read(&mut self) -> Result<Vec<Line>, CliError> {
        self.ended = self.sandbox.state()? != State::Running;
        let path = self.sandbox.dir.events();
        let new = self.follower.read().map_err(CliError::io(format!("read '{}'", path.display())))?;
        Ok(self.lines.feed(&new).iter().filter_map(|line| Line::parse(line)).collect())
    }
}

/// One event as it was written.
#[derive(Debug, PartialEq)]
struct Line {
    at: u64,
    value: Value,
    /// The line, safe for a terminal and still the same JSON.
    text: String,
}

impl Line {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.trim();
        let value: Value = serde_json::from_str(text).ok()?;
        let at = value.get("at")?.as_u64()?;
        value.get("event")?.as_str()?;
        Some(Self { at, value, text: escape_json(text) })
    }

    fn words(&self, sandbox: &str) -> String {
        let known = Event::deserialize(&self.value).ok();
        let what = known.and_then(|event| words(sandbox, &event)).unwrap_or_else(|| {
            format!("'{}', which this version does not know", escape(self.value["event"].as_str().unwrap_or_default()))
        });
        format!("{}  {what}", time(self.at))
    }
}

/// To how many different hosts and ports the network refused connections since the last start, as far as the end of the log tells.
pub fn blocked(dir: &SandboxDir) -> usize {
    count_blocked(&RingLog::tail(&dir.events(), LOOK).unwrap_or_default())
}

fn count_blocked(log: &[u8]) -> usize {
    let mut targets = BTreeSet::new();
    let mut later = false;
    for line in log.split(|byte| *byte == b'\n').rev() {
        // Most lines say nothing here, and looking is cheaper than reading.
        let text = std::str::from_utf8(line).unwrap_or_default();
        if !["\"refused\"", "\"started\"", "\"stopped\""].iter().any(|word| text.contains(word)) {
            later |= !text.is_empty();
            continue;
        }
        let Ok(event) = serde_json::from_str::<Event>(text) else { continue };
        match event.what {
            Happened::Network(network) if network.verdict == Verdict::Refused && !failed(&network) => {
                targets.insert((network.host, network.port));
            }
            Happened::Started { .. } => break,
            // The end of the run before: an idle sandbox starts nothing.
            Happened::Stopped if later => break,
            _ => {}
        }
        later = true;
    }
    targets.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_the_same_and_steers_nothing() {
        let line = "{\"at\":5,\"event\":\"later\",\"x\":\"\u{9b}2J\u{202e}é🦀\u{e0001}\u{7f}\"}";
        let seen = Line::parse(line.as_bytes()).unwrap();
        assert_eq!(seen.text, "{\"at\":5,\"event\":\"later\",\"x\":\"\\u009b2J\\u202eé🦀\\udb40\\udc01\\u007f\"}");
        assert_eq!(serde_json::from_str::<Value>(&seen.text).unwrap(), serde_json::from_str::<Value>(line).unwrap());
        assert_eq!(seen.words("a"), "1970-01-01 00:00:00Z  'later', which this version does not know");
    }

    #[test]
    fn what_is_no_event_is_left_out() {
        for bad in [
            &b"rest\":1}"[..],
            b"",
            b"[1]",
            b"{\"at\":-1,\"event\":\"x\"}",
            b"{\"at\":1}",
            b"{\"at\":1,\"event\":\"\xff\"}",
        ] {
            assert_eq!(Line::parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn blocked_counts_different_targets_of_this_run() {
        let refused = |host: &str| {
            format!("{{\"at\":1,\"event\":\"network\",\"verdict\":\"refused\",\"host\":\"{host}\",\"port\":443}}\n")
        };
        let log = [
            "half a line\n",
            &refused("before"),
            "{\"at\":1,\"event\":\"started\"}\n",
            &refused("a"),
            &refused("b"),
            &refused("a"),
            "{\"at\":1,\"event\":\"network\",\"verdict\":\"allowed\",\"host\":\"c\",\"port\":443}\n",
            "{\"at\":1,\"event\":\"stopped\"}\n",
        ];
        assert_eq!(count_blocked(log.concat().as_bytes()), 2);
        assert_eq!(count_blocked(b""), 0);
        let idle = [&refused("before")[..], "{\"at\":1,\"event\":\"stopped\"}\n", &refused("now")];
        assert_eq!(count_blocked(idle.concat().as_bytes()), 1);
    }
}
