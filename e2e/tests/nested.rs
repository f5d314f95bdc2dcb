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

/// Rootless, with the one id that there is: an image is made of files, and containers of it run with and without a
/// network namespace of their own. Nothing is asked of a registry. Why it is prepared so: docs/decisions/nested.md.
#[test]
#[ignore = "heavy: `cargo xtask test --all`"]
fn rootless_containers() {
    for needed in ["podman", "crun", "busybox"] {
        if which(needed).is_none() {
            skip!("no {needed}");
        }
    }
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let prepare = "mount -t tmpfs none /sys && mkdir -p /sys/fs/cgroup && \
        exec unshare -U --map-user=1000 --map-group=1000 sh containers.sh";
    repo.write(
        "containers.sh",
        r#"mkdir -p "$HOME/.config/containers" /tmp/run root/bin root/tmp && chmod 700 /tmp/run && cp "$(command -v busybox)" root/bin/
        export XDG_RUNTIME_DIR=/tmp/run
        echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$HOME/.config/containers/policy.json"
        printf '[containers]\nkeyring=false\ncgroups="disabled"\ndefault_sysctls=[]\n[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\n' \
            >"$HOME/.config/containers/containers.conf"
        printf '[storage]\ndriver="overlay"\n' >"$HOME/.config/containers/storage.conf"
        tar --owner=0 --group=0 -C root -c . | podman import -q - localhost/own >/dev/null || exit 1
        for net in host none; do
            podman run --rm --pull=never --network=$net localhost/own /bin/busybox sh -c 'echo in >/tmp/x && echo "$$ $(busybox id -u)"' || exit 2
        done
        podman run --rm --pull=never --network=host -v "$PWD:/work" localhost/own /bin/busybox sh -c 'echo made >/work/made' && cat made"#,
    );
    let seen = repo.sandbox(&["spawn", "-q", "--nested", "in", "--", "unshare", "-rm", "sh", "-c", prepare]);
    assert_eq!((seen.status, seen.stdout.as_str()), (0, "1 0\n1 0\nmade\n"), "{seen}");
    // What engines leave in the private home belongs to ids of theirs and is in nobody's way.
    repo.sandbox(&["drop", "--force", "in"]).expect(0);
}
