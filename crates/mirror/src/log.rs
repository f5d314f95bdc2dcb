//! Events as lines of JSON, for whoever writes them down.
//!
//! ```text
//! {"at":1790000000123,"level":"info","event":"request","service":"fetch","shape":"shallow","outcome":"ok",
//!  "repo":"example.com/o/r","took_ms":25,"queued_ms":0,"sent":51200,"received":310}
//! ```
//!
//! A line has no credential in it: events have none (X1), and what git wrote is escaped and bounded before it
//! becomes one. `at` is in milliseconds since the epoch, as in all logs of this program.

use crate::event::{CacheEvent, Event, Served};
use crate::metrics::{outcome, service, shape};
use serde_json::{Map, Value, json};

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Each piece of the usual.
    Debug,
    /// What one wants to find later.
    Info,
    /// Somebody should look.
    Error,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Error => "error",
        }
    }
}

/// How bad an event is.
pub fn level(event: &Event) -> Level {
    use crate::event::Outcome;
    match event {
        Event::Served(served) if served.outcome == Outcome::Failed => Level::Error,
        // Probes and scrapes come every few seconds.
        Event::Served(served) if served.service.is_none() && served.outcome == Outcome::Done => Level::Debug,
        Event::Served(_) => Level::Info,
        Event::Cache { what: CacheEvent::Failed, .. } | Event::Trouble { .. } => Level::Error,
        Event::Cache { .. } => Level::Debug,
        Event::Refreshed(refreshed) if refreshed.error.is_some() => Level::Error,
        // Most of the time there is nothing new.
        Event::Refreshed(refreshed) if refreshed.changed == 0 => Level::Debug,
        Event::Maintained(maintained) if maintained.error.is_some() => Level::Error,
        Event::Refreshed(_) | Event::Maintained(_) | Event::Expired { .. } | Event::Emptied(_) => Level::Info,
    }
}

/// The line of an event, without its end.
pub fn line(event: &Event, at: u64) -> String {
    let mut fields = Map::new();
    fields.insert("at".to_owned(), json!(at));
    fields.insert("level".to_owned(), json!(level(event).word()));
    let more = match event {
        Event::Served(served) => request(served),
        Event::Cache { repo, what } => {
            let mut value = cache(what);
            if let Some(repo) = repo {
                value["repo"] = json!(repo.to_string());
            }
            value
        }
        Event::Emptied(aside) => json!({
            "event": "emptied",
            "dir": aside.dir,
            "repo": aside.repo.as_ref().map(ToString::to_string),
            "since": aside.since,
            "bytes": aside.bytes,
        }),
        Event::Trouble { what } => json!({ "event": "trouble", "what": what }),
        Event::Expired { repo, expired } => json!({
            "event": "expired",
            "repo": repo.to_string(),
            "session": expired.session.to_string(),
            "refs": expired.refs,
            "saved": expired.saved,
        }),
        Event::Refreshed(refreshed) => json!({
            "event": "refresh",
            "repo": refreshed.repo.to_string(),
            "trigger": refreshed.trigger.word(),
            "outcome": refreshed.outcome,
            "error": refreshed.error,
            "took_ms": ms(refreshed.took),
            "changed": refreshed.changed,
            "bytes": refreshed.bytes,
        }),
        Event::Maintained(maintained) => json!({
            "event": "maintenance",
            "repo": maintained.repo.to_string(),
            "task": maintained.task.word(),
            "error": maintained.error,
            "took_ms": ms(maintained.took),
            "packs_before": maintained.packs.0,
            "packs_after": maintained.packs.1,
        }),
    };
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    Value::Object(fields).to_string()
}

fn ms(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn request(served: &Served) -> Value {
    let mut value = json!({
        "event": "request",
        "transport": match served.transport {
            crate::event::Transport::Http => "http",
            crate::event::Transport::Git => "git",
        },
        "service": service(served.service),
        "protocol": served.protocol,
        "shape": shape(served.shape),
        "outcome": outcome(served.outcome),
        "took_ms": ms(served.took),
        "queued_ms": ms(served.queued),
        "received": served.received,
        "sent": served.sent,
    });
    for (key, text) in [
        ("repo", served.repo.as_ref().map(ToString::to_string)),
        ("session", served.session.as_ref().map(ToString::to_string)),
        ("said", Some(served.said.clone()).filter(|said| !said.is_empty())),
    ] {
        if let Some(text) = text {
            value[key] = json!(text);
        }
    }
    value
}

fn cache(event: &CacheEvent) -> Value {
    let (what, bytes) = match event {
        CacheEvent::Hit => ("hit", None),
        CacheEvent::Followed => ("followed", None),
        CacheEvent::Filled { bytes } => ("filled", Some(*bytes)),
        CacheEvent::Passed => ("passed", None),
        CacheEvent::Evicted { bytes } => ("evicted", Some(*bytes)),
        CacheEvent::Failed => ("failed", None),
    };
    let mut value = json!({ "event": "cache", "what": what });
    if let Some(bytes) = bytes {
        value["bytes"] = json!(bytes);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::served;

    #[test]
    fn a_request_is_one_line_with_what_it_was() {
        let line = line(&Event::Served(served()), 1_790_000_000_123);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(
            value,
            json!({
                "at": 1_790_000_000_123_u64, "level": "info", "event": "request", "transport": "http",
                "service": "fetch", "protocol": 2, "shape": "shallow", "outcome": "ok", "took_ms": 20, "queued_ms": 0,
                "received": 100, "sent": 5000, "repo": "example.com/o/fresh",
            })
        );
    }

    #[test]
    fn probes_are_no_news_and_failures_are() {
        let mut probe = served();
        probe.service = None;
        assert_eq!(level(&Event::Served(probe.clone())), Level::Debug);
        probe.outcome = crate::event::Outcome::Failed;
        assert_eq!(level(&Event::Served(probe)), Level::Error);
        let trouble = Event::Trouble { what: "no more files".to_owned() };
        assert_eq!(line(&trouble, 5), r#"{"at":5,"event":"trouble","level":"error","what":"no more files"}"#);
    }
}
