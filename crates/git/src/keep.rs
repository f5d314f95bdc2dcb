//! The text of a `.keep` of ours, which keeps a pack from every `gc` until a ref names what is in it.
//!
//! ```text
//! git-sandbox: until a ref names what is in it (<whose> <pid> <start time> <pid namespace> <boot id>)
//! ```
//!
//! Several programs can be at work in one repository, of other users and with other states: a mark is taken away
//! by the operation that it names, or when the process that made it is gone for sure.

use sandbox_sys::process;
use std::fs;
use std::io;

/// What each mark begins with: says what it is to whoever wonders.
const MARK: &str = "git-sandbox: until a ref names what is in it";

/// Returns the text of a mark that this process makes for `whose`: an operation's id, or a kind. One line, without
/// its end.
pub fn text(whose: &str) -> io::Result<String> {
    let pid = std::process::id();
    Ok(format!("{MARK} ({whose} {pid} {} {} {})", process::start_time(pid)?, pid_namespace()?, process::boot_id()?))
}

/// Whether a file's text is a mark for `whose`.
pub fn is_of(found: &str, whose: &str) -> bool {
    words(found).is_some_and(|words| words[0] == whose)
}

/// Whether the process that made a mark is gone. One that cannot be looked at from here is not.
pub fn is_left(found: &str) -> bool {
    let Some([_, pid, start, namespace, boot]) = words(found) else { return false };
    let (Ok(pid), Ok(start), Ok(here)) = (pid.parse(), start.parse(), pid_namespace()) else { return false };
    // No process outlives its boot, whichever namespace it was in.
    let comparable = here == namespace || process::boot_id().is_ok_and(|now| now != boot);
    comparable && matches!(process::open_identified(pid, start, boot), Ok(None))
}

fn words(found: &str) -> Option<[&str; 5]> {
    let inner = found.trim_end().strip_prefix(MARK)?.strip_prefix(" (")?.strip_suffix(')')?;
    inner.split(' ').collect::<Vec<_>>().try_into().ok()
}

/// `pid:[4026531836]`
fn pid_namespace() -> io::Result<String> {
    Ok(fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_its_operation_and_left_when_its_process_is_gone() {
        let live = text("merge").unwrap();
        assert!(is_of(&format!("{live}\n"), "merge") && !is_of(&live, "other"));
        assert!(!is_left(&live));
        let [_, pid, start, namespace, boot] = words(&live).unwrap();
        let made = |pid: &str, start: &str, namespace: &str, boot: &str| {
            format!("{MARK} (merge {pid} {start} {namespace} {boot})\n")
        };
        assert!(!is_left(&made(pid, start, namespace, boot)));
        assert!(is_left(&made(pid, "1", namespace, boot)), "the pid was used again");
        assert!(is_left(&made(pid, start, "pid:[1]", "another")), "of another boot");
        assert!(!is_left(&made(pid, "1", "pid:[1]", boot)), "of a namespace that cannot be looked into");
        assert!(!is_left("theirs\n") && !is_of("theirs\n", "merge") && !is_left(MARK));
    }
}
