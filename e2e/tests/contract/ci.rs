//! For CI: results are copied out before the sandbox goes, however its command ended, and a report tells all.

use crate::Subject;
use sandbox_testkit::{Child, Repo, State, wait_until};
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;

over_drivers! {
    results_come_out_however_it_ends,
    nothing_inside_decides_what_is_read_or_written,
    what_could_not_be_copied_keeps_the_sandbox,
    a_report_is_there_from_the_beginning,
    an_interrupted_run_is_reported,
    what_must_stand_is_asked_for,
}

fn report(repo: &Repo) -> Value {
    serde_json::from_str(&repo.read("../../report.json")).unwrap()
}

fn results_come_out_however_it_ends(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    // Ignored, so that nothing is left that would keep the sandbox.
    repo.commit(".gitignore", "out/\n");
    for (n, (script, status, state)) in
        [("true", 0, "exited"), ("exit 7", 7, "exited"), ("kill -9 $$", 137, "killed"), ("sleep 60", 124, "timed-out")]
            .into_iter()
            .enumerate()
    {
        let script = format!("mkdir out; echo {n} >out/a.xml; echo b >out/b.xml; echo c >out/c.txt; {script}");
        let args = [
            "--rm",
            "--timeout",
            "2s",
            "--copy-out",
            "out/*.xml:../../results/",
            "--report",
            "../../report.json",
            "ci",
        ];
        let seen = subject.spawn(&repo, &args, &script);
        assert_eq!(seen.status, status, "{seen}");
        assert_eq!(repo.read("../../results/a.xml"), format!("{n}\n"));
        assert!(repo.has("../../results/b.xml") && !repo.has("../../results/c.txt"));
        let report = report(&repo);
        assert_eq!(
            (report["state"].as_str(), report["status"].as_i64()),
            (Some(state), Some(status.into())),
            "{report}"
        );
        assert_eq!(report["copied_out"][0]["files"], 2, "{report}");
        assert_eq!((&report["kept"], &report["name"]), (&Value::Bool(false), &Value::from("ci")), "{report}");
        assert!(report["usage"]["largest_process"].as_u64().unwrap() > 1 << 20, "{report}");
        assert!(report["usage"]["cpu_ms"].is_array() && report["times"]["run_ms"].is_u64(), "{report}");
        let isolation = &report["isolation"];
        assert_eq!((&isolation["level"], &isolation["network"]), (&"namespace".into(), &"none".into()), "{report}");
        let enforced = isolation["enforced"].as_array().unwrap();
        assert!(enforced.contains(&"seccomp".into()) && enforced.contains(&"user-namespace".into()), "{report}");
        let timeout = report["limits_hit"].as_array().unwrap().contains(&"timeout".into());
        assert_eq!(timeout, state == "timed-out", "{report}");
        assert!(repo.sandbox(&["list"]).stdout.is_empty());
    }
}

fn nothing_inside_decides_what_is_read_or_written(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let secret = subject.env.root().join("secret");
    std::fs::write(&secret, "gs-canary").unwrap();
    std::fs::create_dir(repo.dir().join("../../results")).unwrap();
    std::os::unix::fs::symlink(&secret, repo.dir().join("../../results/there")).unwrap();
    let script = format!(
        "mkdir -p out/.git out/deep; ln -s '{0}' out/link; ln -s / out/root; mkfifo out/fifo; echo x >out/.git/config
         echo s >out/suid; chmod 4755 out/suid; echo new >out/there; echo d >out/deep/d; ln -s deep/d out/inner
         ln -s '{0}' out/deep/up; cp out/suid \"$(printf 'out/\\033[2Jx')\"",
        secret.display()
    );
    let args =
        ["ci", "--copy-out", "out/*:../../results", "--copy-out", "out:../../whole", "--report", "../../report.json"];
    let seen = subject.spawn(&repo, &args, &script);
    assert_eq!(seen.status, 0, "{seen}");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "gs-canary", "written through a link");
    assert!(!repo.sh("grep -rs gs-canary ../../results ../../whole ../../report.json").stdout.contains("canary"));
    assert!(!repo.has("../../results/.git") && !repo.has("../../whole/.git") && !repo.has("../../whole/fifo"));
    assert!(!repo.has("../../whole/link") && !repo.has("../../whole/root") && !repo.has("../../whole/deep/up"));
    assert_eq!(repo.read("../../whole/inner"), "d\n");
    let mode = repo.sh("stat -c %a ../../whole/suid ../../results/suid").ok();
    assert!(mode.lines().all(|mode| mode.len() == 3), "{mode}");
    assert!(!seen.stderr.contains('\u{1b}') && seen.stderr.contains("skipped 'out/fifo'"), "{seen}");
    let report = report(&repo);
    assert!(report["copied_out"][1]["skipped"].as_array().unwrap().len() >= 4, "{report}");
    assert!(!repo.read("../../report.json").contains('\u{1b}'));
}

fn what_could_not_be_copied_keeps_the_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let copy = |name: &str, wish: &str, script: &str| {
        subject.spawn(&repo, &["--rm", "--copy-out", wish, "--report", "../../report.json", name], script)
    };
    for (n, wish) in ["nothing*:../../r/", "no/such:../../r", "../up:../../r", "a[:../../r", "/etc/passwd:../../r"]
        .iter()
        .enumerate()
    {
        let name = format!("ci-{n}");
        let seen = copy(&name, wish, "true");
        assert_eq!(seen.status, 125, "{seen}");
        assert!(seen.stderr.contains("error: cannot copy '") && seen.stderr.contains("caused by: "), "{seen}");
        assert!(seen.stderr.contains(&format!("kept: '{name}'")), "{seen}");
        assert!(report(&repo)["kept"].as_bool().unwrap() && !repo.has("../../r/passwd"), "{seen}");
        assert_eq!(report(&repo)["status"], 125);
        repo.sandbox(&["drop", &name]).ok();
    }
    // The command's own status is told before ours.
    assert_eq!(copy("ci", "nothing*:../../r/", "exit 3").status, 3);
    let seen = subject.spawn(&repo, &["--copy-out", "x", "other"], "true");
    assert_eq!(
        (seen.status, seen.stderr.as_str()),
        (129, "error: 'x' is not SRC:DST\nhint: for example `--copy-out 'target/*.xml:reports/'`\n")
    );
}

fn a_report_is_there_from_the_beginning(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let seen = subject.spawn(&repo, &["--report", "no/such/dir.json", "ci"], "true");
    assert_eq!(seen.status, 125, "{seen}");
    assert!(seen.stderr.starts_with("error: cannot write the report '"), "{seen}");
    assert!(seen.stderr.contains("hint: `--report FILE` names a file in a directory that exists"), "{seen}");
    // What never started is reported too.
    let seen = subject.spawn(&repo, &["--report", "../../report.json", "--allow-weak", "luck", "ci"], "true");
    let told = report(&repo);
    assert_eq!((told["state"].as_str(), told["status"].as_i64()), (Some("failed"), Some(seen.status.into())), "{told}");
    assert_eq!(told["error"]["message"], "there is no layer 'luck' to go without");
    let seen = repo.sandbox(&["spawn", "--report", "../../report.json", "ci", "--", "no-such-command"]);
    assert_eq!((seen.status, report(&repo)["status"].as_i64()), (127, Some(127)), "{seen}");
    // Nobody is left beside it.
    let beside = repo.sh("ls -A ../.. | grep -c report").ok();
    assert_eq!(beside, "1\n");
    // Killed, there is what was true at last.
    let args = ["spawn", "--driver", subject.driver, "--report", "../../report.json", "killed", "--", "sleep", "60"];
    let mut command = subject.env.sandbox_command(repo.dir(), &args);
    let mut child = Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until("the command has begun", Duration::from_secs(30), || report(&repo)["name"] == "killed");
    child.kill();
    let told = report(&repo);
    assert_eq!((&told["state"], &told["kept"]), (&"begun".into(), &true.into()), "{told}");
}

fn an_interrupted_run_is_reported(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "trap '' INT; mkdir out; echo r >out/r; echo ready; sleep 60 & wait; sleep 60";
    let args = [
        "spawn",
        "--driver",
        subject.driver,
        "--copy-out",
        "out/r:../../r",
        "--report",
        "../../report.json",
        "ci",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut command = subject.env.sandbox_command(repo.dir(), &args);
    let mut child = Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until("it runs", Duration::from_secs(30), || repo.sandbox(&["logs", "ci"]).stdout.contains("ready"));
    let pid = i32::try_from(child.pid()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    for _ in 0..2 {
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(child.wait(Duration::from_secs(60)), 130);
    let told = report(&repo);
    assert_eq!((told["state"].as_str(), told["status"].as_i64()), (Some("interrupted"), Some(130)), "{told}");
    assert_eq!(repo.read("../../r"), "r\n");
}

/// `sandbox.require`, `sandbox.minIsolation`, `.sandbox.toml`, `--allow-weak`.
fn what_must_stand_is_asked_for(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    // Nested, there is no Landlock: the one layer that is missing on any machine.
    let nested = |name: &str, more: &[&str]| subject.spawn(&repo, &[&["--nested", name], more].concat(), "true");
    nested("free", &[]).ok();
    repo.git(&["config", "sandbox.require", "landlock, seccomp"]).ok();
    let seen = nested("strict", &[]);
    assert_eq!(seen.status, 125, "{seen}");
    assert!(
        seen.stderr.contains("error: 'landlock' cannot be enforced here\ncaused by: a nested sandbox has none\n"),
        "{seen}"
    );
    assert!(seen.stderr.contains("hint: `--allow-weak=landlock` goes on without it, at your risk"), "{seen}");
    // One that was made before is asked for it as well.
    let seen = repo.sandbox(&["exec", "free", "--", "true"]);
    assert!(seen.status == 125 && seen.stderr.contains("'landlock' cannot be enforced here"), "{seen}");
    let seen = nested("weak", &["--allow-weak", "landlock"]).expect(0);
    // A machine without a cgroup for this user says that, too.
    let doctor = repo.sandbox(&["doctor", "--json"]).stdout;
    let doctor: serde_json::Value = serde_json::from_str(&doctor).unwrap();
    let limits = doctor.to_string().contains("no cgroup of this user's");
    let lacks = if limits { ", no cgroup" } else { "" };
    assert!(seen.stderr.starts_with(&format!("sandbox 'weak' (may lack landlock, nested{lacks}): ")), "{seen}");
    let seen = subject.spawn(&repo, &["plain"], "true");
    assert!(
        seen.stderr.starts_with(if limits { "sandbox 'plain' (no cgroup): " } else { "sandbox 'plain': " }),
        "{seen}"
    );
    let list = repo.sandbox(&["list"]).ok();
    assert!(list.lines().any(|line| line.starts_with("weak ") && line.contains("may lack landlock")), "{list}");
    let shown: Value = serde_json::from_str(&repo.sandbox(&["show", "weak", "--json"]).ok()).unwrap();
    assert_eq!((&shown["allow_weak"][0], &shown["nested"]), (&"landlock".into(), &true.into()), "{shown}");
    // What was asked for is there without it.
    subject.spawn(&repo, &["whole"], "true").ok();
    repo.git(&["config", "--unset", "sandbox.require"]).ok();
    repo.write(".sandbox.toml", "require = [\"landlock\"]\n");
    assert_eq!(nested("project", &[]).status, 125);
    repo.write(".sandbox.toml", "min-isolation = \"vm\"\n");
    let seen = subject.spawn(&repo, &["vm"], "true");
    assert!(seen.stderr.contains("isolates by namespace, and at least vm is asked for"), "{seen}");
    std::fs::remove_file(repo.dir().join(".sandbox.toml")).unwrap();
    let seen = subject.spawn(&repo, &["--allow-weak", "proc", "x"], "true");
    assert!(seen.status == 129 && seen.stderr.starts_with("error: there is no sandbox without 'proc'\n"), "{seen}");
}
