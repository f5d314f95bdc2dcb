//! What is said when results are brought together, checked, copied or taken back, and that cannot be done.

use super::{plain, spawn};
use sandbox_testkit::{Repo, TestEnv};
use std::fs;
use std::path::PathBuf;

fn with_commits<'e>(env: &'e TestEnv, names: &[&str]) -> Repo<'e> {
    let repo = plain(env);
    for name in names {
        spawn(&repo, &["-q", name], &format!("echo {name} >{name}; git add -A; git commit -qm {name}")).ok();
    }
    repo
}

/// Each of these says this and ends with this status, and nothing of the repository changes.
fn refused(repo: &Repo, table: &[(&[&str], &str, i32)]) {
    let state = || repo.sh("git status --porcelain --branch && git for-each-ref && git log -1 --format=%H").ok();
    let before = state();
    for (args, text, status) in table {
        let seen = repo.sandbox(args);
        assert_eq!((&*seen.stderr, seen.status), (*text, *status), "{args:?}");
        assert_eq!(state(), before, "{args:?}");
    }
}

#[test]
fn several_that_want_what_one_can_have() {
    let env = TestEnv::new();
    let repo = with_commits(&env, &["a", "b"]);
    let one = |flag: &str| {
        format!(
            "error: a conflict of one sandbox is resolved at a time\nhint: `git sandbox merge {flag} NAME`, once the \
             others are merged\n"
        )
    };
    refused(
        &repo,
        &[
            (&["merge", "--into-sandbox", "a", "b"], &one("--into-sandbox"), 129),
            (&["merge", "--markers", "a", "b"], &one("--markers"), 129),
            (
                &["fork", "--count", "2", "a", "c", "d"],
                "error: --count makes names of one\nhint: give one NEW, or no --count\n",
                129,
            ),
        ],
    );
}

#[test]
fn checks_that_say_too_little() {
    let env = TestEnv::new();
    let repo = with_commits(&env, &["a"]);
    refused(
        &repo,
        &[
            (
                &["merge", "--check", "", "a"],
                "error: --check needs a command\nhint: for example --check 'cargo test'\n",
                129,
            ),
            (
                &["merge", "--check", "true", "--check-timeout", "soon", "a"],
                "error: 'soon' is not a time\nhint: for example 90s, 10m, 2h\n",
                129,
            ),
            (
                &["run", "--best-of", "2", "x", "--", "true"],
                "error: --best-of needs a check to tell which is best\nhint: `--check CMD`, or `git config sandbox.check \
                 CMD`\n",
                129,
            ),
        ],
    );
    repo.git(&["config", "sandbox.checkTimeout", "soon"]).ok();
    refused(
        &repo,
        &[(
            &["merge", "--check", "true", "a"],
            "error: 'soon' is not a value of sandbox.checkTimeout\nhint: it is a time such as 90s, 10m, 2h\n",
            128,
        )],
    );
    repo.git(&["config", "--unset", "sandbox.checkTimeout"]).ok();
    // It fails without any of them too: nobody is to blame.
    let seen = repo.sandbox(&["merge", "--check", "false", "a"]).expect(1);
    assert!(
        seen.stderr.contains("error: `false` does not pass on 'main' as it is\n")
            && seen.stderr.ends_with(
                "hint: no sandbox can be blamed, and nothing was merged: mend the branch first, or merge with \
                 `--no-check`\n"
            ),
        "{seen}"
    );
}

#[test]
fn commits_and_labels_that_are_none() {
    let env = TestEnv::new();
    let repo = with_commits(&env, &["a"]);
    let unknown =
        |rev: &str| format!("error: '{rev}' is not a commit that 'a' made\nhint: `git sandbox log a` lists them\n");
    let label = |label: &str| {
        format!(
            "error: '{label}' cannot be the name of a checkpoint\nhint: a label is a line of at most 80 bytes, does not \
             begin with '-', and is not only a number\n"
        )
    };
    repo.sandbox(&["checkpoint", "a", "one"]).ok();
    refused(
        &repo,
        &[
            (&["pick", "a", "1234567"], &unknown("1234567"), 1),
            (&["pick", "a", "HEAD~5"], &unknown("HEAD~5"), 1),
            // What it stands on is not its own.
            (&["pick", "a", "HEAD~1"], &unknown("HEAD~1"), 1),
            (&["checkpoint", "a", "7"], &label("7"), 129),
            (&["checkpoint", "a", "x\ny"], &label("x\\u{a}y"), 129),
            (
                &["checkpoint", "a", "one"],
                "error: 'a' has a checkpoint 'one' already\nhint: `git sandbox checkpoint --list a` lists them; take \
                 another label\n",
                128,
            ),
        ],
    );
}

/// The records of what was done here, newest last.
fn operations(env: &TestEnv) -> Vec<PathBuf> {
    let repos = env.state().join("repos");
    let ops = fs::read_dir(repos).unwrap().flatten().map(|repo| repo.path().join("ops"));
    let files = ops.filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    files.sort();
    files
}

#[test]
fn what_cannot_be_undone_now() {
    let env = TestEnv::new();
    let repo = with_commits(&env, &["a"]);
    repo.sandbox(&["branch", "a", "kept"]).ok();
    let lock = repo.dir().join(".git/refs/heads/kept.lock");
    fs::write(&lock, "").unwrap();
    let seen = repo.sandbox(&["undo"]).expect(128);
    assert!(
        seen.stderr
            .contains("\ncaused by: cannot delete the branch 'kept'\ncaused by: cannot lock ref 'refs/heads/kept'")
            && seen
                .stderr
                .ends_with("hint: nothing was changed: undo it again when no other git command is at work here\n"),
        "{seen}"
    );
    fs::remove_file(&lock).unwrap();

    // Of another version, and then of none: what was done is not passed over in silence.
    let [file] = &operations(&env)[..] else { panic!("one operation: {:?}", operations(&env)) };
    let record = fs::read_to_string(file).unwrap();
    let newer: String = record.lines().filter(|line| !line.contains("\"sum\"")).collect();
    fs::write(file, newer.replace("\"version\": 1", "\"version\": 9").replace("],}", "]}")).unwrap();
    let seen = repo.sandbox(&["undo"]).expect(128);
    assert!(
        seen.stderr.ends_with(
            "caused by: its format is 9, and this version knows 1\nhint: undo it with the version that did it\n"
        ),
        "{seen}"
    );
    fs::write(file, "x").unwrap();
    fs::remove_file(file.with_extension("json.copy")).unwrap();
    for args in [&["undo"][..], &["undo", "1"]] {
        let seen = repo.sandbox(args).expect(128);
        let first = format!("error: '{}' is damaged\n", file.display());
        assert!(
            seen.stderr.starts_with(&first)
                && seen.stderr.ends_with(
                    "hint: `git sandbox repair` makes it whole where it has a copy, else tells the next step; nothing \
                     else is harmed\n"
                ),
            "{seen}"
        );
    }
    let seen = repo.sandbox(&["repair"]).expect(1);
    assert!(
        seen.stdout.contains("there is no copy of it: what it did, and what was done before it, is not undone; `gc` forgets it after its time\n"),
        "{seen}"
    );
    // Whole again, it is undone.
    fs::write(file, record).unwrap();
    repo.sandbox(&["undo"]).ok();
    assert_eq!(repo.git(&["branch", "--list", "kept"]).ok(), "");
}
