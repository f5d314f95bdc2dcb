//! The table of git states: what a program sees inside is what it sees on the host, and the
//! host does not change. Each row works, or is refused by name.

use crate::Subject;
use sandbox_testkit::{DIGEST_SCRIPT, State, skip, which};

/// What becomes of a row.
enum Row {
    /// Inside is what was outside.
    Works,
    /// `spawn` refuses and says this.
    #[allow(dead_code, reason = "no row is refused today")]
    Refused(&'static str),
}

/// Looks at everything that git and a program can see, changing nothing.
pub(crate) const LOOK: &str = r#"
export GIT_OPTIONAL_LOCKS=0
echo "== status";     git status --porcelain=v2 --branch --ignored
echo "== stage";      git ls-files --stage
echo "== skipped";    git ls-files -t | grep -v '^H'
echo "== stash";      git stash list --format='%gd %H %gs'
echo "== changes";    git diff --raw --no-abbrev; git diff --cached --raw --no-abbrev
echo "== HEAD";       git rev-parse -q --verify HEAD; git symbolic-ref -q HEAD; git rev-parse --is-shallow-repository
echo "== operation"
for name in MERGE_HEAD MERGE_MSG MERGE_MODE AUTO_MERGE ORIG_HEAD CHERRY_PICK_HEAD REVERT_HEAD REBASE_HEAD \
    BISECT_LOG BISECT_START BISECT_TERMS BISECT_NAMES sequencer rebase-merge rebase-apply
do
    path=$(git rev-parse --git-path "$name")
    test -e "$path" && find "$path" -type f | LC_ALL=C sort | while read -r file
    do
        echo "$name ${file#"$path"} $(sha256sum <"$file")"
    done
done
git for-each-ref refs/bisect refs/rewritten
echo "== submodules"; git submodule status --recursive
git submodule foreach --quiet --recursive 'git status --porcelain=v2 --branch --ignored; git ls-files --stage'
for inner in vendor/inner; do
    test -d "$inner" && git -C "$inner" status --porcelain=v2 --branch --ignored && git -C "$inner" rev-parse HEAD
done
echo "== tree"
"#;

#[track_caller]
fn row(subject: &Subject, state: State, row: Row) {
    if let Some(reason) = state.unavailable(&subject.env) {
        skip!("{reason}");
    }
    let repo = subject.repo(state);
    let look = format!("{LOOK}{DIGEST_SCRIPT}");
    let before = repo.sh(&look).stdout;
    let inside = subject.spawn(&repo, &["row"], &look);
    let after = repo.sh(&look).stdout;
    assert_eq!(after, before, "the host changed");
    match row {
        Row::Works => {
            assert_eq!(inside.status, 0, "{}", inside.stderr);
            similar(&inside.stdout, &before);
            let fsck = subject.exec(&repo, "row", "git fsck --full --strict 2>&1");
            assert_eq!(fsck.status, 0, "git fsck inside: {fsck}");
        }
        Row::Refused(text) => {
            assert!(inside.stderr.contains(text), "{inside}");
            assert_eq!(inside.status, 125, "{inside}");
            assert_eq!(repo.sandbox(&["list", "--json"]).ok().matches("\"name\"").count(), 0, "half made");
        }
    }
}

/// Compares two texts and shows only the lines that differ.
#[track_caller]
pub(crate) fn similar(inside: &str, host: &str) {
    if inside == host {
        return;
    }
    let only = |these: &str, those: &str| {
        let those: std::collections::HashSet<&str> = those.lines().collect();
        these.lines().filter(|line| !those.contains(line)).map(|line| format!("{line}\n")).collect::<String>()
    };
    panic!("only on the host:\n{}\nonly inside:\n{}", only(host, inside), only(inside, host));
}

macro_rules! rows {
    ($($name:ident: $state:ident $row:expr;)*) => {
        $(fn $name(subject: &Subject) { row(subject, State::$state, $row) })*
        over_views! { $($name),*, first_status_opens_what_it_opens_on_the_host, every_state_has_a_row,
            a_continued_operation_ends_as_in_a_copy }
        const ROWS: &[State] = &[$(State::$state),*];
    };
}

rows! {
    plain: Plain Row::Works;
    dirty: Dirty Row::Works;
    staged: Staged Row::Works;
    staged_then_changed: StagedThenChanged Row::Works;
    conflict: Conflict Row::Works;
    rebase_merge: RebaseMerge Row::Works;
    rebase_apply: RebaseApply Row::Works;
    cherry_pick: CherryPick Row::Works;
    bisect: Bisect Row::Works;
    stash: Stash Row::Works;
    detached: Detached Row::Works;
    unborn: Unborn Row::Works;
    linked_worktree: LinkedWorktree Row::Works;
    submodule: Submodule Row::Works;
    sparse: Sparse Row::Works;
    shallow: Shallow Row::Works;
    partial: Partial Row::Works;
    lfs_pointers: LfsPointers Row::Works;
    sha256: Sha256 Row::Works;
    reftable: Reftable Row::Works;
    nested: Nested Row::Works;
    large_ignored: LargeIgnored Row::Works;
    skipped_entries: SkippedEntries Row::Works;
    revert: Revert Row::Works;
    am: Am Row::Works;
    notes: Notes Row::Works;
    split_index: SplitIndex Row::Works;
    untracked_cache: UntrackedCache Row::Works;
    sparse_index: SparseIndex Row::Works;
    fs_monitor: FsMonitor Row::Works;
    alternates: Alternates Row::Works;
    separate_git_dir: SeparateGitDir Row::Works;
    odd_names: OddNames Row::Works;
    file_kinds: FileKinds Row::Works;
    settings: Settings Row::Works;
    racy_change: RacyChange Row::Works;
    many_refs: ManyRefs Row::Works;
}

/// What is under way, and how it goes on.
const CONTINUED: &[(State, &str)] = &[
    (State::Conflict, "git checkout -q --theirs src/a.c && git add src/a.c && git merge --continue"),
    (State::RebaseMerge, "git checkout -q --theirs src/a.c && git add src/a.c && git rebase --continue"),
    (State::RebaseApply, "echo resolved >src/a.c && git add src/a.c && git rebase --continue"),
    (State::CherryPick, "echo resolved >src/a.c && git add src/a.c && git cherry-pick --continue"),
    (State::Revert, "git add -A && git revert --continue"),
    (State::Am, "echo resolved >src/a.c && git add src/a.c && git am --continue"),
    (State::Bisect, "git bisect good && git bisect log"),
    (State::Stash, "git checkout -q -- . && git stash pop --index && git stash pop"),
    (State::Staged, "git commit -q -m staged"),
    (State::Sparse, "git sparse-checkout add docs && git sparse-checkout disable"),
    (State::SplitIndex, "git commit -q -m split && git add -A && git commit -q -m all"),
    (State::SparseIndex, "git sparse-checkout disable && git commit -q -a -m all"),
    (State::Notes, "git notes append -m more HEAD && git log --notes --format=%N%T"),
];

/// Going on inside leads to what it leads to in a plain copy of the tree.
fn a_continued_operation_ends_as_in_a_copy(subject: &Subject) {
    for (n, (state, goes_on)) in CONTINUED.iter().enumerate() {
        let repo = state.build(&subject.env, &format!("r{n}"));
        let script = format!(
            "export GIT_EDITOR=true GIT_COMMITTER_DATE='2025-05-05T05:05:05Z' GIT_AUTHOR_DATE='2025-05-05T05:05:05Z'
             git config user.name A && git config user.email a@example.com
             said=$(mktemp) && {{ {goes_on}; }} >$said 2>&1; echo \"status $?\"; rm $said
             git log -6 --format='%H %s'; git status --porcelain=v2; git stash list; git ls-files --stage
             sha256sum src/a.c; ls .git | grep -E 'HEAD|rebase|sequencer|BISECT_LOG' | grep -v '^HEAD$'"
        );
        let copy = subject.env.root().join(format!("copy-{n}"));
        let in_copy = repo.sh(&format!("cp -a . '{0}' && cd '{0}' && {{ {script}\n}}", copy.display())).stdout;
        assert!(in_copy.contains("status 0"), "{state:?}: the control: {in_copy}");
        let inside = subject.spawn(&repo, &[&format!("on-{n}")], &script).stdout;
        assert_eq!(inside, in_copy, "{state:?}: {goes_on}");
    }
}

fn every_state_has_a_row(_: &Subject) {
    for state in State::ALL {
        assert!(ROWS.contains(state), "{state:?}");
    }
}

/// A copied index must be as good as the host's: the files that git opens are the same.
fn first_status_opens_what_it_opens_on_the_host(subject: &Subject) {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let repo = subject.repo(State::LargeIgnored);
    repo.git(&["status"]).ok();
    // Of the same size, so that only its contents can tell.
    repo.write("docs/more.md", "MORE\n");
    let script = r#"
        export GIT_OPTIONAL_LOCKS=0
        strace -f -qq -e trace=open,openat -o "$TMPDIR/trace" git status >/dev/null || exit
        grep -v O_DIRECTORY "$TMPDIR/trace" | grep -v ENOENT | sed -n 's/^[^"]*"\([^"]*\)".*/\1/p' |
            grep -v '^/' | grep -v '^\.git/' | LC_ALL=C sort"#;
    let script = format!("TMPDIR=${{TMPDIR:-/tmp}}; {script}");
    let host = repo.sh(&script).ok();
    assert!(host.contains("docs/more.md"), "the changed file is opened: {host}");
    similar(&subject.spawn(&repo, &["count"], &script).ok(), &host);
}
