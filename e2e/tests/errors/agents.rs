//! Presets, logins, rules of the network, many at once: what is refused, and what stays outside.

use super::{nothing_half_made, plain, spawn};
use insta::assert_snapshot;
use sandbox_testkit::{Output, Pty, Repo, TestEnv, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A preset of the user's for the program `agent`, which is in `~/.local/bin` and prints its home.
const AGENT: &str = r#"
programs = ["agent"]
config = [".agent/config.json", ".agent/skills", ".agent/keys.json", ".config/agent/rc"]
keeps = [".agent/sessions"]
instructions = [".agent/NOTES.md"]
hosts = ["api.agent.test"]
pass = ["AGENT_MODEL", "AGENT_URL"]

[places]
AGENT_HOME = ".agent"

[parts]
".agent.json" = ["theme"]

[credentials]
files = [".agent/login.json"]
variables = ["AGENT_KEY"]

[variables]
AGENT_UPDATES = "off"

[inner]
name = "boxes"
flag = "--no-box"
off = ["--no-box"]
"#;

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("it is below the home")).expect("a new directory");
    fs::write(path, text).expect("a new file");
}

/// The agent, its files in the home, and files that are nobody's business.
fn install(env: &TestEnv) {
    write(&env.root().join("config/git-sandbox/presets/agent.toml"), AGENT);
    let program = env.home().join(".local/share/agent/versions/7");
    write(&program, "#!/bin/sh\ncd && find . -path ./src -prune -o -type f -print | sort\nenv | grep ^AGENT | sort\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it was just made");
    fs::create_dir_all(env.home().join(".local/bin")).expect("a new directory");
    std::os::unix::fs::symlink("../share/agent/versions/7", env.home().join(".local/bin/agent")).expect("a new link");
    for (file, text) in [
        (".agent/config.json", "{\"verbose\": true}"),
        (".agent/skills/one/SKILL.md", "a skill"),
        (".agent/keys.json", "{\"api_key\": \"canary-in-config\"}"),
        (".agent/login.json", "{\"token\": \"canary-login\"}"),
        (".agent/sessions/1", "canary conversation"),
        (".agent/other", "canary"),
        (".agent.json", "{\"theme\": \"dark\", \"history\": [\"canary\"]}"),
        (".ssh/id_ed25519", "canary"),
        (".netrc", "canary"),
        (".agent-not", "canary"),
    ] {
        write(&env.home().join(file), text);
    }
}

fn command(repo: &Repo, args: &[&str]) -> Command {
    let mut command = repo.env().sandbox_command(repo.dir(), args);
    let mut path = repo.env().home().join(".local/bin").into_os_string();
    path.push(":");
    path.push(repo.env().path());
    command.env("PATH", path);
    command
}

#[track_caller]
fn run(repo: &Repo, args: &[&str]) -> Output {
    repo.env().run(&mut command(repo, args))
}

/// What is in the private home of the only sandbox, and whether a canary is.
fn canaries(repo: &Repo) -> Vec<String> {
    let found =
        repo.env().command("grep", repo.dir()).args(["-rl", "canary", "."]).current_dir(sandbox_dir(repo)).output();
    String::from_utf8_lossy(&found.expect("grep runs").stdout).lines().map(str::to_owned).collect()
}

fn sandbox_dir(repo: &Repo) -> std::path::PathBuf {
    let mut dirs = fs::read_dir(repo.env().state().join("sandboxes")).expect("there is one").flatten();
    dirs.next().expect("there is one").path()
}

#[test]
fn a_preset_that_is_none_or_broken() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["x", "--preset", "cluade"], "true"), @r#"
        ---- stderr
        error: there is no preset 'cluade'
        hint: `git sandbox presets` lists them, `--preset none` goes without
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["presets", "cluade"]), @r#"
        ---- stderr
        error: there is no preset 'cluade'
        hint: `git sandbox presets` lists them, `--preset none` goes without
        ---- status 129
        "#);
    let user = env.root().join("config/git-sandbox/presets/mine.toml");
    write(&user, "programs = [\"mine\"]\n\nhots = [\"example.com\"]\n");
    assert_snapshot!(repo.sandbox(&["presets"]), @r#"
        ---- stderr
        error: '[ROOT]/config/git-sandbox/presets/mine.toml' is not valid
        caused by: line 3: unknown field `hots`, expected one of `programs`, `config`, `parts`, `credentials`, `variables`, `pass`, `hosts`, `keeps`, `instructions`, `places`, `inner`
        hint: `git sandbox presets claude` shows one that is; `--preset none` goes without
        ---- status 128
        "#);
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: '[ROOT]/config/git-sandbox/presets/mine.toml' is not valid
        caused by: line 3: unknown field `hots`, expected one of `programs`, `config`, `parts`, `credentials`, `variables`, `pass`, `hosts`, `keeps`, `instructions`, `places`, `inner`
        hint: `git sandbox presets claude` shows one that is; `--preset none` goes without
        ---- status 125
        "#);
    write(&user, "programs = [\"mine\"]\nconfig = [\n    \".mine\",\n    \"/etc/shadow\",\n]\n");
    assert_snapshot!(repo.sandbox(&["presets", "mine"]), @r#"
        ---- stderr
        error: '[ROOT]/config/git-sandbox/presets/mine.toml' is not valid
        caused by: line 4: '/etc/shadow' is not a path below the home
        hint: `git sandbox presets claude` shows one that is; `--preset none` goes without
        ---- status 128
        "#);
    write(&user, "programs = [\"mine\"]\nhosts = [\"https://example.com\"]\n");
    assert_snapshot!(repo.sandbox(&["presets", "mine"]), @r#"
        ---- stderr
        error: '[ROOT]/config/git-sandbox/presets/mine.toml' is not valid
        caused by: line 2: 'https://example.com' is not a host: it is a URL; only its host is meant
        hint: `git sandbox presets claude` shows one that is; `--preset none` goes without
        ---- status 128
        "#);
    write(&user, "programs = [\"mine\"]\n");
    fs::rename(&user, user.with_file_name("none.toml")).expect("both are there");
    assert_snapshot!(repo.sandbox(&["presets"]), @r#"
        ---- stderr
        error: '[ROOT]/config/git-sandbox/presets/none.toml' has a name that means no preset
        hint: rename the file
        ---- status 128
        "#);
    nothing_half_made(&repo);
}

#[test]
fn presets_are_listed_with_their_origin() {
    let env = TestEnv::new();
    let repo = plain(&env);
    install(&env);
    assert_snapshot!(repo.sandbox(&["presets"]), @r#"
        NAME      COMMAND   HOSTS                                         FROM
        agent     agent     api.agent.test                                [ROOT]/config/git-sandbox/presets/agent.toml
        aider     aider     api.anthropic.com and 4 more                  built in
        claude    claude    api.anthropic.com and 2 more                  built in
        codex     codex     api.openai.com and 2 more                     built in
        gemini    gemini    generativelanguage.googleapis.com and 4 more  built in
        goose     goose     api.anthropic.com and 3 more                  built in
        opencode  opencode  opencode.ai and 11 more                       built in
        ---- status 0
        "#);
    let shown = repo.sandbox(&["presets", "agent"]).expect(0);
    assert_eq!(shown.stdout, AGENT);
    let json: serde_json::Value =
        serde_json::from_str(&repo.sandbox(&["presets", "claude", "--json"]).ok()).expect("JSON");
    assert_eq!(json["version"], 1);
    assert_eq!(json["presets"][0]["name"], "claude");
    assert_eq!(json["presets"][0]["file"], serde_json::Value::Null);
    // One of the user's of the same name replaces ours.
    write(&env.root().join("config/git-sandbox/presets/claude.toml"), "programs = [\"claude\"]\n");
    let listed = repo.sandbox(&["presets"]).ok();
    assert!(listed.lines().any(|line| line.starts_with("claude") && line.ends_with("presets/claude.toml")), "{listed}");
}

#[test]
fn sets_of_hosts_are_listed_and_resolved() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let hosts = "hosts = [\"Example.COM\", \"*.example.org:80,443\"]\n";
    write(&env.root().join("config/git-sandbox/hosts/mine.toml"), hosts);
    // What cargo was used with, in a made-up home.
    let index = env.home().join(".cargo/registry/index/idx.crates.test-0123456789abcdef");
    write(&index.join("config.json"), "{\"dl\": \"https://files.crates.test/dl\"}");
    assert_snapshot!(repo.sandbox(&["presets", "--sets"]), @r#"
        NAME         HOSTS                                FROM
        @apt         what apt uses here                   built in
        @cargo       what cargo uses here                 built in
        @github      github.com and 6 more                built in
        @gitlab      gitlab.com                           built in
        @mine        Example.COM and 1 more               [ROOT]/config/git-sandbox/hosts/mine.toml
        @npm         what npm uses here                   built in
        @pip         what pip uses here                   built in
        @registries  what apt, cargo, npm, pip uses here  built in
        ---- status 0
        "#);
    assert_eq!(repo.sandbox(&["presets", "--sets", "@mine"]).ok(), "example.com\n*.example.org:80,443\n");
    assert_eq!(repo.sandbox(&["presets", "--sets", "cargo"]).ok(), "files.crates.test\nidx.crates.test\n");
    // A repository cannot open the network for itself.
    repo.write(".cargo/config.toml", "[registries.evil]\nindex = \"sparse+https://evil.test/\"\n");
    assert_eq!(repo.sandbox(&["presets", "--sets", "cargo"]).ok(), "files.crates.test\nidx.crates.test\n");
}

#[test]
fn an_agent_that_needs_the_network_is_not_started_without() {
    let env = TestEnv::new();
    let repo = plain(&env);
    install(&env);
    assert_snapshot!(run(&repo, &["spawn", "x", "--net", "none", "--", "agent"]), @r#"
        ---- stderr
        error: 'agent' needs the network
        caused by: --net none was given
        hint: leave it out, or `--net allow`: only these can be reached: api.agent.test
        hint: `--preset none` starts it without, offline
        ---- status 129
        "#);
    repo.git(&["config", "sandbox.net", "none"]).ok();
    assert_snapshot!(run(&repo, &["spawn", "x", "--", "agent"]), @r#"
        ---- stderr
        error: 'agent' needs the network
        caused by: sandbox.net is none
        hint: `--net allow` overrules it for this sandbox: only these can be reached: api.agent.test
        hint: `--preset none` starts it without, offline
        ---- status 125
        "#);
    repo.git(&["config", "--unset", "sandbox.net"]).ok();
    repo.write(".sandbox.toml", "net = \"none\"\n");
    assert_snapshot!(run(&repo, &["spawn", "x", "--preset", "agent", "--", "true"]), @r#"
        ---- stderr
        error: 'agent' needs the network
        caused by: '.sandbox.toml' says net = "none"
        hint: `--net allow` overrules it for this sandbox: only these can be reached: api.agent.test
        hint: `--preset none` starts it without, offline
        ---- status 125
        "#);
    nothing_half_made(&repo);
    // The ways that the hints name.
    run(&repo, &["spawn", "y", "-d", "--net", "allow", "--", "agent"]).expect(0);
    run(&repo, &["spawn", "z", "-d", "--preset", "none", "--", "agent"]).expect(0);
}

#[test]
fn a_rule_that_is_none() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["x", "--net", "none", "--allow", "example.com"], "true"), @r#"
        ---- stderr
        error: --allow lets something out, --net none lets nothing out
        hint: leave one of them out
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--net", "host", "--allow", "example.com"], "true"), @r#"
        ---- stderr
        error: --allow has no meaning with --net host: everything can be reached
        hint: leave one of them out; `--net allow` is what --allow belongs to
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--allow", "https://example.com/"], "true"), @r#"
        ---- stderr
        error: 'https://example.com/' is not a host
        caused by: it is a URL; only its host is meant
        hint: for example example.com, '*.example.com', example.com:8443, or a set: @github
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--allow", "*.com"], "true"), @r#"
        ---- stderr
        error: '*.com' is not a host
        caused by: '*.com' would be too much: at least two labels follow the star
        hint: for example example.com, '*.example.com', example.com:8443, or a set: @github
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--allow", "@githbu"], "true"), @r#"
        ---- stderr
        error: there is no set of hosts '@githbu'
        hint: there are @apt, @cargo, @github, @gitlab, @npm, @pip, @registries; your own is a file '[ROOT]/config/git-sandbox/hosts/NAME.toml'
        ---- status 129
        "#);
    repo.git(&["config", "sandbox.allow", "a b"]).ok();
    assert_snapshot!(spawn(&repo, &["x", "--net", "allow"], "true"), @r#"
        ---- stderr
        error: 'a b' (sandbox.allow) is not a host
        caused by: it has white space or a control character
        hint: for example example.com, '*.example.com', example.com:8443, or a set: @github
        ---- status 125
        "#);
    repo.git(&["config", "--unset", "sandbox.allow"]).ok();
    repo.git(&["config", "sandbox.net", "wifi"]).ok();
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: 'wifi' is not a value of sandbox.net
        hint: it is one of none, host, allow
        ---- status 125
        "#);
    repo.git(&["config", "--unset", "sandbox.net"]).ok();
    write(&env.root().join("config/git-sandbox/hosts/mine.toml"), "hosts = [\n    \"example.com\",\n    \"*\",\n]\n");
    assert_snapshot!(spawn(&repo, &["x", "--allow", "@mine"], "true"), @r#"
        ---- stderr
        error: '[ROOT]/config/git-sandbox/hosts/mine.toml' is not valid
        caused by: line 3: '*' is not a host: a star stands alone, before the first dot
        hint: it may have `hosts = ["HOST", …]` and `discover = ["apt", "cargo", "npm", "pip"]`
        ---- status 125
        "#);
    write(&env.root().join("config/git-sandbox/hosts/mine.toml"), "discover = [\"brew\"]\n");
    assert_snapshot!(spawn(&repo, &["x", "--allow", "@mine"], "true"), @r#"
        ---- stderr
        error: '[ROOT]/config/git-sandbox/hosts/mine.toml' is not valid
        caused by: line 1: unknown variant `brew`, expected one of `apt`, `cargo`, `npm`, `pip`
        hint: it may have `hosts = ["HOST", …]` and `discover = ["apt", "cargo", "npm", "pip"]`
        ---- status 125
        "#);
    repo.write(".sandbox.toml", "deny = [\"a b\"]\n");
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: '.sandbox.toml' is not valid
        caused by: deny: 'a b': it has white space or a control character
        hint: it may have net, memory, disk, pids, timeout, carry-secrets, require, min-isolation and deny, each only to tighten your settings, and check and with, which you are asked about
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn rules_come_from_preset_flag_settings_and_sets() {
    let env = TestEnv::new();
    let repo = plain(&env);
    install(&env);
    write(&env.root().join("config/git-sandbox/hosts/mine.toml"), "hosts = [\"one.test\", \"*.two.test:8443\"]\n");
    repo.git(&["config", "--add", "sandbox.allow", "set.test,other.test:80,443"]).ok();
    repo.git(&["config", "--add", "sandbox.allow", "api.agent.test"]).ok();
    repo.write(".sandbox.toml", "deny = [\"api.evil.test\"]\n");
    let args = ["spawn", "x", "-d", "--allow", "flag.test,@mine", "--allow", "FLAG.test", "--", "agent"];
    run(&repo, &args).expect(0);
    let policy = sandbox_dir(&repo).join("network.json");
    assert_eq!(policy.metadata().expect("it was written").permissions().mode() & 0o777, 0o600);
    let policy: serde_json::Value = serde_json::from_slice(&fs::read(policy).expect("it was written")).expect("JSON");
    assert_eq!(
        policy,
        serde_json::json!({
            "version": 1,
            "allow": ["api.agent.test", "flag.test", "one.test", "*.two.test:8443", "set.test", "other.test:80,443"],
            "deny": ["api.evil.test"],
        })
    );
}

#[test]
fn a_file_of_the_home_that_cannot_go_inside() {
    let env = TestEnv::new();
    let repo = plain(&env);
    fs::create_dir_all(env.home().join("dir")).expect("a new directory");
    for path in ["/etc/passwd", "../x", "dir/../../x", ".", "missing"] {
        let refused = spawn(&repo, &["x", "--home-file", path], "true").expect(129);
        assert!(refused.stderr.starts_with("error: "), "{refused}");
    }
    assert_snapshot!(spawn(&repo, &["x", "--home-file", "/etc/passwd"], "true"), @r#"
        ---- stderr
        error: '/etc/passwd' is not below your home
        hint: `--home-file PATH`: a path relative to the home, or an absolute one below it, without '..'
        ---- status 129
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--home-file", "missing"], "true"), @r#"
        ---- stderr
        error: cannot read 'missing'
        caused by: No such file or directory (os error 2)
        hint: `--home-file PATH` names a file or a directory in your home
        ---- status 129
        "#);
    assert!(env.command("mkfifo", &env.home()).arg("fifo").status().expect("mkfifo runs").success());
    assert_snapshot!(spawn(&repo, &["x", "--home-file", "fifo"], "true"), @r#"
        ---- stderr
        error: 'fifo' is neither a file nor a directory
        hint: only those can be copied
        ---- status 129
        "#);
    nothing_half_made(&repo);
    write(&env.home().join("dir/sub/file"), "text");
    let inside = spawn(&repo, &["y", "--home-file", "dir", "--home-file", "dir/sub/file"], "cat ~/dir/sub/file");
    assert_eq!(inside.ok(), "text");
}

#[test]
fn nothing_else_of_the_home_goes_inside() {
    let env = TestEnv::new();
    let repo = plain(&env);
    install(&env);
    let mut spawned = command(&repo, &["spawn", "x", "-q", "--", "agent"]);
    spawned.env("AGENT_KEY", "canary-key").env("AGENT_MODEL", "small").env("AGENT_OTHER", "canary");
    let out = env.run(&mut spawned).expect(0);
    assert_eq!(
        out.stdout,
        "./.agent.json\n./.agent/NOTES.md\n./.agent/config.json\n./.agent/skills/one/SKILL.md\n\
         ./.local/share/agent/versions/7\nAGENT_MODEL=small\nAGENT_UPDATES=off\n"
    );
    assert_eq!(canaries(&repo), [""; 0]);
    let home = sandbox_dir(&repo).join("home");
    assert_eq!(fs::read_to_string(home.join(".agent.json")).expect("it was written"), "{\n  \"theme\": \"dark\"\n}\n");
    let notes = fs::read_to_string(home.join(".agent/NOTES.md")).expect("it was written");
    assert!(notes.starts_with("<!-- git-sandbox: ") && notes.contains("'x'") && notes.contains("api.agent.test"));
    // A fork has another name, and is told so.
    let told = run(&repo, &["fork", "-q", "x", "z", "--", "sh", "-c", "cat ~/.agent/NOTES.md"]).expect(0).stdout;
    assert!(told.contains("'z'") && told.contains("refs/sandbox/z") && !told.contains("'x'"), "{told}");
}

#[test]
fn other_places_of_configuration_are_respected() {
    let env = TestEnv::new();
    let repo = plain(&env);
    install(&env);
    // XDG_CONFIG_HOME of the test is not in the home, and a variable names the agent's own directory.
    write(&env.root().join("config/agent/rc"), "from elsewhere");
    write(&env.root().join("elsewhere/config.json"), "{}");
    let mut spawned = command(&repo, &["spawn", "x", "-q", "--", "agent"]);
    spawned.env("AGENT_HOME", env.root().join("elsewhere")).env("AGENT_URL", "https://user:canary@api.agent.test");
    assert_eq!(
        env.run(&mut spawned).expect(0).stdout,
        "./.agent.json\n./.agent/NOTES.md\n./.agent/config.json\n./.config/agent/rc\n./.local/share/agent/versions/7\n\
         AGENT_UPDATES=off\n"
    );
    assert_eq!(fs::read_to_string(sandbox_dir(&repo).join("home/.agent/config.json")).expect("it was copied"), "{}");
    assert_eq!(canaries(&repo), [""; 0]);
}

#[test]
fn a_login_goes_inside_only_when_the_user_says_so() {
    let env = TestEnv::new();
    let repo = plain(&env);
    install(&env);
    // Nobody to ask: it stays, and the hint names the ways.
    let told = run(&repo, &["spawn", "a", "-d", "--", "agent"]).expect(0).stderr;
    assert!(told.contains("left out, because it is a login: ~/.agent/keys.json, ~/.agent/login.json\n"), "{told}");
    assert!(told.contains("hint: `git config --add sandbox.carryCredential agent` carries it"), "{told}");
    // What is carried and reached can be read beforehand.
    let plan = run(&repo, &["spawn", "a2", "--dry-run", "--", "agent"]).expect(0).stdout;
    assert!(plan.contains("\ncarry     ~/.agent/config.json\n") && !plan.contains("login.json"), "{plan}");
    assert!(plan.contains("\nallow     api.agent.test\n"), "{plan}");
    // A part of it, by name.
    let key = |args: &[&str]| {
        let mut spawned = command(&repo, args);
        env.run(spawned.env("AGENT_KEY", "canary-key")).expect(0)
    };
    let given = key(&["spawn", "b", "--env", "AGENT_KEY", "--", "agent"]);
    assert!(given.stdout.contains("AGENT_KEY=canary-key") && !given.stdout.contains("login.json"), "{given}");
    let given = key(&["spawn", "c", "--home-file", ".agent/login.json", "--", "agent"]);
    assert!(!given.stdout.contains("AGENT_KEY") && given.stdout.contains("login.json"), "{given}");
    // All of it, by the setting; the last value counts.
    repo.git(&["config", "--add", "sandbox.carryCredential", "agent"]).ok();
    let all = key(&["spawn", "d", "--", "agent"]);
    assert!(all.stdout.contains("AGENT_KEY=canary-key\n") && all.stdout.contains("login.json\n"), "{all}");
    assert!(all.stdout.contains("keys.json\n") && !all.stdout.contains("sessions"), "{all}");
    repo.git(&["config", "--add", "sandbox.carryCredential", "none"]).ok();
    assert!(!key(&["spawn", "e", "--", "agent"]).stdout.contains("AGENT_KEY"));
    repo.git(&["config", "--add", "sandbox.carryCredential", "true"]).ok();
    assert_snapshot!(run(&repo, &["spawn", "f", "--", "agent"]), @r#"
        ---- stderr
        error: 'true' is not a value of sandbox.carryCredential
        hint: it is the name of a preset (`git sandbox presets` lists them), or none
        ---- status 125
        "#);
}

#[test]
fn on_a_terminal_the_login_is_asked_for_once() {
    let env = TestEnv::new();
    let repo = plain(&env);
    install(&env);
    let mut terminal = Pty::spawn(&command(&repo, &["spawn", "a", "-d", "--", "agent"]));
    terminal.expect("agent is logged in here with:");
    terminal.expect("~/.agent/login.json");
    terminal.expect("shall sandboxes of this repository have it? [y/N]");
    terminal.send("y\r");
    terminal.expect("remembered: `git config --add sandbox.carryCredential none` changes it");
    assert_eq!(terminal.wait().0, 0);
    // Another time, without a terminal.
    let out = run(&repo, &["spawn", "b", "--", "agent"]).expect(0).stdout;
    assert!(out.contains("./.agent/login.json\n"), "{out}");
    // What was answered holds for this agent only, and the setting is stronger.
    repo.git(&["config", "sandbox.carryCredential", "none"]).ok();
    let out = run(&repo, &["spawn", "c", "--", "agent"]).expect(0).stdout;
    assert!(!out.contains("./.agent/login.json\n"), "{out}");
}

#[test]
fn the_value_of_a_variable_is_shown_nowhere() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let value = "s3cret-value-of-a-variable";
    let shown = |args: &[&str]| {
        let out = env.run(repo.env().sandbox_command(repo.dir(), args).env("MY_KEY", value));
        assert!(!out.stdout.contains(value) && !out.stderr.contains(value), "`{args:?}` shows it:\n{out}");
        out
    };
    shown(&["spawn", "a", "--dry-run", "--env", "MY_KEY", "--", "sleep", "60"]).expect(0);
    let json = shown(&["spawn", "a", "-d", "--json", "--env", "MY_KEY", "--", "sleep", "60"]).expect(0);
    assert!(json.stdout.contains("\"name\": \"a\""));
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["show", "a"],
        &["show", "a", "--json"],
        &["logs", "a"],
        &["spawn", "b", "-d", "--env", "MY_KEY", "--", "/nonexistent"],
        &["spawn", "b", "--env", "MY_KEY", "--memory", "lots"],
        &["spawn", "1 2", "--env", "MY_KEY"],
        &["spawn", "c", "--env", "MY_KEY", "--net", "none", "--preset", "claude", "--", "true"],
    ] {
        shown(args);
    }
    // No process of the host has it among its arguments; the logs have not got it either.
    for entry in fs::read_dir("/proc").expect("it is mounted").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(value), "{entry:?}");
    }
    for dir in fs::read_dir(env.state().join("sandboxes")).expect("there are some").flatten() {
        let found = env.command("grep", repo.dir()).args(["-r", value]).arg(dir.path().join("log")).output();
        assert_eq!(found.expect("grep runs").stdout, b"");
        for file in ["sandbox.json", "launch.json"] {
            let mode = dir.path().join(file).metadata().map_or(0o600, |meta| meta.permissions().mode() & 0o777);
            assert_eq!(mode, 0o600, "{file}");
        }
    }
    assert_eq!(repo.sandbox(&["exec", "a", "--", "printenv", "MY_KEY"]).ok(), format!("{value}\n"));
}

#[test]
fn an_agents_own_sandbox_is_named_before_the_start() {
    let env = TestEnv::new();
    let repo = plain(&env);
    install(&env);
    let note = |args: &[&str]| {
        let told = run(&repo, args).expect(0).stderr;
        told.lines().find(|line| line.contains("own sandbox")).map(str::to_owned)
    };
    assert_eq!(
        note(&["spawn", "a", "-d", "--", "agent"]).as_deref(),
        Some(
            "note: agent's own sandbox (boxes) cannot start inside: there are no user namespaces. \
             Pass `--no-box` to agent, this one is around it; or `--nested` to spawn"
        )
    );
    assert_eq!(note(&["spawn", "b", "-d", "--", "agent", "--no-box"]), None);
    assert_eq!(note(&["spawn", "c", "-d", "--", "agent", "--version"]), None);
    assert_eq!(note(&["spawn", "d", "-d", "--preset", "none", "--", "agent"]), None);
}

#[test]
fn many_at_once() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["x", "--count", "0"], "true"), @r#"
        ---- stderr
        error: invalid value '0' for '--count <N>': 0 is not in 1..=1000
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    spawn(&repo, &["x-2", "-d"], "true").ok();
    assert_snapshot!(spawn(&repo, &["x", "--count", "3"], "true"), @r#"
        ---- stderr
        error: there is a sandbox named 'x-2' already
        hint: `git sandbox shell x-2` opens a shell in it; `git sandbox drop x-2` removes it
        ---- status 125
        "#);
    assert_snapshot!(spawn(&repo, &["y", "--count", "2"], "echo $GIT_SANDBOX > name; git add name; git commit -qm n"), @r#"
        y-1
        y-2
        ---- stderr
        2 sandboxes, each: 13 files as they are here
        ---- status 0
        "#);
    repo.sandbox(&["wait", "y-1", "y-2"]).ok();
    repo.sandbox(&["fetch", "--all"]).ok();
    for name in ["y-1", "y-2"] {
        assert_eq!(repo.git(&["show", &format!("sandbox/{name}:name")]).ok(), format!("{name}\n"));
    }
    let rows = repo.sandbox(&["spawn", "z", "--count", "2", "--json", "--", "true"]).ok();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).expect("an array");
    assert_eq!(rows.iter().map(|row| row["name"].as_str().unwrap_or_default()).collect::<Vec<_>>(), ["z-1", "z-2"]);
    let unnamed = repo.sandbox(&["spawn", "--count", "2", "--", "sleep", "60"]).ok();
    assert_eq!(unnamed.lines().count(), 2, "{unnamed}");
    assert_snapshot!(repo.sandbox(&["spawn", "bad", "--count", "2", "--", "/nonexistent"]), @r#"
        ---- stderr
        2 sandboxes, each: 13 files as they are here
        error: cannot start 'bad-1', 'bad-2'
        caused by: cannot run '/nonexistent': No such file or directory
        hint: is it installed on the host, in a directory that is shown inside? `git sandbox doctor` lists them
        ---- status 127
        "#);
}

#[test]
fn a_spawn_does_not_wait_for_the_command_of_another() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let script = "touch started; until test -e go; do sleep 0.05; done";
    let mut first = env.start(repo.dir(), &["spawn", "-q", "a", "--", "sh", "-c", script]);
    let limit = Duration::from_secs(60);
    wait_until("the first one's command runs", limit, || {
        repo.sandbox(&["exec", "a", "--", "test", "-e", "started"]).status == 0
    });
    // It would wait for ever if the first one still held the repository.
    spawn(&repo, &["b"], "true").ok();
    repo.sandbox(&["exec", "a", "--", "touch", "go"]).ok();
    assert_eq!(first.wait(limit), 0);
}
