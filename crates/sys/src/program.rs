//! The memory of the program itself in a process that mostly waits.

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

/// After so long without work what was used so far is hardly used again soon.
const QUIET: Duration = Duration::from_millis(300);

/// Notices when a process that waits in a loop has had nothing to do for a while, and then gives memory back: once,
/// until there is work again.
#[derive(Debug)]
pub struct Quiet {
    worked: Instant,
    done: bool,
    /// There is a disk that the program comes back from.
    backed: bool,
}

impl Quiet {
    /// Begins with a process that has just worked.
    pub fn new() -> Self {
        Self { worked: Instant::now(), done: false, backed: is_backed() }
    }

    /// Returns how long to wait at most, where `timeout` is due anyway (`None`: nothing is).
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Duration> {
        if self.done {
            return timeout;
        }
        let left = QUIET.saturating_sub(self.worked.elapsed());
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }

    /// Takes note of the end of a wait: somebody has come with work, or some time has passed.
    pub fn waited(&mut self, work: bool) {
        if work {
            (self.worked, self.done) = (Instant::now(), false);
        } else if !self.done && self.worked.elapsed() >= QUIET {
            self.done = true;
            super::heap::trim();
            if self.backed {
                let_go();
            }
        }
    }
}

impl Default for Quiet {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether the program lies on a file system that is not memory itself: a guest's initramfs is, and letting go of its
/// pages would give nothing back. (There it also ended the guest, tried with Linux 6.1.)
fn is_backed() -> bool {
    const RAMFS: i64 = 0x8584_58f6;
    const TMPFS: i64 = 0x0102_1994;
    rustix::fs::statfs("/proc/self/exe").is_ok_and(|stat| ![RAMFS, TMPFS].contains(&stat.f_type))
}

/// Lets go of all pages of the program that are never written: its code and its constants. Those that are used
/// again come back from the page cache, or the disk.
pub fn let_go() {
    // SAFETY: `segments` is called meanwhile only, and does not unwind.
    unsafe {
        libc::dl_iterate_phdr(Some(segments), std::ptr::null_mut());
    }
}

/// Handles the first object, which is the program, and ends the iteration.
unsafe extern "C" fn segments(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the C library hands out a valid description, with the program's own headers.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    let page = rustix::param::page_size();
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        let at = base + header.p_vaddr as usize;
        // Whole pages of the segment only.
        let (start, end) = (at.next_multiple_of(page), (at + header.p_memsz as usize) / page * page);
        if start < end {
            // SAFETY: the segment is a private mapping of a file, and without PF_W nothing in it was ever written, not
            // by relocations either: what is dropped is read again as it was. Linux hands out the file that was
            // executed even if it has been replaced, and lets nobody write to it.
            unsafe {
                libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED);
            }
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let before: String = (0..1000).map(|n| format!("{n:x}")).collect();
        let_go();
        assert_eq!((0..1000).map(|n| format!("{n:x}")).collect::<String>(), before);
    }

    #[test]
    fn memory_is_given_back_once_in_each_quiet_time() {
        let mut quiet = Quiet::new();
        assert!(quiet.wait(None).is_some_and(|left| left <= QUIET));
        assert_eq!(quiet.wait(Some(Duration::ZERO)), Some(Duration::ZERO));
        quiet.waited(true);
        assert!(!quiet.done);
        quiet.worked = Instant::now().checked_sub(QUIET).unwrap();
        assert_eq!(quiet.wait(Some(QUIET)), Some(Duration::ZERO));
        quiet.waited(false);
        assert!(quiet.done);
        assert_eq!((quiet.wait(None), quiet.wait(Some(QUIET))), (None, Some(QUIET)));
        quiet.waited(false);
        assert!(quiet.done);
        quiet.waited(true);
        assert!(!quiet.done && quiet.wait(None).is_some());
    }
}
