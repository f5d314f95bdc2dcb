//! What is said to bad input: one text each, with the object, the next step, the right status, and
//! nothing half made.

use crate::Subject;
use insta::assert_snapshot;
use sandbox_testkit::{Output, Repo, State, is_root, skip};
use std::fs;
use std::os::unix::fs::PermissionsExt;

over_views_at_length! {
    not_a_repository,
    a_bare_repository,
    no_commit_yet,
    an_unknown_sandbox,
    a_name_that_is_taken,
    a_name_that_is_not_valid,
    an_unknown_verb_or_flag,
    an_unknown_driver,
    an_unknown_revision,
    a_command_that_is_not_there,
    no_user_namespaces,
    a_state_directory_that_is_foreign,
    a_state_directory_on_a_full_disk,
    a_state_directory_inside_the_tree,
    a_state_of_a_newer_version,
    a_git_that_is_too_old,
    no_git_at_all,
    a_host_repository_that_is_gone,
    a_sandbox_inside_a_sandbox,
    a_busy_index,
    a_damaged_record,
    a_merge_into_an_operation_in_progress,
    work_that_would_be_dropped,
    a_directory_that_cannot_be_a_tree,
    pushing_into_a_sandbox,
}

impl Subject {
    fn spawn_true(&self, repo: &Repo, name: &str) -> Output {
        self.spawn(repo, &[name], "true")
    }
}

/// After a refused spawn nothing is there: no record, no ref, no process.
fn nothing_half_made(repo: &Repo) {
    let sandboxes = repo.env().state().join("sandboxes");
    let made =
        fs::read_dir(&sandboxes).into_iter().flatten().flatten().filter(|dir| dir.path().join("sandbox.json").exists());
    assert_eq!(made.count(), 0);
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).stdout, "");
    assert!(repo.env().live_processes().is_empty());
}

fn not_a_repository(subject: &Subject) {
    fs::create_dir_all(subject.env.home().join("src/nothing")).unwrap();
    let repo = subject.env.repo_at("nothing");
    assert_snapshot!(subject.spawn_true(&repo, "x"), @r#"
        ---- stderr
        error: not a git repository: '[REPO:nothing]'
        hint: `cd` into a repository, or make one with `git init`
        ---- status 125
        "#);
    assert_snapshot!(repo.sandbox(&["merge", "x"]), @r#"
        ---- stderr
        error: no sandbox named 'x'
        hint: `git sandbox spawn` makes one
        ---- status 128
        "#);
}

fn a_bare_repository(subject: &Subject) {
    let repo = subject.env.repo_at("bare.git");
    fs::create_dir_all(repo.dir()).unwrap();
    repo.git(&["init", "-q", "--bare"]).ok();
    assert_snapshot!(subject.spawn_true(&repo, "x"), @r#"
        ---- stderr
        error: '[REPO]' is a bare repository
        hint: `git sandbox spawn --from REV` takes the files of a revision
        ---- status 125
        "#);
}

fn no_commit_yet(subject: &Subject) {
    let repo = subject.repo(State::Unborn);
    assert_snapshot!(subject.spawn(&repo, &["x", "--clean"], "true"), @r#"
        ---- stderr
        error: there is no commit yet
        hint: `git sandbox spawn` without --clean takes the files as they are
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

fn an_unknown_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_snapshot!(repo.sandbox(&["show", "fix-login"]), @r#"
        ---- stderr
        error: no sandbox named 'fix-login'
        hint: `git sandbox spawn` makes one
        ---- status 128
        "#);
    subject.spawn_true(&repo, "fix-login").expect(0);
    assert_snapshot!(repo.sandbox(&["show", "fix-logn"]), @r#"
        ---- stderr
        error: no sandbox named 'fix-logn'
        hint: did you mean 'fix-login'? `git sandbox list` shows them all
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["exec", "other", "--", "true"]), @r#"
        ---- stderr
        error: no sandbox named 'other'
        hint: `git sandbox list` shows them all
        ---- status 125
        "#);
}

fn a_name_that_is_taken(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn_true(&repo, "taken").expect(0);
    assert_snapshot!(subject.spawn_true(&repo, "taken"), @r#"
        ---- stderr
        error: there is a sandbox named 'taken' already
        hint: `git sandbox shell taken` opens a shell in it; `git sandbox drop taken` removes it
        ---- status 125
        "#);
}

fn a_name_that_is_not_valid(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_snapshot!(subject.spawn_true(&repo, "Fix/Login"), @r#"
        ---- stderr
        error: 'Fix/Login' is not a valid sandbox name
        hint: a name is 1 to 41 of a-z, 0-9, '.', '_', '-', and starts with a letter or digit
        ---- status 129
        "#);
    nothing_half_made(&repo);
}

fn an_unknown_verb_or_flag(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_snapshot!(repo.sandbox(&["spwan"]), @r#"
        ---- stderr
        error: unrecognized subcommand 'spwan'
        hint: a similar subcommand exists: 'spawn'
        usage: git sandbox [OPTIONS] <COMMAND>
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["list", "--jsno"]), @r#"
        ---- stderr
        error: unexpected argument '--jsno' found
        hint: a similar argument exists: '--json'
        usage: git sandbox list --json
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
}

fn an_unknown_driver(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_snapshot!(repo.sandbox(&["spawn", "--driver", "teleport", "x", "--", "true"]), @r#"
        ---- stderr
        error: there is no driver 'teleport'
        hint: one of: namespace, qemu; `git sandbox doctor` tells about them
        ---- status 129
        "#);
    nothing_half_made(&repo);
}

fn an_unknown_revision(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_snapshot!(subject.spawn(&repo, &["x", "--from", "no-such"], "true"), @r#"
        ---- stderr
        error: 'no-such' is not a commit
        hint: `git log --oneline --all` shows what there is
        ---- status 125
        "#);
    assert_snapshot!(subject.spawn(&repo, &["x", "--grant", "no-such"], "true"), @r#"
        ---- stderr
        error: no ref matches 'no-such'
        hint: `git for-each-ref` shows what there is
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

fn a_command_that_is_not_there(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_snapshot!(repo.sandbox(&["spawn", "--driver", subject.driver, "x", "--", "no-such-command"]), @r#"
        ---- stderr
        sandbox 'x': 13 files as they are here, 13 copied (282 B)
        no changes in 'x'
        error: cannot run 'no-such-command': No such file or directory
        hint: is it installed on the host, in a directory that is shown inside? `git sandbox doctor` lists them
        ---- status 127
        "#);
    assert_snapshot!(repo.sandbox(&["spawn", "--driver", subject.driver, "y", "--", "./README.md"]), @r#"
        ---- stderr
        sandbox 'y': 13 files as they are here
        no changes in 'y'
        error: cannot execute './README.md': Permission denied
        ---- status 126
        "#);
}

/// Runs the product in namespaces of its own, as the same user, after `setup`.
fn in_namespaces(subject: &Subject, repo: &Repo, setup: &str) -> Output {
    let product = subject.env.sandbox_command(repo.dir(), &[]);
    let product = product.get_program().to_string_lossy().into_owned();
    let script = format!(
        "{setup}\nexec setpriv --inh-caps=-all --ambient-caps=-all '{product}' spawn --driver {} x -- true",
        subject.driver
    );
    let mut command = subject.env.command("unshare", repo.dir());
    if !is_root() {
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    subject.env.run(command.args(["--mount", "sh", "-ec", &script]))
}

fn no_user_namespaces(subject: &Subject) {
    if is_root() {
        skip!("root is not limited by its own namespace's count");
    }
    let repo = subject.repo(State::Plain);
    let seen = in_namespaces(subject, &repo, "echo 0 >/proc/sys/user/max_user_namespaces");
    assert_snapshot!(seen, @r#"
        ---- stderr
        sandbox 'x': 13 files as they are here, 13 copied (282 B)
        error: cannot create a user namespace
        caused by: No space left on device (os error 28)
        hint: this is the namespace limit, not the disk: raise sysctl 'user.max_user_namespaces'
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

fn a_state_directory_that_is_foreign(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    fs::create_dir_all(subject.env.state()).unwrap();
    fs::write(subject.env.state().join("thesis.txt"), "years of work").unwrap();
    assert_snapshot!(subject.spawn_true(&repo, "x"), @r#"
        ---- stderr
        error: '[STATE]' is not a git-sandbox state directory
        hint: `git config --global sandbox.stateDir DIR` names another directory
        ---- status 125
        "#);
    assert_eq!(fs::read_dir(subject.env.state()).unwrap().count(), 1);
}

fn a_state_directory_on_a_full_disk(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.write("large.bin", vec![7; 3_000_000]);
    let setup = r#"mkdir -p "$XDG_STATE_HOME/git-sandbox"; mount -t tmpfs -o size=1m,mode=700 tmpfs "$XDG_STATE_HOME/git-sandbox""#;
    let seen = in_namespaces(subject, &repo, setup);
    assert_snapshot!(seen, @r#"
        ---- stderr
        error: there is too little room on the disk of '[STATE]'
        caused by: [SIZE] are needed, [SIZE] are free, and [SIZE] of them are kept for the host
        hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

fn a_state_directory_inside_the_tree(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.git(&["config", "sandbox.stateDir", &repo.dir().join("state").to_string_lossy()]).ok();
    assert_snapshot!(subject.spawn_true(&repo, "x"), @r#"
        ---- stderr
        error: the state directory '[REPO]/state' is inside the working tree '[REPO]'
        hint: `git config --global sandbox.stateDir DIR` names a directory outside of it
        ---- status 125
        "#);
}

fn a_state_of_a_newer_version(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn_true(&repo, "old").expect(0);
    fs::write(subject.env.state().join("format"), "git-sandbox 7\n").unwrap();
    assert_snapshot!(subject.spawn_true(&repo, "x"), @r#"
        ---- stderr
        error: the state directory '[STATE]' has format 7, this program writes 1
        hint: it was written by a newer git-sandbox: upgrade this one; nothing was changed
        ---- status 125
        "#);
    assert!(repo.sandbox(&["list"]).expect(0).stdout.contains("old"), "it can be read");
    fs::write(subject.env.state().join("format"), "git-sandbox 1\n").unwrap();
}

/// Puts a program named `git` before all others.
fn with_program(subject: &Subject, repo: &Repo, git: Option<&str>) -> Output {
    let dir = subject.env.root().join("fake");
    fs::create_dir_all(&dir).unwrap();
    if let Some(script) = git {
        fs::write(dir.join("git"), script).unwrap();
        fs::set_permissions(dir.join("git"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command =
        subject.env.sandbox_command(repo.dir(), &["spawn", "--driver", subject.driver, "x", "--", "true"]);
    let rest = if git.is_some() { subject.env.path() } else { Default::default() };
    command.env("PATH", [dir.as_os_str(), rest.as_os_str()].join(std::ffi::OsStr::new(":")));
    subject.env.run(&mut command)
}

fn a_git_that_is_too_old(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let real = subject.env.git_used().path.display();
    let old =
        format!("#!/bin/sh\ncase $1 in version|--version) echo git version 2.30.1 ;; *) exec {real} \"$@\" ;; esac\n");
    assert_snapshot!(with_program(subject, &repo, Some(&old)), @r#"
        ---- stderr
        error: git 2.30.1 is too old: 2.39.0 or newer is needed
        hint: install a newer git, or put one earlier on PATH
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

fn no_git_at_all(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    assert_snapshot!(with_program(subject, &repo, None), @r#"
        ---- stderr
        error: cannot find `git`
        hint: install git 2.39 or newer, or put it on PATH
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

fn a_host_repository_that_is_gone(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    fs::rename(repo.dir(), subject.env.root().join("hidden")).unwrap();
    let home = subject.env.home();
    let list = subject.env.sandbox(&home, &["list", "-A"]).expect(0);
    assert!(list.stdout.contains('s'), "{list}");
    assert_snapshot!(subject.env.sandbox(&home, &["fetch", "s"]), @r#"
        ---- stderr
        error: not a git repository: '[REPO]/.git'
        hint: it was moved or deleted: in its new place, any `git sandbox` command finds its sandboxes again, or `git sandbox repair --repo NEW` does; `git sandbox bundle NAME FILE` takes out the commits
        ---- status 128
        "#);
    fs::rename(subject.env.root().join("hidden"), repo.dir()).unwrap();
    repo.sandbox(&["fetch", "s"]).ok();
}

fn a_sandbox_inside_a_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let seen = subject.spawn(&repo, &["outer"], "git sandbox spawn inner -- true");
    assert_eq!(seen.status, 125, "{seen}");
    assert!(seen.stderr.contains("error: already inside sandbox 'outer'\n"), "{seen}");
}

fn a_busy_index(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.write(".git/index.lock", "");
    assert_snapshot!(subject.spawn_true(&repo, "x"), @r#"
        ---- stderr
        error: another git command is at work in this repository: '[REPO]/.git/index.lock' exists
        hint: wait for that command; if none runs any more, remove '[REPO]/.git/index.lock'
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

fn a_damaged_record(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn_true(&repo, "s").expect(0);
    let dir = fs::read_dir(subject.env.state().join("sandboxes")).unwrap().flatten().next().unwrap().path();
    let record = fs::read(dir.join("sandbox.json")).unwrap();
    fs::write(dir.join("sandbox.json"), "{").unwrap();
    assert_snapshot!(repo.sandbox(&["show", "s"]), @r#"
        ---- stderr
        error: '[STATE]/sandboxes/[ID]/sandbox.json' is damaged
        caused by: EOF while parsing an object at line 1 column 1
        hint: `git sandbox repair` makes it whole where it has a copy, else tells the next step; nothing else is harmed
        ---- status 128
        "#);
    fs::write(dir.join("sandbox.json"), &record).unwrap();
    repo.sandbox(&["show", "s"]).ok();
}

fn a_merge_into_an_operation_in_progress(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    repo.git(&["merge", "-q", "other"]).expect(1);
    assert_snapshot!(repo.sandbox(&["merge", "s"]), @r#"
        ---- stderr
        error: a merge is in progress in '[REPO]'
        hint: finish it with `git merge --continue`, or leave it with `git merge --abort`
        ---- status 128
        "#);
    assert!(repo.has(".git/MERGE_HEAD") && !repo.has("x"));
}

fn work_that_would_be_dropped(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm Work; echo y >y; echo z >z.log").ok();
    assert_snapshot!(repo.sandbox(&["drop", "s"]), @r#"
        ---- stderr
        error: cannot drop 's': the host has not got everything
        caused by: 1 commit only at refs/sandbox/s: no branch or tag here contains them
        caused by: 1 file not committed: 'y'
        hint: `git sandbox merge s` or `git sandbox branch s BRANCH` takes the commits
        hint: `git sandbox apply s` takes the files, `git sandbox commit s -m MSG` commits them
        hint: `git sandbox drop --force s` moves it to the trash for 30 days
        ---- status 1
        "#);
    assert!(repo.sandbox(&["list"]).ok().contains('s'));
}

fn a_directory_that_cannot_be_a_tree(subject: &Subject) {
    let repo = subject.env.repo_at("x");
    let inner = subject.env.state().join("inner");
    fs::create_dir_all(subject.env.state()).unwrap();
    subject.env.sandbox(repo.env().root(), &["gc"]);
    fs::create_dir_all(&inner).unwrap();
    subject.env.git(&inner, &["init", "-q"]).ok();
    subject.env.git(&inner, &["commit", "-q", "--allow-empty", "-m", "x"]).ok();
    assert_snapshot!(subject.spawn_in(&inner, &["x"], "true"), @r#"
        ---- stderr
        error: '[STATE]/inner' is inside the state directory
        hint: use a repository outside of it
        ---- status 125
        "#);
}

fn pushing_into_a_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn_true(&repo, "s").expect(0);
    let seen = repo.git(&["push", "sandbox::s", "HEAD"]);
    assert!(seen.status != 0, "{seen}");
    assert!(seen.stderr.contains("error: a sandbox cannot be pushed to"), "{seen}");
}
