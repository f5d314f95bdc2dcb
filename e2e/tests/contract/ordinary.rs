//! What people and their programs do in a working tree works inside.

use crate::Subject;
use sandbox_testkit::{State, tree_digest};

over_views! {
    renames_of_captured_directories_work,
    a_directory_can_be_replaced_and_removed,
    files_are_replaced_atomically,
    locks_links_and_mappings_work,
    operations_in_progress_can_be_finished,
    stashes_can_be_used,
    the_house_keeping_of_git_works,
    the_remove_everything_command_does_not_reach_the_host,
    the_user_is_the_same_one,
    the_tree_is_at_the_same_path_and_at_workspace,
    a_compiler_works,
    the_answer_to_push_origin_is_quick_and_helpful,
    hooks_of_the_repository_run_inside,
    exactly_a_revision_can_be_had,
    other_branches_are_not_visible_inside,
}

/// The rootless overlay alone answers `EXDEV`.
fn renames_of_captured_directories_work(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r#"
        set -e
        git mv src lib
        test -f lib/deep/er/c.c && test ! -e src
        git status --porcelain=v2 | grep -q 'lib/a.c'
        git mv lib/deep/er lib/shallow
        mv docs papers && mv papers docs
        mkdir new && mv new newer && mv newer docs/
        perl -e 'rename "docs", "docs2" or die "perl: $!"; rename "docs2", "docs" or die "perl: $!"'
        mkdir full && touch full/x
        ! perl -e 'rename "docs", "full" or die "$!\n"'
        rm -r full && mkdir full && perl -e 'rename "bin", "full" or die "perl: $!"' && test -x full/run.sh
        git add -A && git commit -qm 'Move things'
        git status --porcelain
        git ls-files"#;
    let files = subject.spawn(&repo, &["mover"], script).ok();
    assert_eq!(
        files.lines().filter(|file| file.contains("lib/") || file.contains("full/")).collect::<Vec<_>>(),
        ["full/run.sh", "lib/a.c", "lib/b.c", "lib/shallow/c.c"]
    );
}

fn a_directory_can_be_replaced_and_removed(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let script = r#"
        set -e
        rm -r src && mkdir src && echo new >src/only.c
        test "$(ls src)" = only.c
        rm -r docs && echo file >docs && rm docs && mkdir docs
        test -z "$(ls -A docs)"
        rm -r build newdir
        git checkout -q -f HEAD -- . && git clean -qfdx
        git status --porcelain --ignored"#;
    assert_eq!(subject.spawn(&repo, &["replacer"], script).ok(), "");
    assert!(repo.has("build/out.o"));
}

fn files_are_replaced_atomically(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r#"
        set -e
        echo new >src/.a.c.swp && mv src/.a.c.swp src/a.c && test "$(cat src/a.c)" = new
        sed -i s/new/newer/ src/a.c && test "$(cat src/a.c)" = newer
        exec 3<README.md; echo more >>README.md; tail -n1 <&3 | grep -q more
        chmod 600 docs/guide.md && test "$(stat -c %a docs/guide.md)" = 600
        touch -d @1000000000 docs/guide.md && test "$(stat -c %Y docs/guide.md)" = 1000000000
        truncate -s 3 src/b.c && test "$(cat src/b.c)" = lin
        ln -s nowhere dangling && ln -sf elsewhere dangling && test "$(readlink dangling)" = elsewhere"#;
    subject.spawn(&repo, &["editor"], script).ok();
}

fn locks_links_and_mappings_work(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r#"
        set -e
        flock src/a.c true
        ln src/a.c hard && echo both >>src/a.c && cmp src/a.c hard
        mkfifo pipe && (echo through >pipe &) && test "$(cat pipe)" = through && rm pipe
        perl -e 'open my $f, "+<", "src/b.c" or die $!; seek $f, 0, 2; print $f "perl\n"; close $f'
        perl -e 'use Fcntl; sysopen my $f, "src", 020200000|O_RDWR, 0600 or die "O_TMPFILE: $!"; print $f "x"'
        test "$(tail -n1 src/b.c)" = perl"#;
    subject.spawn(&repo, &["linker"], script).ok();
}

fn operations_in_progress_can_be_finished(subject: &Subject) {
    for (n, (state, finish)) in [
        (State::Conflict, "git checkout -q --theirs src/a.c && git add src/a.c && git commit -q --no-edit"),
        (
            State::RebaseMerge,
            "git checkout -q --theirs src/a.c && git add src/a.c && GIT_EDITOR=true git rebase --continue",
        ),
        (State::RebaseApply, "git checkout -q --theirs src/a.c && git add src/a.c && git rebase --continue"),
        (State::CherryPick, "git cherry-pick --abort"),
        (State::Bisect, "git bisect good && git bisect reset"),
    ]
    .into_iter()
    .enumerate()
    {
        let repo = state.build(&subject.env, &format!("op{n}"));
        let script = format!("{{ {finish}; }} >&2 && git status --porcelain && git symbolic-ref HEAD");
        let seen = subject.spawn(&repo, &["finisher"], &script);
        assert_eq!((seen.status, &*seen.stdout), (0, "refs/heads/main\n"), "{state:?}\n{seen}");
    }
}

fn stashes_can_be_used(subject: &Subject) {
    let repo = subject.repo(State::Stash);
    let script = r#"
        git checkout -q -- . && git stash pop -q && test -f untracked.txt && git checkout -q -- . &&
        git stash apply -q && cat src/a.c && git stash list"#;
    let seen = subject.spawn(&repo, &["stasher"], script).ok();
    assert_eq!(seen, "stashed first\nstash@{0}: On main: first\n");
    assert_eq!(repo.git(&["stash", "list"]).ok().lines().count(), 2);
}

fn the_house_keeping_of_git_works(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let objects = repo.git(&["cat-file", "--batch-all-objects", "--batch-check"]).ok();
    let script = r#"
        set -e
        git commit -qam 'Something'
        git reflog expire --expire=now --all
        git gc -q --prune=now
        git repack -adfq
        git worktree add -q ../beside && git -C ../beside log --oneline | wc -l && git worktree remove ../beside
        git fsck --full"#;
    assert_eq!(subject.spawn(&repo, &["keeper"], script).ok().trim(), "5");
    assert_eq!(repo.git(&["fsck", "--full"]).status, 0);
    let after = repo.git(&["cat-file", "--batch-all-objects", "--batch-check"]).ok();
    for object in objects.lines() {
        assert!(after.contains(object), "{object} is gone from the host");
    }
}

fn the_remove_everything_command_does_not_reach_the_host(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let before = tree_digest(repo.dir());
    let status = repo.git(&["status", "--porcelain=v2", "--ignored"]).ok();
    subject.spawn(&repo, &["rm"], "rm -rf -- * .[!.]*; ls -A; echo gone >new").ok();
    assert_eq!(tree_digest(repo.dir()), before);
    assert_eq!(repo.git(&["status", "--porcelain=v2", "--ignored"]).ok(), status);
    assert_eq!(repo.git(&["fsck", "--full"]).status, 0);
}

fn the_user_is_the_same_one(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r#"git var GIT_AUTHOR_IDENT | sed 's/>.*/>/'; echo "$HOME" "$USER"; id -u; test "$(id -un)" = "$USER" && echo named"#;
    let seen = subject.spawn(&repo, &["me"], script).ok();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "Dev <dev@example.com>");
    assert!(lines[1].starts_with(&*subject.env.home().to_string_lossy()), "{seen}");
    if sandbox_testkit::is_root() {
        assert_ne!(lines[2], "0", "nothing inside is uid 0 of the host");
    } else {
        assert_eq!(lines[2], rustix::process::geteuid().as_raw().to_string());
    }
    assert_eq!(lines.get(3), Some(&"named"), "{seen}");
}

fn the_tree_is_at_the_same_path_and_at_workspace(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "pwd -P; cd /workspace && pwd -P && git status --porcelain && echo \"$GIT_SANDBOX\"; cat /etc/hostname; hostname";
    let seen = subject.spawn(&repo, &["where"], script).ok();
    let here = repo.dir().to_string_lossy();
    assert_eq!(seen, format!("{here}\n{here}\nwhere\nwhere\nwhere\n"));
    let below = subject.spawn_in(&repo.dir().join("src/deep"), &["below"], "pwd").ok();
    assert_eq!(below, format!("{here}/src/deep\n"));
}

fn a_compiler_works(subject: &Subject) {
    if sandbox_testkit::which("cc").is_none() {
        sandbox_testkit::skip!("no C compiler");
    }
    let repo = subject.repo(State::Plain);
    let script = r#"printf 'int a(void);\n#include <stdio.h>\nint main(void){printf("%%d\\n", a());return 0;}\n' >m.c
        cc -o prog m.c src/a.c && ./prog"#;
    assert_eq!(subject.spawn(&repo, &["cc"], script).ok(), "3\n");
}

fn the_answer_to_push_origin_is_quick_and_helpful(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["remote", "add", "origin", "https://user:secret@example.com/x.git"]).ok();
    let seen = subject.spawn(&repo, &["pusher"], "git remote get-url origin; timeout 20 git push origin HEAD");
    assert!(!seen.stdout.contains("secret"), "{seen}");
    assert!(seen.status != 0 && seen.status != 124, "{seen}");
    assert!(seen.stderr.contains("hint: git push host brings your commits to the host\n"), "{seen}");
}

fn hooks_of_the_repository_run_inside(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let ran = subject.env.root().join("ran-on-host");
    let hook = format!("#!/bin/sh\ntouch '{}' 2>/dev/null; echo \"hook $(basename \"$0\")\" >&2\n", ran.display());
    for name in ["pre-commit", "post-commit", "reference-transaction", "post-checkout", "post-merge"] {
        repo.write(&format!(".git/hooks/{name}"), &hook);
        repo.chmod(&format!(".git/hooks/{name}"), 0o755);
    }
    let seen = subject.spawn(&repo, &["hooked"], "echo x >>README.md && git commit -qam x");
    assert!(seen.stderr.contains("hook pre-commit") && seen.stderr.contains("hook post-commit"), "{seen}");
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/hooked"]).ok(), "x\n");
    assert!(!ran.exists(), "a hook ran on the host while commits came back");
}

fn exactly_a_revision_can_be_had(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let script = "git status --porcelain --ignored; git rev-parse HEAD; git ls-files | wc -l; find . -path ./.git -prune -o -type f -print -o -type l -print | wc -l";
    let clean = subject.spawn(&repo, &["clean", "--clean"], script).ok();
    let files = repo.git(&["ls-files"]).ok().lines().count();
    assert_eq!(clean, format!("{}\n{files}\n{files}\n", repo.id("HEAD")));
    let old = subject.spawn(&repo, &["old", "--from", "v1"], script).ok();
    assert!(old.starts_with(&format!("{}\n", repo.id("v1^{commit}"))), "{old}");
    let bare = subject.env.repo_at("bare.git");
    repo.git(&["clone", "-q", "--bare", ".", &bare.dir().to_string_lossy()]).ok();
    let from = subject.spawn(&bare, &["bare", "--from", "main"], "cat README.md && git log --oneline | wc -l");
    assert_eq!(from.ok(), "A small project.\n4\n");
}

fn other_branches_are_not_visible_inside(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let private = repo.id("other:docs/other.md");
    let script = format!(
        "git rev-parse -q --verify other; git cat-file -e {private} 2>/dev/null && echo leaked
         git cat-file --batch-all-objects --batch-check --unordered | grep -c {private}; git describe"
    );
    let seen = subject.spawn(&repo, &["curious"], &script);
    assert!(seen.stdout.starts_with("0\nv1-3-g"), "{seen}");
    let seen = subject.spawn(&repo, &["granted", "--grant", "other"], &format!("git cat-file -p {private}"));
    assert_eq!(seen.ok(), "other\n");
}
