//! The real command-line agents, as far as they go without an account: installed by the ordinary clients of npm and
//! Python, started in a sandbox with `--version`, `--help` and a prompt with a key that is none.
//!
//! Slow, and it needs the package registries, so `cargo xtask test --all` runs it. No agent's API is ever reached:
//! the presets are used without their hosts, so that every request is refused, and the sandboxes are made in a network
//! namespace that leads nowhere. What is asserted holds for any version: that the program starts, knows its version,
//! and that the first thing it wants of the network is seen in the events.

use sandbox_testkit::{TestEnv, is_root, skip, which};
use std::fs;
use std::path::Path;
use std::process::Command;

/// One agent.
struct Agent {
    program: &'static str,
    preset: &'static str,
    /// What is asked of it without anybody at the keyboard.
    prompt: &'static [&'static str],
    /// Variables: a key that looks like one, and what keeps it from asking questions.
    env: &'static [&'static str],
    /// A part of the name of the host that it wants, by its maker.
    host: &'static str,
}

const AGENTS: &[Agent] = &[
    Agent {
        program: "claude",
        preset: include_str!("../../presets/claude.toml"),
        prompt: &["-p", "say hello"],
        env: &["ANTHROPIC_API_KEY=sk-ant-api03-not-a-key"],
        host: "anthropic.com",
    },
    Agent {
        program: "codex",
        preset: include_str!("../../presets/codex.toml"),
        prompt: &["exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "say hello"],
        env: &["CODEX_API_KEY=sk-not-a-key", "OPENAI_API_KEY=sk-not-a-key"],
        host: "openai.com",
    },
    Agent {
        program: "gemini",
        preset: include_str!("../../presets/gemini.toml"),
        prompt: &["-p", "say hello"],
        env: &["GEMINI_API_KEY=not-a-key", "GEMINI_CLI_TRUST_WORKSPACE=true"],
        // Its telemetry goes elsewhere in the same domain.
        host: "generativelanguage.googleapis.com",
    },
    Agent {
        program: "opencode",
        preset: include_str!("../../presets/opencode.toml"),
        prompt: &["run", "--model", "openai/gpt-4o", "say hello"],
        env: &["OPENAI_API_KEY=sk-not-a-key"],
        // It fetches its list of models first.
        host: ".",
    },
    Agent {
        program: "aider",
        preset: include_str!("../../presets/aider.toml"),
        prompt: &["--yes-always", "--no-show-model-warnings", "--model", "gpt-4o", "--message", "say hello"],
        env: &["OPENAI_API_KEY=sk-not-a-key"],
        host: "openai.com",
    },
];

/// The preset without its hosts: then nothing is allowed.
fn without_hosts(preset: &str) -> String {
    let mut table: toml::Table = preset.parse().expect("a preset of ours");
    assert!(table.insert("hosts".into(), toml::Value::Array(Vec::new())).is_some(), "a preset without hosts");
    table.to_string()
}

/// Runs a client of a package registry; `Err` is what it said.
fn client(env: &TestEnv, script: &str) -> Result<(), String> {
    let mut command = env.command("timeout", &env.home());
    command.args(["500", "sh", "-c", script]);
    // Node does not look at the machine's own list of authorities.
    let authorities = "/etc/ssl/certs/ca-certificates.crt";
    if Path::new(authorities).exists() {
        command.env("NODE_EXTRA_CA_CERTS", authorities);
    }
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or(said)
}

/// A command in a network namespace of its own, which has no way out.
fn nowhere(env: &TestEnv, dir: &Path, words: &[&str]) -> Command {
    let mut command = env.command("unshare", dir);
    command.arg("--net");
    if !is_root() {
        command.args(["--user", "--map-current-user"]);
    }
    let mut path = env.home().join(".local/bin").into_os_string();
    path.push(":");
    path.push(env.path());
    command.args(words).env("PATH", path);
    command
}

#[test]
#[ignore = "installs the real agents: `cargo xtask test --all`"]
fn they_start_and_are_refused() {
    if which("unshare").is_none() {
        skip!("no unshare");
    }
    let env = TestEnv::new();
    let repo = env.repo_at("repo");
    fs::create_dir_all(repo.dir()).unwrap();
    repo.git(&["init", "-q"]).ok();
    repo.commit("file.txt", "one\n");
    let mut installed = Vec::new();
    let npm = "npm install --global --prefix ~/.local --no-audit --no-fund --no-update-notifier --loglevel=error \
        @anthropic-ai/claude-code @openai/codex @google/gemini-cli opencode-ai";
    match (which("npm"), which("npm").map(|_| client(&env, npm))) {
        (None, _) => println!("SKIP: claude, codex, gemini, opencode: no npm"),
        (_, Some(Err(said))) => println!("SKIP: claude, codex, gemini, opencode: npm: {}", said.trim()),
        _ => installed.extend(["claude", "codex", "gemini", "opencode"]),
    }
    let pip = "python3 -m venv ~/.local/share/uv/tools/aider-chat && ~/.local/share/uv/tools/aider-chat/bin/pip install -q \
        --disable-pip-version-check aider-chat && ln -s ../share/uv/tools/aider-chat/bin/aider ~/.local/bin/aider";
    fs::create_dir_all(env.home().join(".local/bin")).unwrap();
    match client(&env, pip) {
        Err(said) => println!("SKIP: aider: pip: {}", said.trim()),
        Ok(()) => installed.push("aider"),
    }
    println!(
        "goose is not tried: it is published as built programs; what registries have by its name is another or an old one"
    );
    let presets = env.root().join("config/git-sandbox/presets");
    fs::create_dir_all(&presets).unwrap();
    let mut failed = String::new();
    for agent in AGENTS.iter().filter(|agent| installed.contains(&agent.program)) {
        let name = agent.program;
        fs::write(presets.join(format!("{name}.toml")), without_hosts(agent.preset)).unwrap();
        if let Err(why) = try_one(&env, repo.dir(), agent) {
            failed.push_str(&format!("== {name}: {why}\n"));
        }
    }
    assert!(failed.is_empty(), "{failed}");
}

fn try_one(env: &TestEnv, dir: &Path, agent: &Agent) -> Result<(), String> {
    let name = agent.program;
    let spawn = |sandbox: &str, args: &[&str]| {
        let mut words =
            vec!["git-sandbox", "spawn", sandbox, "--net", "allow", "--timeout", "40s", "--on-exit", "keep"];
        for variable in agent.env {
            words.extend(["--env", variable]);
        }
        words.extend(["--", name]);
        env.run(&mut nowhere(env, dir, &[&words, args].concat()))
    };
    let version = spawn(&format!("{name}-version"), &["--version"]);
    let number = |line: &str| line.chars().any(|c| c.is_ascii_digit()) && line.contains('.');
    if version.status != 0 || !version.stdout.lines().any(number) {
        return Err(format!("--version\n{version}"));
    }
    // The same that the host's says: it is the same program.
    let mut host = env.command(env.home().join(".local/bin").join(name), dir);
    let host = env.run(host.arg("--version"));
    let first = |text: &str| text.lines().find(|line| number(line)).map(str::to_owned);
    if first(&version.stdout) != first(&host.stdout) {
        return Err(format!("--version inside\n{version}\nand on the host\n{host}"));
    }
    let help = spawn(&format!("{name}-help"), &["--help"]);
    let text = format!("{}{}", help.stdout, help.stderr).to_lowercase();
    if help.status != 0 || !text.contains("usage") && !text.contains("commands") {
        return Err(format!("--help\n{help}"));
    }
    let sandbox = format!("{name}-prompt");
    let prompt = spawn(&sandbox, agent.prompt);
    let events = env.sandbox(dir, &["events", "--json", &sandbox]);
    let network: Vec<serde_json::Value> = events
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|event: &serde_json::Value| event["event"] == "network")
        .collect();
    let refused = network.iter().any(|event| {
        event["verdict"] == "refused" && event["host"].as_str().is_some_and(|host| host.contains(agent.host))
    });
    if !refused || network.iter().any(|event| event["verdict"] == "allowed") {
        return Err(format!("the prompt\n{prompt}\nits events\n{events}"));
    }
    println!("{name}: {} refused, the first: {}", network.len(), network[0]["host"]);
    Ok(())
}
