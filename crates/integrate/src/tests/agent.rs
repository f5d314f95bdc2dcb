//! What an agent does with the user's uncommitted changes.

use super::World;
use crate::How;

const LINES: &str = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";

fn edited(edits: &[(&str, &str)]) -> String {
    edits.iter().fold(LINES.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The user has an uncommitted change in line 2 of `a`, staged work in `s`, and an untracked `u`.
fn world() -> World {
    let mut world = World::new(&[("a", LINES), ("b", LINES), ("s", LINES), ("other", "o\n")]);
    world.write("a", edited(&[("2", "2 USER")]));
    world.write("s", edited(&[("2", "2 STAGED")]));
    world.git(&["add", "s"]);
    world.write("u", "untracked\n");
    world.spawn();
    world
}

#[test]
fn it_commits_everything() {
    let world = world();
    world.agent_write("b", edited(&[("5", "5 AGENT")]));
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "all"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER")]));
    assert_eq!(world.read("b"), edited(&[("5", "5 AGENT")]));
    assert_eq!(world.read("u"), "untracked\n");
    world.git(&["fsck", "--no-dangling"]);
}

#[test]
fn it_commits_only_its_own_files() {
    let world = world();
    world.agent_write("b", edited(&[("5", "5 AGENT")]));
    world.agent_write("new", "n\n");
    world.agent(&["add", "new"]);
    world.agent(&["commit", "-qm", "b", "b", "new"]);
    assert_eq!(world.merged(), " M a\nM  s\n?? u\n");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER")]));
    assert_eq!(world.read("b"), edited(&[("5", "5 AGENT")]));
    assert_eq!(world.git(&["show", ":s"]), edited(&[("2", "2 STAGED")]));
}

#[test]
fn untouched_paths_keep_their_index_entries() {
    let world = world();
    world.agent_write("b", edited(&[("5", "5 AGENT")]));
    world.agent(&["commit", "-qm", "b", "b"]);
    let entries = || world.git(&["ls-files", "--stage", "--debug", "a", "s", "other"]);
    let before = entries();
    world.merged();
    assert_eq!(entries(), before);
}

#[test]
fn it_commits_some_hunks() {
    let mut world = World::new(&[("a", LINES)]);
    world.write("a", edited(&[("2", "2 USER"), ("8", "8 USER")]));
    world.spawn();
    // What `add -p` leaves: one hunk staged, the other not.
    world.agent_write("a", edited(&[("2", "2 USER")]));
    world.agent(&["commit", "-qam", "first hunk"]);
    world.agent_write("a", edited(&[("2", "2 USER"), ("8", "8 USER")]));
    assert_eq!(world.merged(), " M a\n");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER"), ("8", "8 USER")]));
    assert_eq!(world.git(&["show", ":a"]), edited(&[("2", "2 USER")]));
}

#[test]
fn it_goes_on_from_the_users_lines() {
    let world = world();
    world.agent_write("a", edited(&[("2", "2 USER and AGENT")]));
    world.agent_write("u", "untracked, rewritten\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "further"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER and AGENT")]));
    assert_eq!(world.read("u"), "untracked, rewritten\n");
}

#[test]
fn it_reverts_the_users_change_beside_its_own() {
    let world = world();
    world.agent(&["checkout", "a"]);
    world.agent_write("a", edited(&[("8", "8 AGENT")]));
    world.agent(&["commit", "-qm", "a", "a"]);
    assert_eq!(world.merged(), " M a\nM  s\n?? u\n");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER"), ("8", "8 AGENT")]));
}

#[test]
fn it_reverts_the_users_change_only() {
    let world = world();
    world.agent(&["checkout", "a"]);
    world.agent_write("b", edited(&[("8", "8 AGENT")]));
    world.agent(&["commit", "-qm", "b", "b"]);
    assert_eq!(world.merged(), " M a\nM  s\n?? u\n");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER")]));
}

#[test]
fn it_stashes_and_edits_the_same_lines() {
    let world = world();
    world.agent(&["stash", "-q"]);
    world.agent_write("a", edited(&[("2", "2 AGENT")]));
    world.agent(&["commit", "-qam", "a"]);
    let text = world.refused();
    assert_eq!(text, "cannot merge 'fix'\n'a' changed here since the sandbox was spawned, and there too");
}

#[test]
fn it_stashes_and_edits_other_lines() {
    let world = world();
    world.agent(&["stash", "-q", "-u"]);
    world.agent_write("a", edited(&[("8", "8 AGENT")]));
    world.agent(&["commit", "-qam", "a"]);
    assert_eq!(world.merged(), " M a\nM  s\n?? u\n");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER"), ("8", "8 AGENT")]));
    assert_eq!(world.read("u"), "untracked\n");
}

#[test]
fn it_renames_the_users_file_with_the_change() {
    let world = world();
    world.agent(&["mv", "a", "moved"]);
    world.agent(&["commit", "-qam", "mv"]);
    assert_eq!(world.merged(), "?? u\n");
    assert!(!world.exists("a"));
    assert_eq!(world.read("moved"), edited(&[("2", "2 USER")]));
}

#[test]
fn it_renames_the_users_file_without_the_change() {
    let world = world();
    world.agent(&["stash", "-q"]);
    world.agent(&["mv", "a", "dir-a"]);
    world.agent(&["mv", "s", "dir-s"]);
    world.agent(&["commit", "-qm", "mv"]);
    assert_eq!(world.merged(), " M dir-a\nM  dir-s\n?? u\n");
    assert_eq!(world.read("dir-a"), edited(&[("2", "2 USER")]));
    assert_eq!(world.git(&["show", ":dir-s"]), edited(&[("2", "2 STAGED")]));
    assert!(!world.exists("a") && !world.exists("s"));
}

#[test]
fn it_deletes_the_users_file() {
    let world = world();
    world.agent(&["rm", "-qf", "a"]);
    world.agent(&["commit", "-qm", "rm", "a"]);
    assert_eq!(world.refused(), "cannot merge 'fix'\n'a' has uncommitted changes here and is deleted there");
}

#[test]
fn it_deletes_an_unchanged_file() {
    let world = world();
    world.agent(&["rm", "-q", "other"]);
    world.agent(&["commit", "-qm", "rm", "other"]);
    assert_eq!(world.merged(), " M a\nM  s\n?? u\n");
    assert!(!world.exists("other"));
}

#[test]
fn the_user_edits_other_lines_afterwards() {
    let world = world();
    world.agent_write("a", edited(&[("2", "2 USER"), ("5", "5 AGENT")]));
    world.agent(&["commit", "-qam", "a"]);
    world.write("a", edited(&[("2", "2 USER"), ("8", "8 LATER")]));
    assert_eq!(world.merged(), " M a\n?? u\n");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER"), ("5", "5 AGENT"), ("8", "8 LATER")]));
    assert_eq!(world.git(&["show", "HEAD:a"]), edited(&[("2", "2 USER"), ("5", "5 AGENT")]));
}

#[test]
fn the_user_edits_the_same_lines_afterwards() {
    let world = world();
    world.agent_write("a", edited(&[("2", "2 USER"), ("5", "5 AGENT")]));
    world.agent_write("b", edited(&[("5", "5 AGENT")]));
    world.agent(&["commit", "-qam", "a"]);
    world.write("a", edited(&[("2", "2 USER"), ("5", "5 LATER")]));
    world.refused();
    assert_eq!(world.read("b"), LINES);
}

#[test]
fn staged_and_unstaged_changes_of_one_file_stay_apart() {
    let mut world = World::new(&[("a", LINES)]);
    world.write("a", edited(&[("2", "2 STAGED")]));
    world.git(&["add", "a"]);
    world.write("a", edited(&[("2", "2 STAGED"), ("8", "8 UNSTAGED")]));
    world.spawn();
    world.agent(&["stash", "-q"]);
    world.agent_write("a", edited(&[("5", "5 AGENT")]));
    world.agent(&["commit", "-qam", "a"]);
    assert_eq!(world.merged(), "MM a\n");
    assert_eq!(world.git(&["show", ":a"]), edited(&[("2", "2 STAGED"), ("5", "5 AGENT")]));
    assert_eq!(world.read("a"), edited(&[("2", "2 STAGED"), ("5", "5 AGENT"), ("8", "8 UNSTAGED")]));
}

#[test]
fn a_line_staged_and_edited_further_is_clean_when_committed() {
    let mut world = World::new(&[("a", LINES)]);
    world.write("a", edited(&[("2", "2 STAGED")]));
    world.git(&["add", "a"]);
    world.write("a", edited(&[("2", "2 STAGED and more")]));
    world.spawn();
    world.agent(&["commit", "-qam", "a"]);
    assert_eq!(world.merged(), "");
}

#[test]
fn what_is_staged_later_is_not_lost() {
    let mut world = World::new(&[("a", LINES)]);
    world.spawn();
    world.agent_write("a", edited(&[("2", "2 AGENT")]));
    world.agent(&["commit", "-qam", "a"]);
    world.write("a", edited(&[("2", "2 STAGED")]));
    world.git(&["add", "a"]);
    world.write("a", LINES);
    assert_eq!(world.refused(), "cannot merge 'fix'\n'a' has staged changes that overlap with those there");
}

#[test]
fn untracked_files_that_the_sandbox_tracks() {
    for (content, expected) in
        [("same\n", Ok("")), ("other\n", Err("'u' is untracked here and has another content there"))]
    {
        let mut world = World::new(&[("a", LINES)]);
        world.spawn();
        world.write("u", content);
        world.agent_write("u", "same\n");
        world.agent(&["add", "u"]);
        world.agent(&["commit", "-qm", "u"]);
        match expected {
            Ok(status) => assert_eq!(world.merged(), status),
            Err(reason) => assert_eq!(world.refused(), format!("cannot merge 'fix'\n{reason}")),
        }
    }
}

#[test]
fn an_ignored_file_in_the_way_is_kept() {
    let mut world = World::new(&[(".gitignore", "*.log\n")]);
    world.spawn();
    world.write("x.log", "mine\n");
    world.agent_write("x.log", "theirs\n");
    world.agent(&["add", "-f", "x.log"]);
    world.agent(&["commit", "-qm", "log"]);
    assert_eq!(world.refused(), "cannot merge 'fix'\n'x.log' is untracked here and has another content there");
}

#[test]
fn intent_to_add_is_no_staged_content() {
    let mut world = World::new(&[("a", LINES)]);
    world.write("n", "new\n");
    world.git(&["add", "-N", "n"]);
    world.spawn();
    world.agent(&["commit", "-qam", "n"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.git(&["show", ":n"]), "new\n");
}

#[test]
fn without_knowledge_of_the_inside_overlaps_are_refused() {
    let mut world = world();
    world.blind = true;
    world.agent_write("a", edited(&[("2", "2 USER and AGENT")]));
    world.agent(&["commit", "-qam", "further"]);
    world.refused();
}

#[test]
fn a_sandbox_of_the_clean_commit() {
    let mut world = world();
    world.clean = true;
    world.agent(&["reset", "-q", "--hard"]);
    world.agent_write("a", edited(&[("8", "8 AGENT")]));
    world.agent(&["commit", "-qam", "a"]);
    assert_eq!(world.merged(), " M a\nM  s\n?? u\n");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER"), ("8", "8 AGENT")]));
}

#[test]
fn a_merge_commit_on_top_of_uncommitted_changes() {
    let world = world();
    world.agent_write("b", edited(&[("5", "5 AGENT")]));
    world.agent(&["commit", "-qam", "all"]);
    // The host moves on, with its uncommitted changes left alone.
    world.write("other", "moved on\n");
    world.git(&["commit", "-qm", "other", "other"]);
    let merged = world.merge(How::FastForward).unwrap();
    assert_eq!(world.status(), "?? u\n");
    assert_eq!(world.read("other"), "moved on\n");
    assert_eq!(world.read("a"), edited(&[("2", "2 USER")]));
    assert_eq!(world.git(&["log", "-1", "--format=%s %p"]).split_whitespace().count(), 5);
    assert_eq!(merged.uncommitted, []);
}

#[test]
fn the_user_committed_the_changes_too() {
    let world = world();
    world.agent_write("b", edited(&[("5", "5 AGENT")]));
    world.agent(&["commit", "-qam", "all"]);
    world.git(&["commit", "-qam", "mine"]);
    assert_eq!(world.merged(), "?? u\n");
    assert_eq!(world.read("b"), edited(&[("5", "5 AGENT")]));
}

#[test]
fn nothing_is_merged_twice() {
    let world = world();
    world.agent(&["commit", "-qam", "all"]);
    world.merged();
    let before = world.everything();
    let plan = world.plan(How::NoFf).unwrap();
    assert_eq!(plan.describe(), "nothing to merge: 'main' has all of 'fix'\n");
    world.merge(How::NoFf).unwrap();
    assert_eq!(before, world.everything());
}
