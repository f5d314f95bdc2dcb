//! The wall clock, for people: when something was made, how long ago that was. It jumps, so nothing is ordered by it
//! and nothing goes by it alone; deadlines are monotonic or of boot time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the Unix time in seconds; 0 before 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns how many thousand times a second this processor's time stamp counter ticks, measured over `span`; `None`
/// on a processor that has none.
#[cfg(target_arch = "x86_64")]
pub fn tsc_khz(span: std::time::Duration) -> Option<u64> {
    let now = || {
        // SAFETY: every x86-64 processor has the instruction, which reads a counter and changes nothing.
        (std::time::Instant::now(), unsafe { core::arch::x86_64::_rdtsc() })
    };
    let (began, first) = now();
    std::thread::sleep(span);
    let (ended, last) = now();
    let micros = u64::try_from((ended - began).as_micros()).ok().filter(|micros| *micros > 0)?;
    Some(last.checked_sub(first)?.saturating_mul(1000) / micros)
}

/// Returns how many thousand times a second this processor's time stamp counter ticks, measured over `span`; `None`
/// on a processor that has none.
#[cfg(not(target_arch = "x86_64"))]
pub fn tsc_khz(_span: std::time::Duration) -> Option<u64> {
    None
}
