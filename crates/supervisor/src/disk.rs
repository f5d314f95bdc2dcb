//! Room on the disk: what is kept for the host is not written by a sandbox, nor more by one than its limit.
//!
//! ```text
//!                      free < reserve, or written ≥ limit
//!   runs ──────────────────────────────────────────────────────► frozen: every process that users started is
//!    │ ◄── room again, seen by itself or by `start` ────────────  stopped; commit-back and rescue go on
//!    └ written ≥ 4/5 of the limit: told once
//! ```
//!
//! Free room is asked of the file system: a microsecond, as often as the fastest disk could use up what is left.
//! What a sandbox has written is counted, some milliseconds at a time between other things, when so much of the disk
//! went that it may matter. Nothing is deleted, and nothing is killed that can be stopped.

use crate::count::Count;
use crate::supervise::{ClientStream, Phase, Route, Supervisor, after, failure};
use sandbox_core::space::{Need, Reserve, Room};
use sandbox_core::store::{SandboxDir, write_json};
use sandbox_protocol::event::{Frozen, FrozenBy, Happened};
use sandbox_protocol::{FailureKind, Message};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The time between two looks, at least and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The same while it is frozen.
const FROZEN: Duration = Duration::from_secs(1);
/// Bytes that a fast disk writes in a second.
const RATE: u64 = 2 << 30;
/// Inodes that are made in a second.
const INODE_RATE: u64 = 200_000;
/// The time between two counts of what was written, at least, and as a multiple of how long one takes.
const COUNT: (Duration, u32) = (Duration::from_millis(200), 20);
/// After this time it is counted again whatever went of the disk.
const COUNT_ANYWAY: Duration = Duration::from_secs(10);
/// How long counting may keep other things waiting.
const SLICE: Duration = Duration::from_millis(3);
/// The same when somebody waits for the result.
const SLICE_ASKED: Duration = Duration::from_secs(2);
/// How long the agent may take to stop everything before it is done without it.
const ANSWER: Duration = Duration::from_secs(2);

/// What is watched, and what was seen.
#[derive(Debug)]
pub(crate) struct Disk {
    reserve: Reserve,
    /// Bytes that the sandbox may write.
    limit: Option<u64>,
    /// What it can write to.
    own: Vec<PathBuf>,
    pub(crate) next: Instant,
    /// A count under way.
    count: Option<Count>,
    /// What the last count found; at least that, where it ended at the limit.
    used: u64,
    /// When that was, how long it took, and what was free then.
    counted: Option<(Instant, Duration, u64)>,
    /// It was told that it is nearly as much as it may be.
    told: bool,
    pub(crate) frozen: Option<Frozen>,
    /// The agent was asked to stop everything, on this stream; it answers until then.
    asked: Option<(u32, Instant)>,
    /// The machine was frozen as a whole, because the agent did not answer.
    pub(crate) whole: bool,
}

impl Disk {
    pub(crate) fn new(dir: &SandboxDir, reserve: Reserve, limit: Option<u64>, uppers: Vec<PathBuf>) -> Self {
        let own = uppers.into_iter().chain([dir.home(), dir.tmp()]).collect();
        Self {
            reserve,
            limit,
            own,
            next: Instant::now(),
            count: None,
            used: 0,
            counted: None,
            told: false,
            frozen: None,
            asked: None,
            whole: false,
        }
    }

    /// Whether it is time to count again.
    fn wants_count(&self, now: Instant, free: u64) -> bool {
        let Some(limit) = self.limit else { return false };
        let Some((at, took, free_then)) = self.counted else { return true };
        let since = now.saturating_duration_since(at);
        if since < COUNT.0.max(took * COUNT.1) {
            return false;
        }
        let gone = free_then.saturating_sub(free);
        // Frozen, it can only become less, by the hand of somebody.
        gone >= limit.saturating_sub(self.used) / 2
            || self.frozen.is_some()
            || since >= COUNT_ANYWAY && free != free_then
    }

    /// The time until what is left could be used up.
    fn pause(&self, room: &Room) -> Duration {
        if self.frozen.is_some() {
            return FROZEN;
        }
        let left = |free: u64, kept: u64, rate: u64| free.saturating_sub(kept) as f64 / rate as f64;
        let none = self.reserve == Reserve::None;
        let bytes = if none { f64::MAX } else { left(room.bytes, self.reserve.bytes(room), RATE) };
        let inodes = match room.inodes {
            Some(free) if !none => left(free, self.reserve.inodes(room), INODE_RATE),
            _ => f64::MAX,
        };
        let own = self.limit.map_or(f64::MAX, |limit| left(limit, self.used, RATE));
        let seconds = bytes.min(inodes).min(own).clamp(LOOK.0.as_secs_f64(), LOOK.1.as_secs_f64());
        Duration::from_secs_f64(seconds)
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Freeze(Frozen),
    GoOn,
}

/// Decides by what is free and by what was written, when that was counted to its end.
fn decide(room: &Room, reserve: Reserve, written: Option<(u64, Option<u64>)>, frozen: Option<Frozen>) -> Step {
    if let Some(short) = room.short(reserve, Need::default()) {
        let why = if short.inodes { FrozenBy::NoInodes } else { FrozenBy::DiskFull };
        return match frozen {
            Some(frozen) if frozen.why != FrozenBy::Limit => Step::Nothing,
            _ => Step::Freeze(Frozen { why, have: short.free, bound: short.kept }),
        };
    }
    // A little more than the reserve, or it would be frozen again at once.
    let more = Need { bytes: reserve.bytes(room) / 8, inodes: reserve.inodes(room) / 8 };
    let over = |used: u64, limit: u64| Frozen { why: FrozenBy::Limit, have: used, bound: limit };
    match (frozen, written) {
        (None, Some((used, Some(limit)))) if used >= limit => Step::Freeze(over(used, limit)),
        (Some(frozen), Some((used, Some(limit)))) if frozen.why == FrozenBy::Limit => {
            // Who was let in to make room is not let go on writing.
            let again = frozen.have.saturating_add(limit / 20);
            match used {
                used if used < limit => Step::GoOn,
                used if used > again => Step::Freeze(over(used, limit)),
                _ => Step::Nothing,
            }
        }
        (Some(frozen), Some((_, None))) if frozen.why == FrozenBy::Limit => Step::GoOn,
        (Some(frozen), _) if frozen.why != FrozenBy::Limit && room.short(reserve, more).is_none() => Step::GoOn,
        _ => Step::Nothing,
    }
}

/// Why a sandbox is frozen, for whoever is refused because of it.
pub(crate) fn words(frozen: &Frozen) -> &'static str {
    match frozen.why {
        FrozenBy::DiskFull => "the sandbox is frozen: its disk is full but for what is kept for the host",
        FrozenBy::NoInodes => "the sandbox is frozen: its disk has no inodes left but those kept for the host",
        FrozenBy::Limit | FrozenBy::Unknown => "the sandbox is frozen: it has written as much as it may",
    }
}

impl Supervisor {
    /// Looks at the disk, and goes on counting.
    pub(crate) fn disk_timer(&mut self, now: Instant) {
        if let Some((stream, until)) = self.disk.asked
            && until <= now
            && self.frozen_for.is_empty()
        {
            self.disk.asked = None;
            self.routes.remove(&stream);
            self.disk_freeze_whole();
        }
        if self.disk.next > now || self.phase != Phase::Running {
            return;
        }
        let Ok(room) = Room::of(self.dir.path()) else {
            self.disk.next = after(LOOK.1);
            return;
        };
        if self.disk.count.is_none() && self.disk.wants_count(now, room.bytes) {
            self.disk.count = Some(Count::new(self.disk.own.clone()));
        }
        let counted = self.disk_count(&room, SLICE);
        let step = decide(&room, self.disk.reserve, counted, self.disk.frozen);
        self.disk_step(step);
        self.disk.next = match &self.disk.count {
            Some(_) => Instant::now(),
            None => after(self.disk.pause(&room)),
        };
    }

    /// Goes on counting what was written; the result, with its limit, once all is counted.
    fn disk_count(&mut self, room: &Room, time: Duration) -> Option<(u64, Option<u64>)> {
        let disk = &mut self.disk;
        let Some(limit) = disk.limit else { return Some((0, None)) };
        let count = disk.count.as_mut()?;
        if !count.go_on(time, limit.saturating_add(limit / 4)) {
            return None;
        }
        let count = disk.count.take()?;
        disk.used = count.bytes;
        disk.counted = Some((Instant::now(), count.took, room.bytes));
        let (used, low) = (disk.used, limit / 5 * 4);
        if used >= low && !disk.told {
            disk.told = true;
            self.happened(Happened::DiskLow { used, limit });
        } else if used < limit / 5 * 3 {
            disk.told = false;
        }
        Some((used, Some(limit)))
    }

    fn disk_step(&mut self, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Freeze(why) => self.disk_freeze(why),
            Step::GoOn => self.disk_thaw(),
        }
    }

    fn disk_freeze(&mut self, why: Frozen) {
        let stream = self.new_stream();
        self.routes.insert(stream, Route::Hold);
        self.agent.control(stream, &Message::Hold { on: true });
        self.agent.flush();
        self.disk.asked = Some((stream, after(ANSWER)));
        self.disk.frozen = Some(why);
        self.disk_say(Happened::Frozen(why));
    }

    /// The agent does not get to it: the control group, or the end.
    fn disk_freeze_whole(&mut self) {
        match self.machine.freeze() {
            Ok(()) => self.disk.whole = true,
            Err(error) => {
                let _ = self.machine.thaw();
                let words = format!("error: the sandbox cannot be frozen, and is ended: {error}\n");
                let _ = io::stderr().write_all(words.as_bytes());
                self.end_now();
                // Not by itself: it has not crashed.
                self.phase = Phase::Dying { asked: true, tell: Some(after(ANSWER)) };
            }
        }
    }

    fn disk_thaw(&mut self) {
        if std::mem::take(&mut self.disk.whole) && self.frozen_for.is_empty() {
            let _ = self.machine.thaw();
        }
        if let Some((stream, _)) = self.disk.asked.take() {
            self.routes.remove(&stream);
        }
        let stream = self.new_stream();
        self.routes.insert(stream, Route::Hold);
        self.agent.control(stream, &Message::Hold { on: false });
        self.disk.frozen = None;
        self.disk_say(Happened::Thawed);
    }

    fn disk_say(&mut self, what: Happened) {
        self.status.frozen = self.disk.frozen;
        // Where not even that can be written, those who are told know it, and `list` does not.
        let _ = write_json(&self.dir.status(), &self.status, false);
        self.happened(what);
    }

    /// The agent has stopped everything, or let it go on.
    pub(crate) fn disk_held(&mut self, stream: u32) {
        self.disk.asked.take_if(|(asked, _)| *asked == stream);
    }

    /// Somebody says that there is room now, or gives it more.
    pub(crate) fn disk_go_on(&mut self, from: ClientStream, limit: Option<u64>) {
        if let Some(limit) = limit {
            self.disk.limit = Some(limit).filter(|limit| *limit > 0);
            self.disk.told = false;
        }
        if self.disk.frozen.is_none() && limit.is_none() {
            return self.answer(from, &failure(FailureKind::Other, "the sandbox is not frozen"));
        }
        if let Ok(room) = Room::of(self.dir.path()) {
            self.disk.count = Some(Count::new(self.disk.own.clone()));
            let counted = self.disk_count(&room, SLICE_ASKED);
            let step = decide(&room, self.disk.reserve, counted, self.disk.frozen);
            self.disk_step(step);
        }
        self.disk.next = Instant::now();
        match self.disk.frozen {
            Some(frozen) => self.answer(from, &failure(FailureKind::Frozen, words(&frozen))),
            None => self.answer(from, &Message::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn room(free: u64, inodes: u64) -> Room {
        Room { bytes: free * MIB, inodes: Some(inodes), of_bytes: 1000 * MIB, of_inodes: 1000 }
    }

    fn by(why: FrozenBy, have: u64, bound: u64) -> Frozen {
        Frozen { why, have, bound }
    }

    #[test]
    fn below_the_reserve_it_is_frozen_and_goes_on_above_it() {
        let step = |free, inodes, frozen| decide(&room(free, inodes), Reserve::Auto, Some((0, None)), frozen);
        assert_eq!(step(50, 500, None), Step::Nothing);
        let full = by(FrozenBy::DiskFull, 49 * MIB, 50 * MIB);
        assert_eq!(step(49, 500, None), Step::Freeze(full));
        assert_eq!(step(49, 500, Some(full)), Step::Nothing, "once");
        assert_eq!(step(51, 500, Some(full)), Step::Nothing, "it would be frozen again at once");
        assert_eq!(step(57, 500, Some(full)), Step::GoOn);
        let inodes = by(FrozenBy::NoInodes, 49, 50);
        assert_eq!(step(500, 49, None), Step::Freeze(inodes));
        assert_eq!(step(500, 56, Some(inodes)), Step::GoOn);
        assert_eq!(decide(&room(0, 0), Reserve::None, Some((0, None)), None), Step::Nothing);
    }

    #[test]
    fn over_its_limit_it_is_frozen_until_less_is_written() {
        let step = |used, limit, frozen| decide(&room(500, 500), Reserve::Auto, Some((used, limit)), frozen);
        let over = by(FrozenBy::Limit, 105, 100);
        assert_eq!(step(99, Some(100), None), Step::Nothing);
        assert_eq!(step(105, Some(100), None), Step::Freeze(over));
        assert_eq!(step(108, Some(100), Some(over)), Step::Nothing, "somebody is at work to make room");
        assert_eq!(step(111, Some(100), Some(over)), Step::Freeze(by(FrozenBy::Limit, 111, 100)));
        assert_eq!(step(99, Some(100), Some(over)), Step::GoOn);
        assert_eq!(step(105, Some(200), Some(over)), Step::GoOn, "it was given more");
        assert_eq!(step(105, None, Some(over)), Step::GoOn);
        assert_eq!(decide(&room(500, 500), Reserve::Auto, None, Some(over)), Step::Nothing, "not counted yet");
    }

    #[test]
    fn it_is_looked_as_often_as_it_could_be_full() {
        let root = tempfile::tempdir().unwrap();
        let store = sandbox_core::store::Store::open(&root.path().join("s")).unwrap();
        let dir = store.sandbox(&sandbox_core::id::SandboxId::random());
        let disk = |reserve, limit| Disk::new(&dir, reserve, limit, Vec::new());
        let far = Room { bytes: 100 << 30, inodes: Some(9_000_000), of_bytes: 200 << 30, of_inodes: 10_000_000 };
        assert_eq!(disk(Reserve::Auto, None).pause(&far), LOOK.1);
        assert_eq!(disk(Reserve::Auto, Some(100 * MIB)).pause(&far), LOOK.0);
        let near = Room { bytes: 4 << 30, ..far };
        assert_eq!(disk(Reserve::Auto, None).pause(&near), Duration::from_secs(1));
        assert_eq!(disk(Reserve::None, None).pause(&near), LOOK.1);
        let few = Room { inodes: Some(200_000), ..far };
        assert_eq!(disk(Reserve::Auto, None).pause(&few), Duration::from_millis(500));
    }
}
