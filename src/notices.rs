//! What the user is told at once while a session is relayed: refusals of the network and its end.
//! A hostile session can cause as many as it likes, so they are few: the same host and port once
//! in [`AGAIN`], at most [`MOST`] lines in that time, and the rest as a number.

use crate::event_words;
use sandbox_protocol::event::{Event, Happened, Verdict};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the same host and port are not told again.
const AGAIN: Duration = Duration::from_secs(10);
/// Lines in that time.
const MOST: usize = 10;
/// Lines that wait for a full-screen program to make room.
const HELD: usize = 20;

/// What is to be told about one sandbox. Times are since any fixed moment.
#[derive(Debug)]
pub struct Notices {
    sandbox: String,
    told: BTreeMap<(String, u16), Duration>,
    held: Vec<String>,
    /// Refusals that were not told, and not because they were told before.
    more: usize,
}

impl Notices {
    /// About the sandbox of this name.
    pub fn new(sandbox: &str) -> Self {
        Self { sandbox: sandbox.to_owned(), told: BTreeMap::new(), held: Vec::new(), more: 0 }
    }

    /// Takes an event that has just come.
    pub fn event(&mut self, event: &Event, now: Duration) {
        match &event.what {
            Happened::Network(network) if network.verdict == Verdict::Refused => {
                self.told.retain(|_, at| now.saturating_sub(*at) < AGAIN);
                let key = (network.host.clone(), network.port);
                if self.told.contains_key(&key) {
                    return;
                }
                if self.told.len() >= MOST || self.held.len() >= HELD {
                    self.more += 1;
                    return;
                }
                self.told.insert(key, now);
                self.held.push(event_words::refusal(&self.sandbox, network));
            }
            Happened::NetworkEnded { reason } => self.held.push(event_words::network_ended(&self.sandbox, reason)),
            Happened::NetworkRestarted { reason } => {
                self.held.push(event_words::network_restarted(&self.sandbox, reason));
            }
            // A sandbox can bring these about as often as it likes, too.
            what if self.held.len() < HELD => self.held.extend(event_words::limit(&self.sandbox, what)),
            _ => {}
        }
    }

    /// Whether there is something to tell.
    pub fn waiting(&self) -> bool {
        !self.held.is_empty()
    }

    /// The lines to tell now.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.held)
    }

    /// The lines to tell when the session is over: also how many were left out.
    pub fn last(&mut self) -> Vec<String> {
        let mut lines = self.take();
        match std::mem::take(&mut self.more) {
            0 => {}
            more => lines.push(format!(
                "blocked {} more: `git sandbox events {}` shows them",
                crate::text::count(more, "time"),
                self.sandbox
            )),
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_protocol::event::Network;

    fn refused(host: &str, port: u16) -> Event {
        let network = Network { host: host.into(), port, reason: Some("not-allowed".into()), ..Network::default() };
        Event { at: 0, what: Happened::Network(network) }
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_same_target_is_told_once_in_ten_seconds() {
        let mut notices = Notices::new("a");
        notices.event(&refused("x.example", 443), seconds(0));
        notices.event(&refused("x.example", 443), seconds(9));
        notices.event(&refused("x.example", 80), seconds(9));
        assert_eq!(
            notices.take(),
            [
                "blocked x.example:443 — allow it with: git sandbox allow a x.example",
                "blocked x.example:80 — allow it with: git sandbox allow a x.example:80",
            ]
        );
        notices.event(&refused("x.example", 443), seconds(10));
        notices.event(&refused("x.example", 80), seconds(10));
        assert_eq!(notices.take(), ["blocked x.example:443 — allow it with: git sandbox allow a x.example"]);
        assert_eq!(notices.last(), [""; 0]);
    }

    #[test]
    fn a_flood_becomes_a_number() {
        let mut notices = Notices::new("a");
        for n in 0..1000 {
            notices.event(&refused(&format!("h{n}.example"), 443), seconds(1));
        }
        assert_eq!(notices.take().len(), MOST);
        notices.event(&refused("late.example", 443), seconds(12));
        let last = notices.last();
        assert_eq!(last[0], "blocked late.example:443 — allow it with: git sandbox allow a late.example");
        assert_eq!(last[1], "blocked 990 times more: `git sandbox events a` shows them");
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut notices = Notices::new("a");
        for n in 0..1000 {
            notices.event(&refused(&format!("h{n}.example"), 443), seconds(n * 2));
        }
        assert_eq!(notices.take().len(), HELD);
    }

    #[test]
    fn only_what_is_urgent_is_told() {
        let mut notices = Notices::new("a");
        let mut allowed = refused("x.example", 443);
        if let Happened::Network(network) = &mut allowed.what {
            network.verdict = Verdict::Allowed;
        }
        notices.event(&allowed, seconds(0));
        notices.event(&Event { at: 0, what: Happened::Stopped }, seconds(0));
        assert!(!notices.waiting());
        notices.event(&Event { at: 0, what: Happened::NetworkEnded { reason: "killed\u{1b}".into() } }, seconds(0));
        assert_eq!(notices.take(), ["the network of 'a' has ended: killed\\u{1b}"]);
    }
}
