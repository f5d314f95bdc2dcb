//! The table of git states: what a program sees inside is what it sees on the host, and the
//! host does not change. Each row works, or is refused by name.

use crate::Subject;
use sandbox_testkit::{DIGEST_SCRIPT, Output, Repo, State, is_root, skip, wait_until, which};
use std::time::Duration;

/// What becomes of a row.
enum Row {
    /// Inside is what was outside.
    Works,
    /// The same, without these paths and what is below them: a layer cannot hold them, or we may not
    /// read them. `spawn` names each that is there with this reason; without one (root reads everything)
    /// they are there inside, and closed to the user inside.
    Without(Option<&'static str>, &'static [&'static str]),
    /// `spawn` refuses and says this.
    #[allow(dead_code, reason = "no row is refused today")]
    Refused(&'static str),
}

/// Looks at everything that git and a program can see, changing nothing.
///
/// Of the index's entries all but what is another in every copy: inode, device, owner, change time. The one
/// flag says in memory that the entry came from the first of two files, which are one file inside.
pub(crate) const LOOK: &str = r#"
export GIT_OPTIONAL_LOCKS=0
echo "== status";     git status --porcelain=v2 --branch --ignored
echo "== stage";      git ls-files --stage
echo "== entries";    git ls-files --stage --debug | grep -vE '^  (ctime|dev|uid): ' | sed 's/flags: 8000000$/flags: 0/'
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
echo "== history";    git log --format='%H %P %T %N' HEAD 2>/dev/null
echo "== attributes"
find . -name .git -prune -o -print0 | LC_ALL=C sort -z | xargs -0 getfattr -hd -m '^(user|system\.posix_acl)' -e hex 2>/dev/null
echo "== links";      find . -name .git -prune -o -type f -links +1 -printf '%n %P\n' | LC_ALL=C sort
echo "== submodules"; git submodule status --recursive
git submodule foreach --quiet --recursive 'git status --porcelain=v2 --branch --ignored; git ls-files --stage'
for inner in vendor/inner; do
    test -d "$inner" && git -C "$inner" status --porcelain=v2 --branch --ignored && git -C "$inner" rev-parse HEAD
done
echo "== tree"
"#;

/// Everything of the host's repository that is not ours: objects, references, reflogs, indexes, whole.
const REPOSITORY: &str = r#"
GIT_OPTIONAL_LOCKS=0 git ls-files --stage --debug
common=$(git rev-parse --git-common-dir) own=$(git rev-parse --git-dir)
{
find "$common" "$own" -path '*/refs/sandbox*' -prune -o ! -name sandbox-id -printf '%y %m %p\n'
find "$common" "$own" -path '*/refs/sandbox*' -prune -o -type f ! -name sandbox-id ! -path '*/reftable/*' -print0 | xargs -0 sha256sum
} | grep -v 'reftable/0x' | LC_ALL=C sort
"#;

#[track_caller]
fn row(subject: &Subject, state: State, row: Row) {
    if let Some(reason) = state.unavailable(&subject.env) {
        skip!("{reason}");
    }
    if which("getfattr").is_none() {
        skip!("no getfattr to compare extended attributes with");
    }
    let repo = subject.repo(state);
    let look = format!("{LOOK}{DIGEST_SCRIPT}");
    let before = repo.sh(&look).stdout;
    let whole = repo.sh(REPOSITORY).ok();
    let inside = subject.spawn(&repo, &["row"], &look);
    similar(&repo.sh(REPOSITORY).ok(), &whole);
    let after = repo.sh(&look).stdout;
    assert_eq!(after, before, "the host changed");
    match row {
        Row::Works | Row::Without(..) => {
            carried(&repo, &row, &inside, &before);
            references(subject, &repo);
            if subject.watched {
                after_changes(subject, &repo, &row, &look);
            }
        }
        Row::Refused(text) => {
            assert!(inside.stderr.contains(text), "{inside}");
            assert_eq!(inside.status, 125, "{inside}");
            assert_eq!(repo.sandbox(&["list", "--json"]).ok().matches("\"name\"").count(), 0, "half made");
        }
    }
}

/// What is seen inside is what is seen on the host, but for what the row leaves out.
#[track_caller]
fn carried(repo: &Repo, row: &Row, inside: &Output, before: &str) {
    assert_eq!(inside.status, 0, "{}", inside.stderr);
    let left: &[&str] = if let Row::Without(reason, paths) = row {
        left_out(repo, inside, *reason, paths);
        paths
    } else {
        &[]
    };
    let rest = |text: &str| -> String {
        text.lines()
            .filter(|line| !left.iter().any(|path| line.contains(path)))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    similar(&rest(&inside.stdout), &rest(before));
}

/// Changes of most kinds, as far as a row's tree allows them.
const CHANGES: &[&str] = &[
    "for file in src/a.c docs/more.md; do test -f $file && test ! -h $file && echo more >>$file; done; mkdir -p made/deep && \
     echo new >made/deep/file && ln -s file made/deep/link && ln made/deep/file made/linked",
    "mv made renamed && rm renamed/deep/link && mkdir -p made/deep && echo other >made/deep/file; chmod +x renamed/linked",
    "echo through >>renamed/linked; git add -A made renamed; git rm -q --cached -- renamed/linked",
    "for inner in . vendor/inner $(git config -f .gitmodules --get-regexp 'path$' | cut -d' ' -f2); do
        test -e $inner/.git && (cd $inner && echo in >changed-inside && git add changed-inside && git commit -qm inside)
     done",
];

/// The watcher that the first spawn started answers, and each spawn after a change carries it.
#[track_caller]
fn after_changes(subject: &Subject, repo: &Repo, row: &Row, look: &str) {
    let status = || -> serde_json::Value {
        serde_json::from_str(&repo.sandbox(&["watch", "--status", "--json"]).stdout).unwrap()
    };
    wait_until("the watcher", Duration::from_secs(60), || status()["ready"] == true);
    // The first question has no token yet.
    subject.spawn(repo, &["--rm"], "true").ok();
    let before = status();
    for change in CHANGES {
        repo.sh(change);
        let host = repo.sh(look).stdout;
        let inside = subject.spawn(repo, &["--rm"], look);
        assert_eq!(repo.sh(look).stdout, host, "the host changed");
        carried(repo, row, &inside, &host);
    }
    let after = status();
    let questions = |status: &serde_json::Value| status["questions"].as_u64().unwrap();
    assert!(questions(&after) >= questions(&before) + CHANGES.len() as u64, "{before} {after}");
    assert_eq!(after["doubts"], before["doubts"], "it knew all of it: {after}");
    repo.sandbox(&["watch", "--stop"]).ok();
}

/// What is not inside is told, each by its name; what is inside and closed is there.
#[track_caller]
fn left_out(repo: &Repo, inside: &Output, reason: Option<&str>, paths: &[&str]) {
    let line = reason.map(|reason| format!("left out ({reason}): "));
    let told = line.and_then(|line| inside.stderr.lines().find(|told| told.starts_with(&line)));
    for path in paths.iter().filter(|path| repo.has(path)) {
        match reason {
            Some(_) => assert!(told.is_some_and(|told| told.contains(path)), "'{path}' is not told: {inside}"),
            None => assert!(inside.stdout.contains(&format!("{path}\t")), "'{path}' is not inside"),
        }
    }
}

/// What was granted is named inside as it is named on the host, and whole.
#[track_caller]
fn references(subject: &Subject, repo: &Repo) {
    // Notes are made anew, with those of granted objects only.
    let list = "git for-each-ref --format='%(refname) %(objectname) %(symref)' | sed '/^refs\\/notes\\//d'";
    let host = repo.sh(list).ok();
    let inside = subject.exec(repo, "row", &format!("git fsck --full --strict >&2 && {list}"));
    assert_eq!(inside.status, 0, "git fsck inside: {inside}");
    let inside = inside.stdout;
    let host: std::collections::HashSet<&str> = host.lines().collect();
    let strange: Vec<&str> = inside.lines().filter(|line| !host.contains(line)).collect();
    assert!(strange.is_empty(), "references that the host has not: {strange:?}");
    if let Some(branch) = host.iter().find(|line| line.starts_with("refs/heads/main ")) {
        let checked_out = repo.sh("git symbolic-ref -q HEAD").stdout == "refs/heads/main\n";
        assert!(!checked_out || inside.contains(branch), "{inside}");
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
        over_views! { $($name),*, first_status_opens_what_it_opens_on_the_host, every_state_has_a_row, from_any_directory,
            rights_of_others_are_counted,
            a_continued_operation_ends_as_in_a_copy }
        over_watched_at_length! { $($name),*; always racy_change, submodule, linked_worktree, file_kinds, dirty, staged_then_changed, odd_names,
            special_files, unreadable, attributes, nested, skipped_entries, sparse, large_ignored }
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
    special_files: SpecialFiles Row::Without(Some("a FIFO, socket or device"), &["src/pipe", "socket", "device"]);
    unreadable: Unreadable Row::Without((!is_root()).then_some("not readable"), &["closed.txt", "shut"]);
    huge: Huge Row::Works;
    attributes: Attributes Row::Works;
    grafts: Grafts Row::Works;
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
    (State::Conflict, "git status >/dev/null; git merge --abort"),
    (State::RebaseMerge, "git status >/dev/null; git rebase --skip"),
    (State::RebaseApply, "git status >/dev/null; git rebase --abort"),
    (State::CherryPick, "git status >/dev/null; git cherry-pick --skip || git status"),
    (State::Revert, "git status >/dev/null; git revert --abort"),
    (State::Am, "git status >/dev/null; git am --skip"),
    (State::Bisect, "git bisect bad && git bisect reset"),
    (State::SkippedEntries, "git update-index --really-refresh -q; git commit -q -a -m all"),
    (State::Sha256, "git commit -q -a -m all && git stash list && git gc -q"),
    (State::Grafts, "git commit -q -a -m all && git log --format=%H%P"),
    (State::Notes, "git notes append -m more HEAD && git log --notes --format=%N%T"),
];

/// The same, of what no row of the table is: how it begins on the host, in a plain repository.
const BEGUN: &[(&str, &str)] = &[
    ("echo dirty >>docs/more.md; git rebase -q --autostash other", "$theirs && git rebase --continue && cat docs/more.md"),
    ("echo dirty >>docs/more.md; git rebase -q --autostash --apply other", "$theirs && git rebase --continue"),
    ("echo dirty >>docs/more.md; git rebase -q --autostash other", "git rebase --abort && cat docs/more.md"),
    ("echo dirty >>docs/more.md; git merge -q --autostash other", "$theirs && git merge --continue && cat docs/more.md"),
    ("GIT_SEQUENCE_EDITOR='sed -i 1s/pick/edit/' git rebase -q -i HEAD~2", "git commit -q --amend -m A && git rebase --continue"),
    (
        "git checkout -q -b topic HEAD~1 && echo t >t && git add t && git commit -q -m T && git checkout -q main &&
         git merge -q --no-ff -m M topic && GIT_SEQUENCE_EDITOR='sed -i 0,/^pick/s//edit/' git rebase -q -i --rebase-merges HEAD~2",
        "git commit -q --amend -m A && git rebase --continue && git log --graph --format=%s -5",
    ),
    ("git rebase -q --exec 'test -e stopped || { touch stopped; false; }' HEAD~2", "git rebase --continue"),
    ("git merge -q --squash other", "$theirs && git commit -q --no-edit"),
    ("git cherry-pick -n other", "$theirs && git commit -q -m picked"),
    ("git cherry-pick other~1 other", "git cherry-pick --abort"),
    ("git bisect start --term-old=fast --term-new=slow HEAD HEAD~3", "git bisect fast && git bisect log"),
    (
        "echo x >src/a.c; git stash -q; echo y >src/a.c; git commit -qam y; git stash pop",
        "$theirs && git stash drop && git commit -q -m popped",
    ),
    ("git format-patch -q --stdout main..other >../m; git am -q ../m", "git am --abort"),

];

/// Going on inside leads to what it leads to in a plain copy of the tree.
fn a_continued_operation_ends_as_in_a_copy(subject: &Subject) {
    // In a copy of files every entry of the index has another inode: what compares first is not what is asked here.
    let begun =
        BEGUN.iter().map(|(begin, goes_on)| (State::Plain, *begin, format!("git status >/dev/null; {goes_on}")));
    let rows = CONTINUED.iter().map(|(state, goes_on)| (*state, "", (*goes_on).to_owned())).chain(begun);
    for (n, (state, begin, goes_on)) in rows.enumerate() {
        let repo = state.build(&subject.env, &format!("r{n}"));
        repo.sh(begin);
        let goes_on = goes_on.replace("$theirs", "git checkout -q --theirs src/a.c && git add src/a.c");
        let script = format!(
            "export GIT_EDITOR=true GIT_COMMITTER_DATE='2025-05-05T05:05:05Z' GIT_AUTHOR_DATE='2025-05-05T05:05:05Z'
             git config user.name A && git config user.email a@example.com
             said=$(mktemp) && {{ {goes_on}; }} >$said 2>&1; echo \"status $?\"; rm $said
             git log -6 --format='%H %s'; git status --porcelain=v2; git stash list; git ls-files --stage
             sha256sum src/a.c; ls .git | grep -E 'HEAD|rebase|sequencer|BISECT_LOG' | grep -v '^HEAD$'"
        );
        let copy = subject.env.root().join(format!("copy-{n}"));
        let in_copy = repo.sh(&format!("cp -a . '{0}' && cd '{0}' && {{ {script}\n}}", copy.display())).stdout;
        assert!(in_copy.contains("status 0"), "{state:?} {begin}: the control: {in_copy}");
        let inside = subject.spawn(&repo, &[&format!("on-{n}")], &script).stdout;
        assert_eq!(inside, in_copy, "{state:?} {begin}: {goes_on}");
    }
}

/// It starts where the caller is, and that is the whole tree as the caller sees it from there.
fn from_any_directory(subject: &Subject) {
    for (n, (state, below)) in
        [(State::Dirty, "src/deep"), (State::LinkedWorktree, "docs"), (State::Nested, "newdir"), (State::Staged, "bin")]
            .into_iter()
            .enumerate()
    {
        let repo = state.build(&subject.env, &format!("r{n}"));
        let look = format!("pwd; git rev-parse --show-toplevel --show-prefix --show-cdup\n{LOOK}{DIGEST_SCRIPT}");
        let there = format!("cd {below}\n{look}");
        let before = repo.sh(&there).ok();
        let inside = subject.spawn_in(&repo.dir().join(below), &[&format!("below-{n}")], &look);
        similar(&inside.ok(), &before);
        assert_eq!(repo.sh(&there).ok(), before, "the host changed");
    }
}

/// What only somebody else has a right to is told, with the file in it.
fn rights_of_others_are_counted(subject: &Subject) {
    if which("setfacl").is_none() {
        skip!("no setfacl");
    }
    let repo = subject.repo(State::Plain);
    repo.sh("setfacl -m u:4242:rw src/a.c && setfacl -d -m g:4343:rwx docs").ok();
    let script = "stat -c %a src/a.c; getfacl -cn src/a.c docs 2>/dev/null | grep -c '42\\|43'; cat src/a.c >/dev/null";
    let inside = subject.spawn(&repo, &["others"], script);
    assert_eq!(inside.stdout, "664\n0\n", "{inside}");
    let told = "note: 2 files or directories without rights of others, or capabilities, that they have here\n";
    assert!(inside.stderr.contains(told), "{inside}");
    // Whoever stands on the same snapshot has the same rights; and the top directory is in no layer.
    let again = subject.spawn(&repo, &["again"], "true");
    assert!(again.stderr.contains(told), "{again}");
    repo.sh("setfacl -m u:4242:rw . src/b.c && touch src/new").ok();
    let told = told.replace('2', "4");
    for name in ["more", "and-again"] {
        let more = subject.spawn(&repo, &[name], "true");
        assert!(more.stderr.contains(&told), "{more}");
    }
    assert!(repo.sandbox(&["show", "more"]).ok().contains(told.trim_start_matches("note: ").trim_end()));
    repo.sh("setfacl -b . docs src/a.c src/b.c").ok();
    let none = subject.spawn(&repo, &["none"], "true");
    assert!(!none.stderr.contains("rights of others"), "{none}");
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
