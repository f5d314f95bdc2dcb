//! Commits come back, through checks, and nothing else of the host changes.

use crate::Subject;
use sandbox_testkit::{Repo, State, wait_until};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

over_views! {
    commits_come_back_at_the_end,
    commits_come_back_while_it_runs,
    push_host_brings_them_now,
    fetch_host_brings_new_commits_in,
    the_host_can_fetch_by_url,
    only_our_refs_change,
    all_that_was_made_comes_back,
    an_amend_keeps_the_older_commit,
    commits_of_a_submodule_come_back,
    names_of_branches_are_mapped_or_refused_one_by_one,
    a_bad_commit_is_refused_and_says_so,
    a_configuration_inside_runs_nothing_on_the_host,
    control_characters_do_not_reach_the_terminal,
    what_the_server_inside_says_is_escaped,
    log_and_diff_show_what_was_made,
    files_can_be_copied,
    a_commit_can_be_made_from_outside,
    what_is_home_is_not_asked_for_again,
    what_leads_out_of_a_git_directory_is_asked_for_each_time,
}

over_guests! {
    commits_come_back_at_the_end,
}

/// Everything in the host's git directory but objects and what may change, with its contents.
fn git_dir(repo: &Repo) -> String {
    repo.sh(
        "cd .git && find . -path ./objects -prune -o -path ./refs/sandbox -prune -o -path ./refs/sandbox-meta -prune \
         -o -path ./logs/refs/sandbox -prune -o -path ./logs/refs/sandbox-meta -prune -o -name sandbox-id -prune \
         -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum",
    )
    .ok()
}

fn commits_come_back_at_the_end(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    let script = "echo new >new; git add new; git commit -qm 'One'; git commit -qam 'Two'; git rev-parse HEAD";
    let tip = subject.spawn(&repo, &["fix"], script).ok();
    assert_eq!(repo.id("refs/sandbox/fix"), tip.trim());
    assert_eq!(repo.git(&["log", "--format=%s %an", "HEAD..sandbox/fix"]).ok(), "Two Dev\nOne Dev\n");
    assert_eq!(repo.git(&["fsck", "--full"]).status, 0);
}

fn commits_come_back_while_it_runs(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    for n in 0..3 {
        subject.exec(&repo, "s", &format!("git commit -q --allow-empty -m 'Number {n}'")).ok();
        let here = || repo.git(&["log", "-1", "--format=%s", "sandbox/s", "--"]).stdout == format!("Number {n}\n");
        wait_until("the commit is here", Duration::from_secs(60), here);
    }
}

fn push_host_brings_them_now(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let seen = subject.exec(
        &repo,
        "s",
        "git checkout -q -b topic && git commit -q --allow-empty -m Pushed && git push host HEAD",
    );
    assert_eq!(seen.status, 0, "{seen}");
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "Pushed\n");
    subject.exec(&repo, "s", "git commit -q --allow-empty -m Again && git sandbox push").ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "Again\n");
    let seen = subject.exec(&repo, "s", "git push host HEAD:refs/heads/main");
    assert!(seen.status != 0, "no other target exists: {seen}");
}

fn fetch_host_brings_new_commits_in(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    repo.commit("later.txt", "later\n");
    let private = repo.id("other:docs/other.md");
    let seen = subject.exec(
        &repo,
        "s",
        "git fetch -q host && git log -1 --format=%s host/main && git cat-file -p host/main:later.txt",
    );
    assert_eq!(seen.ok(), "Change later.txt\nlater\n");
    let seen = subject.exec(
        &repo,
        "s",
        &format!("git fetch host {private} || git fetch host other || git cat-file -e {private}"),
    );
    assert!(seen.status != 0, "what was not granted cannot be fetched: {seen}");
    subject.exec(&repo, "s", "git merge -q --ff-only host/main && git sandbox sync && test -f later.txt").ok();
}

fn the_host_can_fetch_by_url(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "git commit -q --allow-empty -m There").ok();
    repo.git(&["fetch", "sandbox::s"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "FETCH_HEAD"]).ok(), "There\n");
    repo.git(&["fetch", "-q", "sandbox::s", "HEAD:refs/heads/brought"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "brought"]).ok(), "There\n");
    assert!(repo.git(&["fetch", "sandbox::nobody"]).status != 0);
}

fn only_our_refs_change(subject: &Subject) {
    let repo = subject.repo(State::Stash);
    repo.git(&["config", "fetch.prune", "true"]).ok();
    let before = git_dir(&repo);
    let script = "echo x >x; git add x; git commit -qm x; git checkout -q -b topic; git commit -q --allow-empty -m t; git tag v9; git branch -D main; git stash drop -q";
    subject.spawn(&repo, &["s"], script).ok();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(git_dir(&repo), before);
    let refs = repo.git(&["for-each-ref", "--format=%(refname)"]).ok();
    for name in refs.lines() {
        let known = ["refs/heads/", "refs/tags/v1", "refs/stash", "refs/sandbox/s", "refs/sandbox-meta/s/"];
        assert!(known.iter().any(|prefix| name.starts_with(prefix)), "{refs}");
    }
}

fn all_that_was_made_comes_back(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r#"
        git checkout -q -b a && git commit -q --allow-empty -m on-a && git branch -m a moved && git branch a/b
        git checkout -q --detach && git commit -q --allow-empty -m detached && git tag made
        echo s >>README.md && git stash push -q -m stashed
        git checkout -q main"#;
    subject.spawn(&repo, &["s"], script).ok();
    let refs = repo.git(&["for-each-ref", "--format=%(refname) %(subject)", "refs/sandbox-meta/s"]).ok();
    for (place, what) in [("heads", "on-a"), ("tags", "detached"), ("stash", "stashed")] {
        let found = refs.lines().any(|line| line.contains(&format!("/{place}/")) && line.contains(what));
        assert!(found, "{place}: {refs}");
    }
}

fn an_amend_keeps_the_older_commit(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let first =
        subject.exec(&repo, "s", "git commit -q --allow-empty -m first && git rev-parse HEAD && git push -q host HEAD");
    let first = first.ok().trim().to_owned();
    subject.exec(&repo, "s", "git commit -q --amend --allow-empty -m second && git push -q host HEAD").ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "second\n");
    let reflog = repo.git(&["reflog", "show", "--format=%H", "refs/sandbox/s"]).ok();
    assert!(reflog.contains(&first), "{reflog}");
}

fn commits_of_a_submodule_come_back(subject: &Subject) {
    let repo = subject.repo(State::Submodule);
    let script = "cd lib && echo in >>docs/in-submodule.md && git commit -qam Inner && cd .. && git add lib && git commit -qm Outer && git -C lib rev-parse HEAD";
    let inner = subject.spawn(&repo, &["s"], script).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "Outer\n");
    let seen = subject.env.git(&repo.dir().join("lib"), &["log", "-1", "--format=%H %s", "refs/sandbox/s"]).ok();
    assert_eq!(seen, format!("{} Inner\n", inner.trim()));
    repo.sh("git -C lib checkout -q -f HEAD && git merge -q --ff-only sandbox/s && git -c protocol.allow=never submodule update").ok();
    assert_eq!(repo.read("lib/docs/in-submodule.md"), "new\nin\n");
}

/// Names that a shell, a terminal or git could take for something else, and one that is too long.
fn names_of_branches_are_mapped_or_refused_one_by_one(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r#"git commit -q --allow-empty -m odd; c=$(git rev-parse HEAD)
        for n in -x @ HEAD FETCH_HEAD 1111111111111111111111111111111111111111 'b;touch${IFS}x' 'b`id`' 'per%cent' \
            'plus+/x' refs/heads/main "x'y\"z" "$(printf 'c1\302\233x')" "$(printf 'rtl\342\200\256x')" \
            "$(printf 'zw\342\200\213x')" "$(printf 'bad\377x')" "$(head -c 240 /dev/zero | tr '\0' l)"; do
            git update-ref "refs/heads/$n" $c || exit 9
        done"#;
    let top = || repo.sh("ls -A").ok();
    let before = top();
    let seen = subject.spawn(&repo, &["-q", "s"], script).expect(125);
    let refused =
        format!("error: not brought home: 'refs/heads/{}' (its name is longer than 200 bytes)\n", "l".repeat(240));
    assert!(seen.stderr.starts_with(&refused), "{seen}");
    let home = repo.git(&["for-each-ref", "--format=%(refname:lstrip=4)", "refs/sandbox-meta/s/heads"]).ok();
    let mapped = "%40 -x 1111111111111111111111111111111111111111 FETCH_HEAD HEAD b%3Btouch%24%7BIFS%7Dx b%60id%60 bad%FFx \
        c1%C2%9Bx main per%25cent plus%2B+/x refs+/heads+/main rtl%E2%80%AEx x%27y%22z zw%E2%80%8Bx";
    assert_eq!(home.split_whitespace().collect::<Vec<_>>(), mapped.split_whitespace().collect::<Vec<_>>());
    for verb in
        [&["list"][..], &["show", "s"], &["log", "s"], &["fetch", "s"], &["list", "--json"], &["show", "--json", "s"]]
    {
        let seen = repo.sandbox(verb);
        let text = seen.stdout.clone() + &seen.stderr;
        assert!(!text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')), "{verb:?}: {seen}");
    }
    assert_eq!(top(), before, "a name was run");
    assert_eq!(repo.git(&["fsck", "--full"]).status, 0);
}

/// A tree with `.git` in it must not land; what was fine before stays.
fn a_bad_commit_is_refused_and_says_so(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "git commit -q --allow-empty -m good && git push -q host HEAD").ok();
    let good = repo.id("sandbox/s");
    let script = r#"
        blob=$(echo '#!/bin/sh' | git hash-object -w --stdin)
        printf '100755 pre-commit\0' >/tmp/t; printf %s "$blob" | perl -ne 'print pack "H*", $_' >>/tmp/t
        hooks=$(git hash-object -w -t tree --literally /tmp/t)
        printf '40000 .git\0' >/tmp/t; printf %s "$hooks" | perl -ne 'print pack "H*", $_' >>/tmp/t
        tree=$(git hash-object -w -t tree --literally /tmp/t)
        git update-ref refs/heads/main $(git commit-tree -p HEAD -m bad $tree)
        git push host HEAD"#;
    let seen = subject.exec(&repo, "s", script);
    assert!(seen.status != 0, "{seen}");
    let fetched = repo.sandbox(&["fetch", "s"]);
    assert!(fetched.status != 0 && fetched.stderr.contains(".git"), "{fetched}");
    assert_eq!(repo.id("sandbox/s"), good);
    let left = repo.sh("find .git/objects -name 'tmp_*' -o -name '*.keep'").ok();
    assert_eq!(left, "");
}

/// Host git must not read a single line of a configuration, hook or attribute from inside.
fn a_configuration_inside_runs_nothing_on_the_host(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let canary = subject.env.root().join("canary");
    let touch = format!("touch '{}' #", canary.display());
    let script = format!(
        r#"
        for key in core.fsmonitor core.sshCommand core.editor core.pager diff.external filter.x.clean filter.x.smudge \
            uploadpack.packObjectsHook core.alternateRefsCommand gc.recentObjectsHook credential.helper; do
            git config "$key" "{touch}"; git config --global "$key" "{touch}" 2>/dev/null
        done
        for hook in reference-transaction post-checkout post-merge pre-push update pre-receive post-rewrite; do
            printf '#!/bin/sh\n{touch}\n' >.git/hooks/$hook; chmod +x .git/hooks/$hook
        done
        echo '* filter=x diff=x' >.gitattributes; cp .gitattributes .git/info/attributes
        echo x >x; git -c core.fsmonitor= -c filter.x.clean= add x .gitattributes
        git -c core.fsmonitor= -c filter.x.clean= commit -qm x; exit 0"#
    );
    subject.spawn(&repo, &["s"], &script).ok();
    for verb in [
        &["list"][..],
        &["show", "s"],
        &["fetch", "s"],
        &["log", "s"],
        &["diff", "s"],
        &["diff", "s", "--uncommitted"],
        &["merge", "s"],
    ] {
        repo.sandbox(verb);
        assert!(!canary.exists(), "`{}` ran something from inside", verb.join(" "));
    }
    repo.sandbox(&["drop", "--force", "s"]).ok();
    assert!(!canary.exists());
}

fn control_characters_do_not_reach_the_terminal(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = r#"
        esc=$(printf '\033]52;c;eA==\007\033[2Jx\302\233y')
        git -c user.name="$esc" commit -q --allow-empty -m "$esc" && git branch "b$(printf '\302\233')" && printf "$esc" >"f$esc"
        git tag -m "$esc" "t$(printf '\342\200\256')"; git add -A; git commit -qm "$esc"; printf %s "$esc"; printf %s "$esc" >"g$esc""#;
    subject.spawn(&repo, &["-d", "s"], script).ok();
    repo.sandbox(&["wait", "s"]).ok();
    for verb in [
        &["list"][..],
        &["show", "s"],
        &["log", "s"],
        &["diff", "--stat", "s"],
        &["logs", "s"],
        &["diff", "--uncommitted", "s"],
        &["drop", "s"],
    ] {
        let seen = repo.sandbox(verb);
        for (name, text) in [("stdout", &seen.stdout), ("stderr", &seen.stderr)] {
            let bad = text
                .chars()
                .find(|c| (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}'));
            assert!(bad.is_none(), "`{}` {name}: {bad:?} in {text:?}", verb.join(" "));
        }
    }
}

/// CVE-2024-52005: what the other side of a fetch says on its second band is printed as it is.
fn what_the_server_inside_says_is_escaped(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let script = r#"printf '#!/bin/sh\nprintf "\\033]52;c;eA==\\007\\033[2Jhello\\n" >&2\nexec "$@"\n' >~/hook && chmod +x ~/hook &&
        git config --global uploadpack.packObjectsHook ~/hook && git config uploadpack.packObjectsHook ~/hook &&
        git commit -q --allow-empty -m One && git clone -q --no-local . ~/copy 2>&1"#;
    let control = subject.exec(&repo, "s", script).ok();
    assert!(control.contains("\u{1b}[2Jhello"), "git itself prints it: {control:?}");
    for (n, verb) in [&["fetch", "s"][..], &["log", "s"], &["fetch", "s"]].into_iter().enumerate() {
        subject.exec(&repo, "s", &format!("git commit -q --allow-empty -m 'Number {n}'")).ok();
        let seen = repo.sandbox(verb);
        assert!(!format!("{}{}", seen.stdout, seen.stderr).contains('\u{1b}'), "{verb:?}: {seen}");
        assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), format!("Number {n}\n"));
    }
    let seen = repo.git(&["fetch", "sandbox::s"]);
    assert!(seen.status == 0 && !seen.stderr.contains('\u{1b}'), "{seen}");
    // And of one that was stopped, by its helper.
    subject.exec(&repo, "s", "git commit -q --allow-empty -m Last").ok();
    repo.sandbox(&["stop", "s"]).ok();
    let seen = repo.sandbox(&["fetch", "s"]).expect(0);
    assert!(!format!("{}{}", seen.stdout, seen.stderr).contains('\u{1b}'), "{seen}");
}

fn log_and_diff_show_what_was_made(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.spawn(&repo, &["s"], "echo new >new.txt; git add new.txt; git commit -qm 'Add new'; echo more >more.txt; echo changed >>docs/more.md").ok();
    let log = repo.sandbox(&["log", "s"]).ok();
    assert!(log.contains("Add new") && !log.contains("Start"), "{log}");
    let diff = repo.sandbox(&["diff", "s"]).ok();
    assert!(diff.contains("+new") && !diff.contains("more.txt") && !diff.contains("a.c"), "{diff}");
    let stat = repo.sandbox(&["diff", "s", "--stat"]).ok();
    assert!(stat.contains("new.txt"), "{stat}");
    let uncommitted = repo.sandbox(&["diff", "s", "--uncommitted"]).ok();
    assert!(uncommitted.contains("more.txt") && uncommitted.contains("+changed"), "{uncommitted}");
    assert!(
        !uncommitted.contains("new.txt") && !uncommitted.contains("src/a.c"),
        "against the captured state: {uncommitted}"
    );
}

fn files_can_be_copied(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "mkdir -p out && echo report >out/report.md && chmod 755 out/report.md && ln -s /etc/passwd out/trap && echo a >out/a").ok();
    let target = subject.env.root().join("copied");
    repo.sandbox(&["cp", "s:out/report.md", &target.to_string_lossy()]).ok();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "report\n");
    std::fs::write(subject.env.root().join("in.txt"), "brought\n").unwrap();
    let source = subject.env.root().join("in.txt");
    repo.sandbox(&["cp", &source.to_string_lossy(), "s:brought.txt"]).ok();
    assert_eq!(subject.exec(&repo, "s", "cat brought.txt").ok(), "brought\n");
    let dir = subject.env.root().join("outdir");
    repo.sandbox(&["cp", "s:out", &dir.to_string_lossy()]);
    assert!(dir.join("trap").symlink_metadata().is_err(), "a link out of the tree is not made on the host");
    assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "a\n");
}

fn a_commit_can_be_made_from_outside(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo never >never-committed.txt; echo changed >>README.md").ok();
    repo.sandbox(&["commit", "s", "-m", "From outside"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "From outside\n");
    assert_eq!(repo.git(&["show", "sandbox/s:never-committed.txt"]).ok(), "never\n");
    repo.sandbox(&["branch", "s", "topic/x"]).ok();
    assert_eq!(repo.id("topic/x"), repo.id("sandbox/s"));
}

/// Each commit-back that finds nothing more to bring writes `brought.json` anew.
fn asked(subject: &Subject) -> Option<u64> {
    let found = |entry: std::fs::DirEntry| std::fs::metadata(entry.path().join("brought.json")).ok();
    let mut all = std::fs::read_dir(subject.env.state().join("sandboxes")).unwrap();
    all.find_map(|entry| found(entry.unwrap())).map(|meta| meta.ino())
}

/// The git directory of the only sandbox, where its own changes are.
fn own_git_dir(subject: &Subject) -> std::path::PathBuf {
    let mut all = std::fs::read_dir(subject.env.state().join("sandboxes")).unwrap();
    all.next().unwrap().unwrap().path().join("trees/0/upper/.git")
}

fn what_is_home_is_not_asked_for_again(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "git commit -q --allow-empty -m One; git commit -q --allow-empty -m Two; git rev-parse HEAD^ HEAD";
    let made = subject.spawn(&repo, &["s"], script).ok();
    let (one, two) = made.trim().split_once('\n').unwrap();
    // What git does at its end may have come after the last import: then it is asked once.
    repo.sandbox(&["fetch", "s"]).ok();
    let known = asked(subject).expect("everything is home");
    for verb in [&["fetch", "s"][..], &["log", "s"], &["diff", "s"], &["conflicts"], &["merge", "--dry-run", "s"]] {
        repo.sandbox(verb).expect(0);
        assert_eq!(asked(subject), Some(known), "{verb:?} asked again");
    }
    // A ref here that somebody moved or deleted.
    for change in [["update-ref", "refs/sandbox/s", one], ["update-ref", "-d", "refs/sandbox/s"]] {
        repo.git(&change).ok();
        repo.sandbox(&["fetch", "s"]).ok();
        assert_eq!(repo.id("refs/sandbox/s"), two, "{change:?}");
        assert!(asked(subject).is_some());
    }
    if subject.driver == "qemu" {
        // What is here is a picture: nobody changes its disk from outside.
        return;
    }
    // A ref there, written with the size and the time that it had.
    let file = own_git_dir(subject).join("refs/heads/main");
    let times = std::fs::metadata(&file).unwrap().modified().unwrap();
    let mut open = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.write_all(format!("{one}\n").as_bytes()).unwrap();
    open.set_modified(times).unwrap();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.id("refs/sandbox/s"), one);
    // A record that is no more what was written.
    let record = own_git_dir(subject).join("../../../../brought.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replacen("inside", "inSide", 1)).unwrap();
    std::fs::write(&file, format!("{two}\n")).unwrap();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.id("refs/sandbox/s"), two);
    // And what it commits in another life.
    repo.sandbox(&["start", "s"]).ok();
    let three = subject.exec(&repo, "s", "git commit -q --allow-empty -m Three; git rev-parse HEAD").ok();
    repo.sandbox(&["stop", "s"]).ok();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.id("refs/sandbox/s"), three.trim());
}

fn what_leads_out_of_a_git_directory_is_asked_for_each_time(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "git commit -q --allow-empty -m One && mkdir there && mv .git/refs/heads there/ &&
        ln -s ../../there/heads .git/refs/heads && git commit -q --allow-empty -m Two && git rev-parse HEAD";
    let two = subject.spawn(&repo, &["s"], script).ok();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.id("refs/sandbox/s"), two.trim());
    assert_eq!(asked(subject), None, "nobody can tell what is behind the link");
    // Nothing in the git directory changes.
    let file = own_git_dir(subject).join("../there/heads/main");
    std::fs::write(file, format!("{}\n", repo.id("HEAD"))).unwrap();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.id("refs/sandbox/s"), repo.id("HEAD"));
}
