//! What a sandbox can read of git's objects is what it was granted, whichever way they come in.

use crate::Subject;
use sandbox_testkit::{Repo, State};

over_views! {
    only_what_was_granted_can_be_read,
    a_submodule_brings_only_what_it_needs,
}

/// Ids of blobs that no sandbox of `main` was granted, each with where the host has it.
fn secrets(subject: &Subject, repo: &Repo) -> Vec<(&'static str, String)> {
    let script = r#"
        set -e
        blob() { echo "$1 $(git rev-parse "$2")"; }
        blob branch other:docs/other.md
        echo stashed >README.md && git stash -q && blob stash stash@{0}:README.md && git stash drop -q
        echo "loose $(echo loose | git hash-object -w --stdin)"
        git checkout -q -b gone && echo gone >gone.md && git add gone.md && git commit -q -m Gone && blob gone HEAD:gone.md
        git checkout -q main && git branch -q -D gone
        git init -q --bare ../lent && echo "lent $(echo lent | git -C ../lent hash-object -w --stdin)"
        echo "$(cd ../lent/objects && pwd)" >>"$(git rev-parse --git-path objects/info/alternates)"
        git update-ref refs/private/ref "$(git rev-parse other)""#;
    let mut secrets: Vec<(&str, String)> = Vec::new();
    let said = repo.sh(script).ok();
    for name in ["branch", "stash", "loose", "gone", "lent"] {
        let id = said.lines().find_map(|line| line.strip_prefix(name)).expect("each is told");
        secrets.push((name, id.trim().to_owned()));
    }
    // What another sandbox committed, and what only its index has (by now in a rescue commit of the vault).
    let script = "echo staged >staged && git add staged && git rev-parse :staged";
    secrets.push(("index of another", subject.spawn(repo, &["earlier"], script).ok().trim().to_owned()));
    let script = "echo theirs >theirs && git add theirs && git commit -q -m Theirs && git rev-parse :theirs";
    secrets.push(("commit of another", subject.spawn(repo, &["committed"], script).ok().trim().to_owned()));
    secrets
}

/// Prints the ids of the list that can be read: through git, and in each directory of objects that is to be seen.
fn probe(secrets: &[(&str, String)]) -> String {
    let ids: Vec<&str> = secrets.iter().map(|(_, id)| &**id).collect();
    format!(
        r#"objects="$(git rev-parse --git-path objects)"
        for id in {}; do
            git cat-file -e $id 2>/dev/null && echo $id
            git cat-file --batch-all-objects --batch-check --unordered | grep "^$id"
            for dir in "$objects" $(cat "$objects/info/alternates" 2>/dev/null); do
                GIT_OBJECT_DIRECTORY="$dir" git cat-file -e $id 2>/dev/null && echo $id
            done
        done | cut -c1-40 | sort -u"#,
        ids.join(" ")
    )
}

/// Which of the secrets are in what the probe printed.
fn read<'s>(secrets: &[(&'s str, String)], printed: &str) -> Vec<&'s str> {
    secrets.iter().filter(|(_, id)| printed.contains(id.as_str())).map(|(name, _)| *name).collect()
}

fn only_what_was_granted_can_be_read(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let secrets = secrets(subject, &repo);
    let probe = probe(&secrets);
    let none: [&str; 0] = [];
    let seen = |output: sandbox_testkit::Output| read(&secrets, &output.ok());

    assert_eq!(seen(subject.spawn(&repo, &["s"], &probe)), none, "a sandbox of the work tree");
    assert_eq!(seen(subject.spawn(&repo, &["rev", "--from", "main"], &probe)), none, "one of a revision");
    subject.idle(&repo, "parent");
    subject.exec(&repo, "parent", "git fetch -q host").ok();
    assert_eq!(seen(subject.exec(&repo, "parent", &probe)), none, "after a fetch from the host");
    repo.sandbox(&["fork", "-d", "parent", "child"]).ok();
    assert_eq!(seen(subject.exec(&repo, "child", &probe)), none, "a fork");
    repo.sandbox(&["stop", "parent"]).ok();
    repo.sandbox(&["start", "parent"]).ok();
    assert_eq!(seen(subject.exec(&repo, "parent", &probe)), none, "one that was started again");

    // What can be asked for by its id is not served either.
    let ask = secrets.iter().map(|(_, id)| format!("git fetch -q host {id} 2>/dev/null && echo {id}"));
    let ask = ask.collect::<Vec<_>>().join("; ");
    assert_eq!(read(&secrets, &subject.exec(&repo, "child", &ask).stdout), none, "asked of the host");

    // The controls: the probe finds what was granted.
    let granted = subject.spawn(&repo, &["granted", "--grant", "other"], &probe);
    assert_eq!(seen(granted), ["branch"]);
    repo.git(&["config", "sandbox.objects", "all"]).ok();
    let all = seen(subject.spawn(&repo, &["all"], &probe));
    assert_eq!(all, ["branch", "stash", "loose", "gone", "lent", "commit of another"]);
}

fn a_submodule_brings_only_what_it_needs(subject: &Subject) {
    let repo = subject.repo(State::Submodule);
    let secret = repo
        .sh(r#"cd lib && git stash -q && git checkout -q -b private && echo private >private.md && git add private.md
            git commit -q -m Private && git rev-parse HEAD:private.md && git checkout -q - && git stash pop -q"#)
        .ok();
    let secrets = [("private", secret.trim().to_owned())];
    let probe = format!("cd lib && {}", probe(&secrets));
    let none: [&str; 0] = [];
    assert_eq!(read(&secrets, &repo.sh(&probe).ok()), ["private"], "the control");
    assert_eq!(read(&secrets, &subject.spawn(&repo, &["s"], &probe).ok()), none);
}
