//! The README's tour, run as it stands there on a clone of this repository: every command must
//! succeed, and print what the README says it prints (numbers and ids aside).

use sandbox_testkit::{StandIn, TestEnv, skip, which};
use std::path::{Path, PathBuf};
use std::process::Command;

const README: &str = include_str!("../../README.md");

/// A command of the tour and the lines that the README shows after it.
struct Step {
    command: String,
    shown: Vec<String>,
}

/// The steps of the section "Two minutes": lines that start with `$ ` and what follows each.
fn steps() -> Vec<Step> {
    let section = README.split("## Two minutes").nth(1).expect("the README has a tour");
    let block = section
        .split("```console\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the tour is a console block");
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.to_owned(), shown: Vec::new() }),
            (None, Some(step)) if !line.is_empty() => step.shown.push(line.to_owned()),
            _ => {}
        }
    }
    steps
}

/// What of a line does not change from run to run: its words.
fn words(line: &str) -> Vec<String> {
    line.split_whitespace()
        .filter(|word| word.chars().all(|c| c.is_ascii_alphabetic() || "'`:/-=><.,".contains(c)))
        .filter(|word| !matches!(*word, "B" | "KiB" | "MiB" | "MB"))
        .map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned())
        .filter(|word| word.len() > 1)
        .collect()
}

/// Takes the stand-in away also when the tour was cut short: its API is a process.
struct Remove<'e>(&'e TestEnv, PathBuf);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        let _ = self.0.command(self.1.join("examples/stand-in/install"), &self.1).arg("--remove").output();
    }
}

#[test]
fn the_readmes_tour_is_true() {
    if let Some(missing) = StandIn::missing().or_else(|| which("curl").is_none().then(|| "no curl".to_owned())) {
        skip!("{missing}");
    }
    let env = TestEnv::new();
    // The checkout may belong to another user than the one who runs the test.
    env.run(&mut {
        let mut git = env.command("git", env.root());
        git.args(["config", "--global", "--add", "safe.directory", "*"]);
        git
    })
    .ok();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned();
    let clone = env.home().join("git-sandbox");
    let mut git: Command = env.command("git", &env.home());
    git.args(["clone", "--quiet", "--no-local"]).arg(&source).arg(&clone);
    let cloned = env.run(&mut git);
    if cloned.status != 0 {
        assert!(!source.join(".git").exists() || cloned.stderr.contains("ermission denied"), "{}", cloned.stderr);
        println!("SKIP: the tour: this checkout cannot be cloned by this user: {}", cloned.stderr.trim());
        return;
    }
    let _remove = Remove(&env, clone.clone());
    let branch = env.git(&clone, &["branch", "--show-current"]).ok().trim().to_owned();
    let steps = steps();
    assert!(steps.len() >= 8, "the tour has shrunk to {} steps", steps.len());
    for step in steps {
        let mut shell = env.command("bash", &clone);
        // Where people's own programs are, the stand-in's among them.
        let mut path = env.home().join(".local/bin").into_os_string();
        path.push(":");
        path.push(env.path());
        shell.args(["-c", &step.command]).env("PATH", path);
        let output = env.run(&mut shell);
        assert_eq!(output.status, 0, "$ {}\n{}{}", step.command, output.stdout, output.stderr);
        let printed = words(&format!("{}\n{}", output.stdout, output.stderr));
        for line in &step.shown {
            for word in words(&line.replace("'main'", &format!("'{branch}'")).replace(" main ", &format!(" {branch} ")))
            {
                assert!(
                    printed.contains(&word),
                    "$ {}\nthe README shows '{word}' in\n  {line}\nbut it printed\n{}{}",
                    step.command,
                    output.stdout,
                    output.stderr
                );
            }
        }
        // What the supervisor brings home half a second after a commit.
        std::thread::sleep(std::time::Duration::from_millis(700));
    }
}
