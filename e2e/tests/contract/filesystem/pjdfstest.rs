//! pjdfstest, the POSIX suite that file systems are tested with: each of its 398 cases ends inside as
//! it ends on a plain file system, for the ordinary user and for the one that `--root` shows as root.
//!
//! The control for `--root` is the same user as root of a user namespace of its own, without
//! capabilities, on the plain file system: cases that need more fail on both sides alike.

use crate::Subject;
use sandbox_testkit::{State, is_root, skip, which};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Both users exist inside and outside. The pause is longer than a tick of the clock that stamps files.
const CONFIG: &str = r#"[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["root", "root"]]
"#;

/// The C library looks at the kind of file system for this one, and leaves the case out on an overlay.
const LINK_MAX: &str = "link::link_count_max";

mod namespace {
    #[test]
    #[ignore = "half a minute: cargo xtask test --all"]
    fn every_case_ends_as_on_a_plain_file_system() {
        super::every_case_ends_as_on_a_plain_file_system(&crate::Subject::new("namespace"));
    }
}

fn every_case_ends_as_on_a_plain_file_system(subject: &Subject) {
    let Some(program) = std::env::var_os("PJDFSTEST").map(PathBuf::from).or_else(|| which("pjdfstest")) else {
        skip!("no pjdfstest: `cargo xtask test --all` installs it");
    };
    let repo = subject.repo(State::Plain);
    let plain = super::plain_directory(subject);
    for dir in [repo.dir(), &plain] {
        fs::copy(&program, dir.join("pjdfstest")).expect("there is room");
        fs::set_permissions(dir.join("pjdfstest"), PermissionsExt::from_mode(0o755)).expect("ours");
        fs::write(dir.join("pjdfstest.toml"), CONFIG).expect("there is room");
    }
    // By a short name: the addresses of sockets end at 107 bytes, and the directories of a test are deep.
    let run = "short=$(mktemp -d /tmp/XXXXXX) && ln -s \"$PWD\" $short/t || exit
        ./pjdfstest -c pjdfstest.toml -p $short/t 2>/dev/null
        rm -r $short; id -u >&2; id -g >&2";

    let inside = subject.spawn(&repo, &["ordinary"], run);
    let ids: Vec<u32> = inside.stderr.lines().filter_map(|line| line.parse().ok()).collect();
    let outside = on_plain(&plain, &["sh", "-c", run], (ids[0], ids[1]));
    let (inside, outside) = (cases(&inside.stdout), cases(&outside));
    assert!(count(&outside, "ok") > 240, "the control: {}", count(&outside, "ok"));
    assert_eq!(count(&outside, "FAILED"), 0, "the control");
    assert_eq!(different(&inside, &outside), [LINK_MAX]);

    let inside = cases(&subject.spawn(&repo, &["rooted", "--root"], run).stdout);
    let as_root = ["unshare", "-Ur", "setpriv", "--securebits", "+noroot", "--inh-caps=-all", "--bounding-set=-all"];
    let outside = cases(&on_plain(&plain, &[&as_root[..], &["sh", "-c", run]].concat(), (ids[0], ids[1])));
    assert!(count(&outside, "ok") > 280, "the control: {}", count(&outside, "ok"));
    for case in different(&inside, &outside) {
        // The only device that a user may make anywhere is the overlay's own sign for "gone": it is refused.
        let device = case.ends_with("::char") && inside[case] == "FAILED";
        assert!(device || case == LINK_MAX, "{case}: plain: {}, inside: {}", outside[case], inside[case]);
    }
}

fn on_plain(dir: &Path, words: &[&str], (uid, gid): (u32, u32)) -> String {
    let mut command = Command::new(words[0]);
    if is_root() {
        std::os::unix::fs::chown(dir, Some(uid), Some(gid)).expect("root gives away");
        command.uid(uid).gid(gid);
    }
    let output = command.args(&words[1..]).current_dir(dir).output().expect("a program of every machine");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How each case ended.
fn cases(output: &str) -> BTreeMap<String, String> {
    let lines = output.lines().filter_map(|line| line.rsplit_once(' '));
    let ends = lines.filter(|(case, end)| !case.starts_with(['\t', ' ']) && ["ok", "skipped", "FAILED"].contains(end));
    ends.map(|(case, end)| (case.trim_end().to_owned(), end.to_owned())).collect()
}

fn count(cases: &BTreeMap<String, String>, end: &str) -> usize {
    cases.values().filter(|other| *other == end).count()
}

fn different<'c>(one: &'c BTreeMap<String, String>, other: &BTreeMap<String, String>) -> Vec<&'c str> {
    assert!(one.keys().eq(other.keys()), "not the same cases: {} and {}", one.len(), other.len());
    one.iter().filter(|(case, end)| other[*case] != **end).map(|(case, _)| case.as_str()).collect()
}
