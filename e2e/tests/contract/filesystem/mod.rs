//! The merged tree is an ordinary file system: the same program says the same on plain ext4 and inside.
//!
//! ```text
//!   probes/<row>/…  ─ capture ─►  inside: each row twice, on captured files and on files made there
//!        │ cp -a                                          │
//!        └──────────►  plain: the same                    ▼
//!                                └───────────────► must be equal, but for DIFFERENCES
//! ```
//!
//! The program is this test executable itself: a file of the work tree, captured with it. It runs as the
//! same user on both sides. What may differ is what `docs/limits.md` names, and it must differ.

mod files;
mod names;
mod pjdfstest;
mod probe;

use crate::Subject;
use sandbox_testkit::{State, is_root, skip};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

over_views! {
    every_row_says_what_it_says_on_a_plain_file_system,
}

/// One row that is not as outside, and the heading of `docs/limits.md` that tells of it.
struct Difference {
    row: &'static str,
    inside: &'static str,
    limit: &'static str,
}

const HARD_LINKS: &str = "**Hard links from before the capture part at the first write.**";
const INODES: &str = "**Inode numbers of changed files may change over stop and start.**";
const MAPPING: &str = "**A mapping made before the first write stays old.**";
const RENAME: &str = "**The rename of a captured directory is not atomic, and gives it a new inode.**";
const HOLES: &str = "**Holes of a captured file are kept in pieces of 1 MiB when it is first written.**";
const LINKS_LEFT: &str = "**A captured file that was only read says one link after its last name is gone.**";

/// Every difference; a row that is not here must be equal.
const DIFFERENCES: &[Difference] = &[
    Difference { row: "captured links_are_one_file_for_writing", inside: "this is h1", limit: HARD_LINKS },
    Difference { row: "captured hard_link_of_a_file", inside: "false 2 through the first name", limit: INODES },
    Difference { row: "captured a_mapping_sees_a_later_write", inside: "b'this'", limit: MAPPING },
    Difference { row: "captured rename_directory_keeps_its_inode", inside: "false", limit: RENAME },
    Difference { row: "captured rename_while_it_is_a_working_directory", inside: "nothing here", limit: RENAME },
    Difference {
        row: "captured rename_while_the_directory_is_open",
        inside: "No such file or directory (os error 2)",
        limit: RENAME,
    },
    Difference {
        row: "captured holes_after_a_write",
        inside: "4194304..5242880, No such device or address (os error 6), 8388608 false",
        limit: HOLES,
    },
    Difference { row: "captured replace_over_open_file", inside: "this is f 1 new", limit: LINKS_LEFT },
];

fn every_row_says_what_it_says_on_a_plain_file_system(subject: &Subject) {
    if !Path::new("/usr/bin/python3").is_file() {
        skip!("no /usr/bin/python3");
    }
    let repo = subject.repo(State::Plain);
    probe::lay_out(&repo.dir().join("probes"));
    let program = repo.dir().join("probe-program");
    fs::copy(std::env::current_exe().expect("/proc is mounted"), &program).expect("there is room");
    repo.write(".git/info/exclude", "probe*\n");
    let control = plain_directory(subject);
    repo.sh(&format!("cp -a probes '{}'", control.display())).ok();

    let inside = subject.spawn(&repo, &["probed"], &format!("{}; id -u; id -g", probe::script("probes")));
    let (told, ids) = split(&inside.ok());
    let plain = run_plain(&program, &control, ids);
    assert_eq!(told.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>(), "the same rows");

    let limits =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md")).expect("a document");
    // A copy is an ordinary directory.
    let differences = if subject.copied { &[] } else { DIFFERENCES };
    let mut wrong = String::new();
    for (row, outside) in &plain {
        // Two equal failures of the question itself would prove nothing.
        assert!(!outside.starts_with("failed:") && !outside.contains("Error"), "{row} on plain: {outside}");
        let expected = differences.iter().find(|difference| difference.row == row);
        if let Some(difference) = expected {
            assert!(limits.contains(difference.limit), "docs/limits.md does not tell of '{}'", difference.limit);
            assert_ne!(outside, difference.inside, "{row}: no difference, plain");
        }
        let expected = expected.map_or(outside.as_str(), |difference| difference.inside);
        if told[row] != expected {
            wrong += &format!("{row}\n  plain:  {outside}\n  inside: {}\n", told[row]);
        }
    }
    assert!(wrong.is_empty(), "differences that are not in the table:\n{wrong}");
    for difference in differences {
        assert!(plain.contains_key(difference.row), "no row '{}'", difference.row);
    }
}

/// A directory outside whose path is as long as the repository's: an address of a socket may not be longer
/// than 107 bytes.
fn plain_directory(subject: &Subject) -> PathBuf {
    let dir = subject.env.home().join("src/same");
    fs::create_dir(&dir).expect("new");
    if is_root() {
        // The directories of a test are closed to others.
        for above in dir.ancestors().skip(1).take(3) {
            fs::set_permissions(above, PermissionsExt::from_mode(0o711)).expect("ours");
        }
    }
    dir
}

/// Separates the rows' lines from the user's and group's number.
fn split(text: &str) -> (BTreeMap<String, String>, (u32, u32)) {
    let (rows, ids): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains('\t'));
    let rows = rows.iter().filter_map(|line| line.split_once('\t'));
    let rows = rows.map(|(row, said)| (row.to_owned(), said.to_owned())).collect();
    let mut ids = ids.iter().filter_map(|id| id.parse().ok());
    (rows, (ids.next().expect("a user"), ids.next().expect("a group")))
}

/// Runs the rows outside, as the user that they ran as inside.
fn run_plain(program: &Path, dir: &Path, (uid, gid): (u32, u32)) -> BTreeMap<String, String> {
    let mut command = Command::new("sh");
    let away = dir.join("probe-program");
    fs::copy(program, &away).expect("there is room");
    if is_root() {
        let done = Command::new("chown").arg("-R").arg(format!("{uid}:{gid}")).arg(dir).status();
        assert!(done.is_ok_and(|status| status.success()));
        command.uid(uid).gid(gid);
    }
    let output = command.args(["-c", &probe::script("probes")]).current_dir(dir).output().expect("sh exists");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    split(&format!("{text}\n0\n0\n")).0
}
