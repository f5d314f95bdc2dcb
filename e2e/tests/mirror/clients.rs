//! Clients of other makes: what each of them checks out is what git has.

use crate::stand::{Mirror, Upstream, source};
use crate::tools;
use crate::way::repo;
use sandbox_testkit::{TestEnv, skip, which};
use std::fs;
use std::process::Command;

/// Clones with a client that prints the commit and its files, and compares.
fn same(env: &TestEnv, mirror: &Mirror, url: &str, mut client: Command, name: &str) {
    let dir = env.root().join(format!("by-{name}"));
    let printed = env.run(client.arg(url).arg(&dir)).ok();
    let by_git = env.root().join(format!("by-git-for-{name}"));
    env.git(env.root(), &["clone", "-q", url, by_git.to_str().unwrap()]).expect(0);
    let listed = env.git(&by_git, &["ls-files", "--format=%(path) %(objectname)"]).ok();
    let expected = format!("{}{listed}", env.git(&by_git, &["rev-parse", "HEAD"]).ok());
    assert_eq!(printed, expected, "{name}; the mirror's log:\n{:#?}", mirror.log());
    assert_eq!(fs::read(dir.join("src/d1/file.txt")).unwrap(), fs::read(by_git.join("src/d1/file.txt")).unwrap());
}

/// The same with each protocol that the client speaks.
fn with(name: &str, script: &str, schemes: &[&str], command: impl Fn(&TestEnv, &std::path::Path) -> Option<Command>) {
    let env = TestEnv::new();
    let file = env.root().join(name);
    fs::write(&file, script).unwrap();
    let Some(_) = command(&env, &file) else {
        skip!("without {name}'s client in target/tools");
    };
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mirror = Mirror::start(&env, &repo(&upstream.url("project"), "up.test/project"));
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    for scheme in schemes {
        let base = if *scheme == "git" { &mirror.git } else { &mirror.http };
        let url = format!("{base}/up.test/project");
        same(&env, &mirror, &url, command(&env, &file).unwrap(), scheme);
    }
}

fn python(module: &'static str) -> impl Fn(&TestEnv, &std::path::Path) -> Option<Command> {
    move |env, script| {
        let python = tools::python(module)?;
        let mut command = env.command(&python.program, env.root());
        command.env("PYTHONPATH", &python.packages).arg(script);
        Some(command)
    }
}

#[test]
fn libgit2_clones_and_fetches() {
    with("with_libgit2.py", include_str!("clients/with_libgit2.py"), &["http", "git"], python("pygit2"));
}

#[test]
fn dulwich_clones_and_fetches() {
    with("with_dulwich.py", include_str!("clients/with_dulwich.py"), &["http", "git"], python("dulwich"));
}

#[test]
fn isomorphic_git_clones_and_fetches() {
    with("with_isomorphic.mjs", include_str!("clients/with_isomorphic.mjs"), &["http"], |env, script| {
        let packages = tools::node("isomorphic-git")?;
        let mut command = env.command(which("node")?, env.root());
        command.arg(script).arg(packages);
        Some(command)
    });
}

#[test]
fn both_versions_of_git_clone_by_every_version_of_the_protocol() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mirror = Mirror::start(&env, &repo(&upstream.url("project"), "up.test/project"));
    let head = source.id("HEAD");
    mirror.wait_for("up.test/project", "refs/heads/main", &head);
    for git in sandbox_testkit::gits() {
        for version in ["0", "1", "2"] {
            for base in [&mirror.http, &mirror.git] {
                let dir = env.root().join("clone");
                let mut command = env.command(&git.path, env.root());
                command.args(["-c", &format!("protocol.version={version}"), "clone", "-q", "--depth=2"]);
                env.run(command.arg(format!("{base}/up.test/project")).arg(&dir)).expect(0);
                let mut command = env.command(&git.path, &dir);
                assert_eq!(env.run(command.args(["rev-parse", "HEAD"])).ok().trim(), head);
                let mut command = env.command(&git.path, &dir);
                env.run(command.args(["-c", &format!("protocol.version={version}"), "fetch", "-q", "--unshallow"]))
                    .expect(0);
                fs::remove_dir_all(&dir).unwrap();
            }
        }
    }
}
