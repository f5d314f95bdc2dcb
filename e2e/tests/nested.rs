//! `--nested`: an agent's own sandbox starts inside ours, and shuts what it says it shuts.

use sandbox_testkit::{State, TestEnv, skip, which};

/// As agents call it.
const INNER: &str = "bwrap --unshare-all --ro-bind / / --dev /dev --proc /proc";

#[test]
fn an_inner_sandbox() {
    if which("bwrap").is_none() {
        skip!("no bwrap");
    }
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");

    let refused = repo.sandbox(&["spawn", "--rm", "--", "sh", "-c", &format!("{INNER} true")]);
    assert_ne!(refused.status, 0, "{refused}");
    assert!(refused.stderr.contains("No permissions to create new namespace"), "{refused}");
    assert!(!refused.stderr.contains("nested"), "{refused}");

    // A directory that the agent's help renames out here must not be renamed from in there.
    let script = format!(
        "mkdir d && echo x >d/f || exit 9
         {INNER} sh -c 'echo y >d/f' 2>/dev/null && exit 1
         {INNER} mv d e 2>/dev/null && exit 2
         {INNER} mv \"$PWD/d\" \"$PWD/e\" 2>/dev/null && exit 3
         test -f d/f -a ! -e e || exit 4
         {INNER} --bind \"$PWD\" \"$PWD\" sh -c 'mv d e && echo z >e/f' || exit 5
         grep -qx z e/f && mv e d && git status --porcelain"
    );
    let seen = repo.sandbox(&["spawn", "--nested", "in", "--", "sh", "-c", &script]);
    assert_eq!((seen.status, seen.stdout.as_str()), (0, "?? d/\n"), "{seen}");
    assert!(seen.stderr.contains("nested: programs inside may make namespaces"), "{seen}");
    // It stays so over a stop and a start.
    repo.sandbox(&["start", "in"]).ok();
    repo.sandbox(&["exec", "in", "--", "sh", "-c", &format!("{INNER} true")]).ok();
    let shown = repo.sandbox(&["show", "in"]).ok();
    assert!(shown.contains("nested: programs inside") && !shown.contains("landlock-abi"), "{shown}");

    let both = repo.sandbox(&["spawn", "--nested", "--root", "--", "true"]);
    assert!(both.status == 129 && both.stderr.contains("cannot be used with"), "{both}");
}
