//! What is due: a pure function.

use super::Task;
use crate::config::Maintenance;
use crate::registry::Status;
use std::time::Duration;

/// What the packs of a repository are like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packs {
    /// How many.
    pub count: usize,
    /// Of these, with what nothing reaches.
    pub cruft: usize,
    /// A bitmap covers some.
    pub bitmap: bool,
}

impl Packs {
    /// Whether there is anything to gain.
    fn untidy(self) -> bool {
        self.count > 0 && (!self.bitmap || self.count - self.cruft.min(self.count) > 1)
    }
}

/// Decides which task is due for a repository, if any. `now` is in seconds since 1970.
pub fn next(status: &Status, packs: Packs, config: &Maintenance, now: i64) -> Option<Task> {
    let over = |last: Option<i64>, every: Duration| {
        let every = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
        last.is_none_or(|last| now.saturating_sub(last) >= every || last > now)
    };
    let minute = u16::try_from(now.rem_euclid(86_400) / 60).unwrap_or(0);
    let in_window = config.window.is_none_or(|window| window.contains(minute));
    if packs.count == 0 {
        return None;
    }
    // Its first geometric repack makes a new mirror fast; a full one can wait for the night.
    if in_window && status.repacked.is_some() && over(status.repacked_whole, config.full_every) {
        return Some(Task::Full);
    }
    (packs.untidy() && over(status.repacked, config.geometric_every)).then_some(Task::Geometric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const DAY: i64 = 86_400;
    const NIGHT: i64 = 100 * DAY + 3 * 3600;
    const NOON: i64 = 100 * DAY + 12 * 3600;

    fn due(repacked: Option<i64>, whole: Option<i64>, packs: Packs, now: i64) -> Option<Task> {
        let status = Status { repacked, repacked_whole: whole, ..Status::default() };
        next(&status, packs, &Config::default().maintenance, now)
    }

    #[test]
    fn many_packs_are_made_few_and_all_of_them_one_at_night() {
        let untidy = Packs { count: 5, cruft: 0, bitmap: true };
        let tidy = Packs { count: 2, cruft: 1, bitmap: true };
        assert_eq!(due(None, None, untidy, NIGHT), Some(Task::Geometric));
        assert_eq!(due(Some(NOON - 599), None, untidy, NOON), None);
        assert_eq!(due(Some(NOON - 600), None, untidy, NOON), Some(Task::Geometric));
        assert_eq!(due(Some(NOON - DAY), None, tidy, NOON), None);
        assert_eq!(due(Some(NIGHT - DAY), None, tidy, NIGHT), Some(Task::Full));
        assert_eq!(due(Some(NIGHT), Some(NIGHT - 7 * DAY), tidy, NIGHT), Some(Task::Full));
        assert_eq!(due(Some(NIGHT), Some(NIGHT - 6 * DAY), tidy, NIGHT), None);
        assert_eq!(due(None, None, Packs { bitmap: false, ..tidy }, NOON), Some(Task::Geometric));
        assert_eq!(due(None, None, Packs::default(), NIGHT), None, "nothing came yet");
        // A clock that was put back does not stop it.
        assert_eq!(due(Some(NOON + DAY), None, untidy, NOON), Some(Task::Geometric));
    }
}
