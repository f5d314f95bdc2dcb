//! The wall clock, for people: when something was made, how long ago that was. It jumps, so nothing is ordered by it
//! and nothing goes by it alone; deadlines are monotonic or of boot time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the Unix time in seconds; 0 before 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
