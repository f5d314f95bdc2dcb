//! Wrong arguments, values and settings.

use super::{nothing_half_made, plain, spawn};
use insta::assert_snapshot;
use sandbox_testkit::TestEnv;

#[test]
fn a_value_that_is_none() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["x", "--memory", "lots"], "true"), @r#"
        ---- stderr
        error: 'lots' is not a size
        hint: for example 512m, 4g, or none
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--memory", "0"], "true"), @r#"
        ---- stderr
        error: '0' is not a size
        hint: for example 512m, 4g, or none
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--timeout", "soon"], "true"), @r#"
        ---- stderr
        error: 'soon' is not a time
        hint: for example [TIME], 10m, 2h
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--cpus", "-1"], "true"), @r#"
        ---- stderr
        error: '-1' is not a number of processors
        hint: for example 1.5
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--cpus", "0"], "true"), @r#"
        ---- stderr
        error: '0' is not a number of processors
        hint: for example 1.5
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--pids", "0"], "true"), @r#"
        ---- stderr
        error: 0 processes are too few
        hint: at least 16: some are the sandbox's own
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--net", "wifi"], "true"), @r#"
        ---- stderr
        error: invalid value 'wifi' for '--net <NET>'
          [possible values: none, host, allow]
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--allow-weak", "luck"], "true"), @r#"
        ---- stderr
        error: there is no layer 'luck' to go without
        hint: it is one of seccomp, landlock, limits, directory-renames
        ---- status 129
        "#);
    nothing_half_made(&repo);
    spawn(&repo, &["x"], "true").ok();
    assert_snapshot!(repo.sandbox(&["stop", "x", "--grace", "later"]), @r#"
        ---- stderr
        error: 'later' is not a time
        hint: for example [TIME]
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["wait", "x", "--timeout", "later"]), @r#"
        ---- stderr
        error: 'later' is not a time
        hint: for example [TIME], 10m, 2h
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "x:a", "b", "--max-size", "big"]), @r#"
        ---- stderr
        error: 'big' is not a size
        hint: for example 100m
        ---- status 129
        "#);
}

#[test]
fn a_variable_that_is_none() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["x", "--env", "NO_SUCH_VARIABLE"], "true"), @r#"
        ---- stderr
        error: the variable 'NO_SUCH_VARIABLE' is not set here
        hint: `--env NO_SUCH_VARIABLE=VALUE` gives it a value
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--env", "=value"], "true"), @r#"
        ---- stderr
        error: '' is not a variable's name
        hint: `--env NAME=VALUE`, where NAME has no space and does not start with a digit
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--env", "1st=value"], "true"), @r#"
        ---- stderr
        error: '1st' is not a variable's name
        hint: `--env NAME=VALUE`, where NAME has no space and does not start with a digit
        ---- status 129
        "#);
    nothing_half_made(&repo);
}

#[test]
fn arguments_that_are_missing_or_unknown() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(repo.sandbox(&["help", "spwan"]), @r#"
        ---- stderr
        error: there is no verb 'spwan'
        hint: `git sandbox help` lists them
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["completions", "tcsh"]), @r#"
        ---- stderr
        error: invalid value 'tcsh' for '<SHELL>'
          [possible values: bash, elvish, fish, powershell, zsh]
        hint: a similar value exists: 'zsh'
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["push"]), @r#"
        ---- stderr
        error: which sandbox?
        hint: `git sandbox push NAME`, or `git sandbox push` inside one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["show"]), @r#"
        ---- stderr
        error: the following required arguments were not provided:
          <NAME>
        usage: git sandbox show <NAME>
        hint: `git sandbox list` shows the sandboxes and their names
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["exec", "x"]), @r#"
        ---- stderr
        error: the following required arguments were not provided:
          <CMD>...
        usage: git sandbox exec <NAME> -- <CMD>...
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["spawn", "x", "make", "test"]), @r#"
        ---- stderr
        error: unexpected argument 'make' found
        usage: git sandbox spawn [OPTIONS] [NAME] [-- <CMD>...]
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["spawn", "--clean", "--from", "HEAD", "x"]), @r#"
        ---- stderr
        error: the argument '--clean' cannot be used with '--from <REV>'
        usage: git sandbox spawn --clean <NAME> [-- <CMD>...]
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["cp", "a", "b"]), @r#"
        ---- stderr
        error: one of the two must be in a sandbox, written NAME:PATH
        hint: for example `git sandbox cp fix-login:out/report.md .`
        ---- status 129
        "#);
    nothing_half_made(&repo);
}

#[test]
fn a_setting_that_is_not_valid() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let set = |key: &str, value: &str| {
        repo.git(&["config", key, value]).ok();
        let seen = spawn(&repo, &["x"], "true");
        repo.git(&["config", "--unset", key]).ok();
        seen
    };
    assert_snapshot!(set("sandbox.onExit", "explode"), @r#"
        ---- stderr
        error: 'explode' is not a value of sandbox.onExit
        hint: it is one of ask, merge, keep
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.net", "wifi"), @r#"
        ---- stderr
        error: 'wifi' is not a value of sandbox.net
        hint: it is one of none, host, allow
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.memory", "lots"), @r#"
        ---- stderr
        error: 'lots' is not a value of sandbox.memory
        hint: it is a size such as 4g, or none
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.pids", "many"), @r#"
        ---- stderr
        error: 'many' is not a value of sandbox.pids
        hint: it is a number, at least 16
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.captureLimit", "some"), @r#"
        ---- stderr
        error: 'some' is not a value of sandbox.captureLimit
        hint: it is a size such as 2g, or none
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.carrySecrets", "perhaps"), @r#"
        ---- stderr
        error: 'perhaps' is not a value of sandbox.carrySecrets
        hint: it is true or false
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.stateDir", "state"), @r#"
        ---- stderr
        error: 'state' is not an absolute path
        hint: `git config sandbox.stateDir` names the state directory: a path that starts with '/'
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.require", "luck"), @r#"
        ---- stderr
        error: there is no layer 'luck' to require (sandbox.require)
        hint: it is one of seccomp, landlock, limits, directory-renames, user-namespaces, proc, network, overlay, kernel
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.minIsolation", "moat"), @r#"
        ---- stderr
        error: 'moat' is not a value of sandbox.minIsolation
        hint: it is namespace or vm
        ---- status 125
        "#);
    assert_snapshot!(set("sandbox.driver", "teleport"), @r#"
        ---- stderr
        error: there is no driver 'teleport'
        hint: one of: namespace, qemu; `git sandbox doctor` tells about them
        ---- status 129
        "#);
    nothing_half_made(&repo);
}

#[test]
fn settings_of_virtual_machines_that_are_not_valid() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let set = |key: &str, value: &str| {
        repo.git(&["config", key, value]).ok();
        let output = repo.sandbox(&["doctor"]);
        repo.git(&["config", "--unset", key]).ok();
        output
    };
    assert_snapshot!(set("sandbox.vm.accel", "turbo"), @r#"
        ---- stderr
        error: 'turbo' is not a value of sandbox.vm.accel
        hint: it is auto (KVM where it really works), kvm, or tcg (emulation)
        ---- status 128
        "#);
    assert_snapshot!(set("sandbox.vm.kernel", "vmlinuz"), @r#"
        ---- stderr
        error: 'vmlinuz' is not an absolute path
        hint: sandbox.vm.kernel names the guest's kernel, for example /boot/vmlinuz-6.1.0-cloud-amd64
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["spawn", "--driver", "namespace", "--isolation", "vm", "x", "--", "true"]), @r#"
        ---- stderr
        error: the driver 'namespace' isolates by namespace, and at least vm is asked for
        hint: `--isolation`, sandbox.minIsolation or `min-isolation` of '.sandbox.toml' asks for it; `git sandbox doctor` lists the drivers that work here
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn a_project_file_that_is_not_valid() {
    let env = TestEnv::new();
    let repo = plain(&env);
    for text in ["net = \"host\"\n", "carry-secrets = true\n", "memory = \"lots\"\n", "hook = \"x\"\n", "=\n"] {
        repo.write(".sandbox.toml", text);
        let seen = spawn(&repo, &["x"], "true");
        assert!(seen.stderr.starts_with("error: '.sandbox.toml' is not valid\ncaused by: "), "{seen}");
        assert_eq!(seen.status, 125, "{seen}");
    }
    repo.write(".sandbox.toml", "net = \"host\"\n");
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: '.sandbox.toml' is not valid
        caused by: net = "host": only "none" tightens
        hint: it may have net, memory, disk, pids, timeout, carry-secrets, require, min-isolation and deny, each only to tighten your settings, and check and with, which you are asked about
        ---- status 125
        "#);
    repo.write(".sandbox.toml", "hook = \"x\"\n");
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: '.sandbox.toml' is not valid
        caused by: unknown field `hook`, expected one of `net`, `memory`, `disk`, `pids`, `timeout`, `carry-secrets`, `require`, `min-isolation`, `deny`, `with`, `check`
        hint: it may have net, memory, disk, pids, timeout, carry-secrets, require, min-isolation and deny, each only to tighten your settings, and check and with, which you are asked about
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn doctor_is_asked_for_what_is_not_here() {
    let env = TestEnv::new();
    let repo = plain(&env);
    // Wherever QEMU is installed.
    repo.git(&["config", "sandbox.vm.kernel", "/nowhere/vmlinuz"]).ok();
    let seen = repo.sandbox(&["doctor", "--require", "isolation=vm"]);
    assert_snapshot!(seen.stderr, @r#"
        error: not here: 'isolation=vm'
        hint: the checks above name what is missing
        "#);
    assert_eq!(seen.status, 1);
}
