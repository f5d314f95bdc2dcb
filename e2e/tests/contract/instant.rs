//! What is inside was the host's state at one instant: files, index and branch together, whoever is at work
//! meanwhile; and where that cannot be had, it is said.

use crate::Subject;
use sandbox_testkit::{Repo, State};
use std::process::Child;

over_drivers! {
    a_checkout_in_a_loop_is_caught_between_two,
    an_index_that_is_rewritten_in_a_loop_is_whole,
    a_lock_that_goes_is_waited_for_and_one_that_stays_is_told,
    commits_in_a_loop_are_caught_between_two,
}

/// A shell script that goes on until it is dropped, or the file `stop` is there.
struct Loop<'r, 'e>(&'r Repo<'e>, Child);

impl<'r, 'e> Loop<'r, 'e> {
    fn start(repo: &'r Repo<'e>, body: &str) -> Self {
        let script = format!("n=0; while test ! -e ../stop; do n=$((n + 1)); {body}; done");
        Self(repo, repo.sh_command(&script).spawn().expect("sh"))
    }

    /// Ends it, and says whether all of it went well.
    fn end(mut self) -> bool {
        self.stop()
    }

    fn stop(&mut self) -> bool {
        let file = self.0.dir().with_file_name("stop");
        std::fs::write(&file, "").expect("a directory of the test");
        let well = self.1.wait().is_ok_and(|status| status.success());
        let _ = std::fs::remove_file(&file);
        well
    }
}

impl Drop for Loop<'_, '_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What each loop does at the end of a round: most follow one another at once, but a machine that needs longer for a
/// capture than for a round must find a quiet moment too.
const PAUSE: &str = "if [ $((n % 10)) = 0 ]; then sleep 1; else sleep 0.03; fi";

/// Spawns so often while something goes on; `check` gets what each prints. At least one must have been caught in a
/// quiet moment; the others say what did not settle.
#[track_caller]
fn meanwhile(subject: &Subject, repo: &Repo, script: &str, check: impl Fn(&str)) {
    let mut settled = 0;
    for _ in 0..12 {
        let seen = subject.spawn(repo, &["--rm"], script);
        if seen.status == 125 {
            assert!(
                seen.stderr.contains("another git command is at work") || seen.stderr.contains("keeps changing"),
                "{seen}"
            );
            continue;
        }
        assert_eq!(seen.status, 0, "{seen}");
        if seen.stderr.contains("kept changing while it was captured: ") {
            continue;
        }
        settled += 1;
        check(&seen.stdout);
    }
    println!("{settled} of 12 settled");
    assert!(settled > 0);
}

fn a_checkout_in_a_loop_is_caught_between_two(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for branch in ["one", "two"] {
        repo.git(&["checkout", "-q", "-b", branch, "main"]).ok();
        for n in 0..150 {
            repo.write(&format!("many/d{}/f{n}", n % 5), format!("{branch} {n}\n"));
        }
        repo.git(&["add", "-A"]).ok();
        repo.git(&["commit", "-q", "-m", branch]).ok();
    }
    subject.spawn(&repo, &["--rm"], "true").ok();
    let switching = Loop::start(&repo, &format!("git checkout -q one && {PAUSE} && git checkout -q two && {PAUSE}"));
    let script = "git symbolic-ref --short HEAD; git status --porcelain; cat many/*/* | cut -d' ' -f1 | sort -u";
    meanwhile(subject, &repo, script, |seen| {
        assert!(["one\none\n", "two\ntwo\n"].contains(&seen), "a state that never was:\n{seen}");
    });
    assert!(switching.end());
}

fn an_index_that_is_rewritten_in_a_loop_is_whole(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.write("f", "0\n");
    repo.git(&["add", "f"]).ok();
    subject.spawn(&repo, &["--rm"], "true").ok();
    let adding = Loop::start(&repo, &format!("echo $n >f && git add f && {PAUSE}"));
    let script = "git fsck --strict 2>&1 | grep -v dangling; git ls-files | wc -l; echo \"$(cat f)\"; git show :f";
    let files = repo.git(&["ls-files"]).ok().lines().count();
    meanwhile(subject, &repo, script, |seen| {
        let lines: Vec<&str> = seen.lines().collect();
        let [count, file, staged] = lines[..] else { panic!("{seen}") };
        let (file, staged): (u64, u64) = (file.parse().unwrap_or(0), staged.parse().unwrap());
        assert_eq!(count, files.to_string());
        // Written, then added: the file is never older than the index, and one ahead at most. Between the opening
        // and the writing it is empty.
        assert!(file == 0 || file == staged || file == staged + 1, "{seen}");
    });
    assert!(adding.end());
}

fn commits_in_a_loop_are_caught_between_two(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["--rm"], "true").ok();
    let committing = Loop::start(&repo, &format!("git commit -q --allow-empty -m \"number $n\" && {PAUSE}"));
    let script = "test \"$(git rev-parse HEAD)\" = \"$(git reflog -1 --format=%H)\" && git fsck --strict && git status --porcelain";
    meanwhile(subject, &repo, script, |seen| assert_eq!(seen, ""));
    assert!(committing.end());
}

fn a_lock_that_goes_is_waited_for_and_one_that_stays_is_told(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.spawn(&repo, &["--rm"], "true").ok();
    repo.write(".git/index.lock", "");
    let removed = repo.sh_command("sleep 0.7; echo late >during; rm .git/index.lock").spawn();
    let seen = subject.spawn(&repo, &["--rm"], "cat during");
    assert_eq!(seen.stdout, "late\n", "{seen}");
    assert!(!seen.stderr.contains("index.lock"), "{seen}");
    removed.expect("sh").wait().expect("our child");
    // One that stays, and nothing else of git's is another: what is there can be had.
    repo.write(".git/index.lock", "");
    let seen = subject.spawn(&repo, &["--rm"], "cat during");
    assert_eq!(seen.stdout, "late\n", "{seen}");
    let lock = repo.dir().join(".git/index.lock");
    let told = format!("note: another git command was at work meanwhile: '{}' exists\n", lock.display());
    assert!(seen.stderr.contains(&told), "{seen}");
    assert!(lock.exists(), "it is not ours");
}
