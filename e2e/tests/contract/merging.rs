//! Onto a host tree with uncommitted work: the cases of the merge rule. Only paths that differ between
//! base commit and tip are touched; nothing uncommitted is lost; a conflict writes nothing.

use crate::Subject;
use sandbox_testkit::{Repo, State, tree_digest};

over_views! {
    a_fast_forward_of_a_clean_tree,
    the_kinds_of_merge,
    only_other_files_were_committed,
    everything_was_committed,
    the_users_file_was_reverted_inside,
    the_users_file_was_stashed_inside,
    the_users_file_was_renamed_inside,
    the_user_went_on_in_other_lines,
    the_user_went_on_in_the_same_lines,
    staged_and_unstaged_stay_apart,
    an_untracked_file_became_tracked,
    an_untracked_file_is_in_the_way,
    the_host_has_commits_of_its_own,
    nothing_to_merge,
    uncommitted_work_is_applied,
    a_fifo_that_git_reads_inside_holds_no_merge_up,
}

/// A plain repository in which the user has changed the last line of `src/b.c`.
fn with_edit(subject: &Subject) -> Repo<'_> {
    let repo = subject.repo(State::Plain);
    edit(&repo, "line 20", "USER EDIT");
    repo
}

fn edit(repo: &Repo, from: &str, to: &str) {
    let text = repo.read("src/b.c");
    assert!(text.contains(from), "{text}");
    repo.write("src/b.c", text.replace(&format!("{from}\n"), &format!("{to}\n")));
}

/// Status, staged and unstaged changes of the host, and its newest commit.
fn look(repo: &Repo) -> String {
    repo.sh("git status --porcelain; git log -1 --format=%s").ok()
}

fn a_fast_forward_of_a_clean_tree(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(look(&repo), "x\n");
    assert_eq!(repo.id("HEAD"), repo.id("sandbox/s"));
    assert_eq!(repo.read("x"), "x\n");
}

fn the_kinds_of_merge(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x; echo y >y; git add y; git commit -qm y").ok();
    let start = repo.id("HEAD");
    repo.sandbox(&["merge", "--dry-run", "s"]).ok();
    assert_eq!(repo.id("HEAD"), start);
    repo.sandbox(&["merge", "--no-ff", "s"]).ok();
    assert_eq!(repo.git(&["rev-list", "--parents", "-1", "HEAD"]).ok().split_whitespace().count(), 3);
    repo.git(&["reset", "-q", "--hard", &start]).ok();
    repo.sandbox(&["merge", "--squash", "-m", "Both", "s"]).ok();
    assert_eq!(repo.git(&["log", "--format=%s", &format!("{start}..")]).ok(), "Both\n");
    assert_eq!((&*repo.read("x"), &*repo.read("y")), ("x\n", "y\n"));
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
}

fn only_other_files_were_committed(subject: &Subject) {
    let repo = with_edit(subject);
    subject.spawn(&repo, &["s"], "echo agent >src/new.c; git add src/new.c; git commit -qm 'Only mine'").ok();
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(look(&repo), " M src/b.c\nOnly mine\n");
    assert!(repo.read("src/b.c").ends_with("USER EDIT\n"));
    assert_eq!(repo.read("src/new.c"), "agent\n");
}

fn everything_was_committed(subject: &Subject) {
    let repo = with_edit(subject);
    subject.spawn(&repo, &["s"], "sed -i 's/^line 1$/AGENT/' src/b.c; git commit -qam 'All of it'").ok();
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(look(&repo), "All of it\n");
    let text = repo.read("src/b.c");
    assert!(text.starts_with("AGENT\n") && text.ends_with("USER EDIT\n"), "{text}");
}

fn the_users_file_was_reverted_inside(subject: &Subject) {
    let repo = with_edit(subject);
    let script = "git checkout -q src/b.c; sed -i 's/^line 1$/AGENT/' src/b.c; git commit -qam 'Without the edit'";
    subject.spawn(&repo, &["s"], script).ok();
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(look(&repo), " M src/b.c\nWithout the edit\n");
    let text = repo.read("src/b.c");
    assert!(text.starts_with("AGENT\n") && text.ends_with("USER EDIT\n"), "the edit is still the user's: {text}");
}

fn the_users_file_was_stashed_inside(subject: &Subject) {
    let repo = with_edit(subject);
    subject.spawn(&repo, &["s"], "git stash -q; echo x >x; git add x; git commit -qm x").ok();
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(look(&repo), " M src/b.c\nx\n");
    assert!(repo.read("src/b.c").ends_with("USER EDIT\n"));
}

fn the_users_file_was_renamed_inside(subject: &Subject) {
    let repo = with_edit(subject);
    subject.spawn(&repo, &["s"], "git mv src/b.c src/z.c; git commit -qam Rename").ok();
    let before = tree_digest(repo.dir());
    let seen = repo.sandbox(&["merge", "s"]);
    if seen.status == 0 {
        assert_eq!(look(&repo), "Rename\n");
        assert!(!repo.has("src/b.c") && repo.read("src/z.c").ends_with("USER EDIT\n"));
    } else {
        assert_eq!(tree_digest(repo.dir()), before, "refused, so nothing is written: {seen}");
    }
}

fn the_user_went_on_in_other_lines(subject: &Subject) {
    let repo = with_edit(subject);
    subject.spawn(&repo, &["s"], "sed -i 's/^line 1$/AGENT/' src/b.c; git commit -qam 'All of it'").ok();
    edit(&repo, "line 10", "LATER EDIT");
    repo.sandbox(&["merge", "s"]).ok();
    let text = repo.read("src/b.c");
    for part in ["AGENT\n", "LATER EDIT\n", "USER EDIT\n"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(look(&repo), " M src/b.c\nAll of it\n");
}

fn the_user_went_on_in_the_same_lines(subject: &Subject) {
    let repo = with_edit(subject);
    subject
        .spawn(&repo, &["s"], "sed -i 's/^USER EDIT$/AGENT/' src/b.c; echo x >x; git add x; git commit -qam 'Mine'")
        .ok();
    edit(&repo, "USER EDIT", "LATER EDIT");
    let (before, state, index) = (tree_digest(repo.dir()), look(&repo), repo.git(&["ls-files", "--stage"]).ok());
    let seen = repo.sandbox(&["merge", "s"]);
    assert!(seen.status == 1 && seen.stderr.contains("src/b.c"), "{seen}");
    assert_eq!(tree_digest(repo.dir()), before);
    assert_eq!(look(&repo), state);
    assert_eq!(repo.git(&["ls-files", "--stage"]).ok(), index);
    assert!(!repo.has(".git/MERGE_HEAD"));
}

fn staged_and_unstaged_stay_apart(subject: &Subject) {
    let repo = with_edit(subject);
    repo.write("staged.txt", "staged\n");
    repo.git(&["add", "staged.txt"]).ok();
    repo.write("staged.txt", "staged, then changed\n");
    repo.write("untracked.txt", "untracked\n");
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x -- x").ok();
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(look(&repo), " M src/b.c\nAM staged.txt\n?? untracked.txt\nx\n");
    assert_eq!(repo.git(&["show", ":staged.txt"]).ok(), "staged\n");
}

fn an_untracked_file_became_tracked(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.write("notes.txt", "mine\n");
    subject.spawn(&repo, &["s"], "echo agent >>notes.txt; git add notes.txt; git commit -qm 'Track notes'").ok();
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(look(&repo), "Track notes\n");
    assert_eq!(repo.read("notes.txt"), "mine\nagent\n");
}

fn an_untracked_file_is_in_the_way(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo agent >notes.txt; git add notes.txt; git commit -qm 'Make notes'").ok();
    repo.write("notes.txt", "mine, later\n");
    let seen = repo.sandbox(&["merge", "s"]);
    assert!(seen.status == 1 && seen.stderr.contains("notes.txt"), "{seen}");
    assert_eq!(repo.read("notes.txt"), "mine, later\n");
}

fn the_host_has_commits_of_its_own(subject: &Subject) {
    let repo = with_edit(subject);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    repo.commit("host.txt", "host\n");
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(repo.git(&["rev-list", "--parents", "-1", "HEAD"]).ok().split_whitespace().count(), 3);
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), " M src/b.c\n");
    assert_eq!((&*repo.read("x"), &*repo.read("host.txt")), ("x\n", "host\n"));
    subject.spawn(&repo, &["t"], "sed -i 's/return 3/return 4/' src/a.c; git commit -qm four -- src/a.c").ok();
    repo.write("src/a.c", "int a(void)\n{\n\treturn 5;\n}\n");
    repo.git(&["commit", "-qm", "five", "--", "src/a.c"]).ok();
    let before = tree_digest(repo.dir());
    let seen = repo.sandbox(&["merge", "t"]);
    assert!(seen.status == 1 && seen.stderr.contains("src/a.c"), "{seen}");
    assert_eq!(tree_digest(repo.dir()), before);
}

fn nothing_to_merge(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "true").ok();
    let seen = repo.sandbox(&["merge", "s"]);
    assert!(seen.status == 1 || seen.status == 0, "{seen}");
    assert_eq!(look(&repo), "Change docs/more.md\n");
}

fn uncommitted_work_is_applied(subject: &Subject) {
    let repo = with_edit(subject);
    subject.spawn(&repo, &["s"], "sed -i 's/^line 1$/AGENT/' src/b.c; echo new >new.txt; rm docs/guide.md").ok();
    repo.sandbox(&["apply", "s"]).ok();
    let text = repo.read("src/b.c");
    assert!(text.starts_with("AGENT\n") && text.ends_with("USER EDIT\n"), "{text}");
    assert_eq!(look(&repo), " D docs/guide.md\n M src/b.c\n?? new.txt\nChange docs/more.md\n");
}

/// Git inside is asked what is not committed; it may never answer.
fn a_fifo_that_git_reads_inside_holds_no_merge_up(subject: &Subject) {
    let repo = with_edit(subject);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo x >x; git add x; git commit -qm x; git push -q host HEAD").ok();
    subject.exec(&repo, "s", "rm -f .gitattributes; mkfifo .gitattributes").ok();
    repo.sandbox(&["merge", "s"]).ok();
    assert_eq!(look(&repo), " M src/b.c\nx\n");
}
