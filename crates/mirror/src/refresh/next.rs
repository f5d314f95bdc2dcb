//! What follows from how a refresh ended: a pure function, so that every case can be read here and tested.

use super::trouble::Trouble;
use crate::catalog::State;
use crate::registry::Status;
use std::time::Duration;

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// What is true now.
    pub status: Status,
    /// When it is tried again, before jitter.
    pub wait: Duration,
    /// Not even a webhook may ask this upstream's host again before so long.
    pub host_waits: Option<Duration>,
    /// The mirror is set aside and cloned again.
    pub quarantine: bool,
}

/// Times of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Between two refreshes that go well.
    pub interval: Duration,
    /// The longest wait after failures.
    pub backoff_max: Duration,
    /// How long a denied repository is still served.
    pub max_stale: Duration,
    /// Seconds since 1970.
    pub now: i64,
}

/// The first wait of a host that asks for patience without a time.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a host that asks for more gets: days would be no mirror.
const MOST_PATIENCE: Duration = Duration::from_secs(3600);

/// Decides what follows from an outcome: `Ok` with where the upstream says that it has moved to.
pub fn after(before: &Status, outcome: Result<Option<String>, &Trouble>, times: Times) -> After {
    let mut status = before.clone();
    status.tried = Some(times.now);
    match outcome {
        Ok(moved_to) => {
            status.state = State::Ready;
            status.refreshed = Some(times.now);
            status.failures = 0;
            status.error = None;
            status.denied_since = None;
            status.moved_to = moved_to;
            After { status, wait: times.interval, host_waits: None, quarantine: false }
        }
        Err(trouble) => {
            status.failures = status.failures.saturating_add(1);
            status.error = Some(trouble.to_string());
            let backoff = times.interval.saturating_mul(1 << status.failures.min(16).saturating_sub(1));
            let mut after = After { status, wait: backoff.min(times.backoff_max), host_waits: None, quarantine: false };
            // A long interval is not made shorter by a failure.
            after.wait = after.wait.max(times.interval.min(times.backoff_max));
            match trouble {
                Trouble::Denied(_) => {
                    let since = *after.status.denied_since.get_or_insert(times.now);
                    let stale = i64::try_from(times.max_stale.as_secs()).unwrap_or(i64::MAX);
                    if before.state == State::Ready && times.now.saturating_sub(since) >= stale {
                        after.status.state = State::Gone;
                    }
                }
                Trouble::Throttled { after: asked } => {
                    let asked = asked.unwrap_or(PATIENCE).min(MOST_PATIENCE);
                    after.host_waits = Some(asked);
                    after.wait = after.wait.max(asked);
                }
                Trouble::Corrupt(_) => {
                    after.quarantine = true;
                    after.status.state = State::Quarantined;
                    after.wait = Duration::ZERO;
                    // Broken while it was made again: the disk is, and cloning without end does not mend it.
                    if before.state == State::Quarantined {
                        after.wait = backoff.min(times.backoff_max);
                    }
                }
                Trouble::Raced => after.wait = Duration::from_secs(1).max(times.interval.min(Duration::from_secs(5))),
                _ => {}
            }
            // Anything that is no denial says nothing about whether it may be read; only an answer ends it.
            after
        }
    }
}

/// Moves a wait by at most `jitter` of it, up or down; `dice` is between 0 and 1.
pub fn jittered(wait: Duration, jitter: f64, dice: f64) -> Duration {
    wait.mul_f64((1.0 + jitter * (2.0 * dice - 1.0)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn times(now: i64) -> Times {
        Times { interval: 30 * SECOND, backoff_max: 600 * SECOND, max_stale: 900 * SECOND, now }
    }

    fn ready() -> Status {
        Status { state: State::Ready, refreshed: Some(100), ..Status::default() }
    }

    fn fails(status: &Status, trouble: &Trouble, now: i64) -> After {
        after(status, Err(trouble), times(now))
    }

    #[test]
    fn it_is_asked_less_and_less_while_it_is_away_and_served_all_the_same() {
        let away = Trouble::Unreachable("x".to_owned());
        let mut status = ready();
        let mut waits = Vec::new();
        for now in 0..7 {
            let after = fails(&status, &away, 1000 + now);
            waits.push(after.wait.as_secs());
            status = after.status;
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600]);
        assert_eq!((status.state, status.refreshed, status.failures), (State::Ready, Some(100), 7));
        let back = after(&status, Ok(None), times(2000));
        assert_eq!((back.status.failures, back.status.error, back.wait), (0, None, 30 * SECOND));
    }

    #[test]
    fn what_is_denied_is_served_for_a_while_and_comes_back() {
        let denied = Trouble::Denied("404".to_owned());
        let first = fails(&ready(), &denied, 1000);
        assert_eq!((first.status.state, first.status.denied_since), (State::Ready, Some(1000)));
        // Away in between is no permission.
        let between = fails(&first.status, &Trouble::Timeout(1), 1500);
        assert_eq!(between.status.denied_since, Some(1000));
        assert_eq!(fails(&between.status, &denied, 1899).status.state, State::Ready);
        let gone = fails(&between.status, &denied, 1900);
        assert_eq!(gone.status.state, State::Gone);
        assert_eq!(fails(&gone.status, &denied, 9900).status.state, State::Gone);
        let back = after(&gone.status, Ok(None), times(10_000));
        assert_eq!((back.status.state, back.status.denied_since), (State::Ready, None));
        // What was never served does not become gone.
        assert_eq!(fails(&fails(&Status::default(), &denied, 0).status, &denied, 9000).status.state, State::Cold);
    }

    #[test]
    fn a_host_that_asks_for_patience_gets_it() {
        let ask = |after| fails(&ready(), &Trouble::Throttled { after }, 0);
        assert_eq!(ask(Some(300 * SECOND)).host_waits, Some(300 * SECOND));
        assert_eq!(ask(Some(300 * SECOND)).wait, 300 * SECOND);
        assert_eq!(ask(None).host_waits, Some(PATIENCE));
        assert_eq!(ask(Some(1_000_000 * SECOND)).host_waits, Some(MOST_PATIENCE));
    }

    #[test]
    fn a_corrupt_mirror_is_made_again_at_once_but_not_for_ever() {
        let corrupt = Trouble::Corrupt("x".to_owned());
        let first = fails(&ready(), &corrupt, 0);
        assert_eq!((first.quarantine, first.status.state, first.wait), (true, State::Quarantined, Duration::ZERO));
        let second = fails(&first.status, &corrupt, 1);
        assert_eq!((second.quarantine, second.wait), (true, 60 * SECOND));
        // That the upstream was away before says nothing about the disk.
        let away = fails(&ready(), &Trouble::Timeout(1), 0);
        assert_eq!(fails(&away.status, &corrupt, 1).wait, Duration::ZERO);
        // The clone failing leaves it where clients are sent on.
        let away = fails(&first.status, &Trouble::Timeout(1), 2);
        assert_eq!((away.quarantine, away.status.state), (false, State::Quarantined));
    }

    #[test]
    fn where_it_has_moved_to_is_remembered_until_it_is_not_said() {
        let moved = after(&ready(), Ok(Some("https://h/new".to_owned())), times(1)).status;
        assert_eq!(moved.moved_to.as_deref(), Some("https://h/new"));
        assert_eq!(after(&moved, Ok(None), times(2)).status.moved_to, None);
    }

    #[test]
    fn a_long_interval_is_not_shortened_and_jitter_stays_in_its_bounds() {
        let long = Times { interval: 3600 * SECOND, ..times(0) };
        assert_eq!(after(&ready(), Err(&Trouble::Timeout(1)), long).wait, 600 * SECOND);
        assert_eq!(fails(&ready(), &Trouble::Raced, 0).wait, 5 * SECOND);
        assert_eq!(jittered(10 * SECOND, 0.2, 0.0), 8 * SECOND);
        assert_eq!(jittered(10 * SECOND, 0.2, 1.0), 12 * SECOND);
        assert_eq!(jittered(10 * SECOND, 0.2, 0.5), 10 * SECOND);
    }
}
