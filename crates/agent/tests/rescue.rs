//! Rescue commits of work trees in every condition, made with each git of the machine.

use sandbox_protocol::*;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

struct Repo {
    dir: TempDir,
    path: String,
}

/// Runs a test with each git: its directory goes first in `PATH`.
fn with_each_git(test: impl Fn(&Repo)) {
    let mut tried = 0;
    for bin in ["/usr/bin", "/usr/local/bin"] {
        if !Path::new(bin).join("git").exists() {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo { dir, path: format!("{bin}:{}", std::env::var("PATH").unwrap()) };
        let config = "[user]\nname = n\nemail = e@e\n[init]\ndefaultBranch = main\n";
        std::fs::write(repo.dir.path().join("config"), config).unwrap();
        repo.sh("git init -q top && cd top && printf 'out\\n' >.gitignore && echo 1 >a && echo 1 >b && echo 1 >c \
            && git add . && git commit -q -m base");
        test(&repo);
        tried += 1;
    }
    assert!(tried > 0, "no git on this machine");
}

impl Repo {
    fn top(&self) -> PathBuf {
        self.dir.path().join("top").canonicalize().unwrap()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.dir.path().join("config"));
        command
    }

    /// Runs a script above the repository; returns what it printed.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let output = self.command("/bin/bash").args(["-ec", script]).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn question(&self) -> RescueQuestion {
        let top = self.top();
        RescueQuestion {
            gitdir: top.join(".git").to_str().unwrap().into(),
            work_tree: top.to_str().unwrap().into(),
            scratch: self.dir.path().join("scratch").to_str().unwrap().into(),
            seconds: 60,
            file_bytes: 1 << 20,
            total_bytes: 8 << 20,
            ..RescueQuestion::default()
        }
    }

    fn ask(&self, question: &RescueQuestion) -> Result<RescueAnswer, String> {
        let mut child = self
            .command(env!("CARGO_BIN_EXE_agent-for-tests"))
            .arg(RESCUE_VERB)
            .current_dir(self.top())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&serde_json::to_vec(question).unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    }

    #[track_caller]
    fn rescue(&self) -> RescueAnswer {
        let _ = std::fs::remove_dir_all(self.dir.path().join("scratch"));
        self.ask(&self.question()).unwrap()
    }

    /// What git says of the commit, from where it is served.
    fn served(&self, args: &str) -> String {
        self.sh(&format!("git --git-dir=scratch/repo.git {args}"))
    }
}

#[test]
fn staged_unstaged_and_untracked_are_kept_apart_and_nothing_of_the_repository_is_written() {
    with_each_git(|repo| {
        repo.sh(
            "cd top; echo staged >a; git add a; echo unstaged >>a; echo work >b; rm c; echo new >'n\nl'; mkdir d; \
             echo x >d/e; echo ignored >out; echo '*.bin' >.sandboxignore; echo x >d/x.bin; mkfifo fifo",
        );
        let before = repo.sh("cd top; sha256sum .git/index; find .git | sort");
        let answer = repo.rescue();
        assert_eq!(repo.sh("cd top; sha256sum .git/index; find .git | sort"), before);
        let commit = answer.commit.unwrap();
        assert_eq!((answer.files, answer.left_out.as_slice()), (6, &[] as &[String]));
        assert_eq!(repo.served(&format!("show {commit}^2:a")), "staged");
        assert_eq!(repo.served(&format!("show {commit}:a")), "staged\nunstaged");
        assert_eq!(repo.served(&format!("show {commit}^2:b")), "1");
        assert_eq!(repo.served(&format!("ls-tree --name-only {commit}")), ".gitignore\na\nb");
        let others = repo.served(&format!("ls-tree -r --name-only {commit}^3"));
        assert_eq!(others, ".sandboxignore\nd/e\n\"n\\nl\"");
        assert_eq!(repo.served(&format!("rev-parse {commit}^")), repo.sh("git -C top rev-parse HEAD"));
        // It is a stash entry for git.
        repo.sh(&format!("git clone -q top other; cd other; git fetch -q ../scratch/repo.git {commit} 2>/dev/null || \
            git -c uploadpack.allowAnySHA1InWant=true fetch -q --upload-pack='git -c uploadpack.allowAnySHA1InWant=true upload-pack' ../scratch/repo.git {commit}; \
            git stash apply -q --index {commit}"));
        let status = repo.sh("cd other; git status --porcelain");
        assert_eq!(status, "MM a\n M b\n D c\n?? .sandboxignore\n?? d/\n?? \"n\\nl\"");
        let same = repo.rescue();
        assert_eq!(same.trees, answer.trees);
        let question = RescueQuestion { remove: true, ..repo.question() };
        repo.ask(&question).unwrap();
        assert!(!repo.dir.path().join("scratch").exists());
    });
}

#[test]
fn what_is_clean_makes_none_and_what_is_only_staged_does() {
    with_each_git(|repo| {
        assert_eq!(repo.rescue(), RescueAnswer::default());
        repo.sh("cd top; echo 2 >a; git add a; git show HEAD:a >a");
        let answer = repo.rescue();
        let commit = answer.commit.unwrap();
        assert_eq!(repo.served(&format!("show {commit}^2:a")), "2");
        assert_eq!(repo.served(&format!("show {commit}:a")), "1");
        assert_eq!(answer.files, 1);
    });
}

#[test]
fn locks_conflicts_and_an_unborn_branch_are_no_hindrance() {
    with_each_git(|repo| {
        repo.sh("cd top; git checkout -q -b o; echo o >a; git commit -qam o; git checkout -q main; echo m >a; \
             git commit -qam m; git merge o >/dev/null 2>&1 || true; touch .git/index.lock .git/HEAD.lock");
        let commit = repo.rescue().commit.unwrap();
        assert_eq!(repo.served(&format!("show {commit}^2:a")), "m");
        assert!(repo.served(&format!("show {commit}:a")).contains("<<<<<<<"));
        repo.sh("rm -rf top; git init -q top; cd top; echo x >s; git add s; echo y >u");
        let commit = repo.rescue().commit.unwrap();
        assert_eq!(repo.served(&format!("ls-tree --name-only {commit}^2")), "s");
        assert_eq!(repo.served(&format!("ls-tree --name-only {commit}^3")), "u");
    });
}

#[test]
fn what_is_left_out_is_named_and_no_repository_dangles() {
    with_each_git(|repo| {
        repo.sh("cd top; git init -q known; git -C known commit -q --allow-empty -m x; cp -r known unknown; \
                 git init -q added; git -C added commit -q --allow-empty -m x; git add added 2>/dev/null; \
                 git -C added commit -q --allow-empty -m y; echo small >small");
        let sparse = std::fs::File::create(repo.top().join("sparse")).unwrap();
        sparse.write_at(b"x", 1 << 40).unwrap();
        let full = vec![7; 1 << 20];
        for n in 0..9 {
            std::fs::write(repo.top().join(format!("z{n}")), &full).unwrap();
        }
        let mut question = repo.question();
        question.nested = vec!["known".into()];
        let answer = repo.ask(&question).unwrap();
        let commit = answer.commit.unwrap();
        let mut left_out = answer.left_out;
        left_out.sort();
        assert_eq!(
            left_out,
            [
                "'added': a repository that the host does not have",
                "'sparse': it is larger than 1 MiB",
                "'unknown': a repository that the host does not have",
                "'z7': all files are larger than 8 MiB",
                "'z8': all files are larger than 8 MiB",
            ]
        );
        assert!(!repo.served(&format!("ls-tree -r {commit}^3")).contains("160000"));
    });
}

#[test]
fn a_filter_that_does_not_end_is_ended_and_no_hook_runs() {
    with_each_git(|repo| {
        repo.sh("cd top; mkdir -p .git/hooks; printf '#!/bin/sh\ntouch hooked\n' >.git/hooks/post-index-change; \
                 chmod +x .git/hooks/*; git config core.fsmonitor 'touch monitored'; echo 2 >b");
        assert!(repo.rescue().commit.is_some());
        assert!(!repo.top().join("hooked").exists() && !repo.top().join("monitored").exists());
        repo.sh("cd top; echo '* filter=slow' >.gitattributes; git config filter.slow.clean 'sleep 1000'; echo 3 >b");
        std::fs::remove_dir_all(repo.dir.path().join("scratch")).unwrap();
        let question = RescueQuestion { seconds: 1, ..repo.question() };
        let error = repo.ask(&question).unwrap_err();
        assert!(error.contains("did not end"), "{error}");
    });
}
