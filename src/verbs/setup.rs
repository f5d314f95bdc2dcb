//! `setup`: man pages, completions and the AppArmor profile, and taking them away again.
//! Everything else is in the one binary and in the state directory.

use crate::cli::{self, Cli};
use crate::context::Context;
use crate::error::{CliError, Outcome};
use clap::CommandFactory;
use clap_complete::Shell;
use std::fs;
use std::path::{Path, PathBuf};

/// Where AppArmor's profile goes; root's business.
const PROFILE: &str = "/etc/apparmor.d/git-sandbox";

pub fn run(context: &Context, args: &cli::Setup) -> Outcome {
    if args.apparmor {
        print!("{}", profile(&context.program));
        eprintln!(
            "hint: `git sandbox setup --apparmor | sudo tee {PROFILE} && sudo apparmor_parser -r {PROFILE}` loads it, once"
        );
        return Ok(0);
    }
    let prefix = args.prefix.clone().unwrap_or_else(|| context.home.join(".local"));
    let files = files(&prefix, context)?;
    if args.remove {
        for (path, _) in &files {
            match fs::remove_file(path) {
                Ok(()) => eprintln!("removed '{}'", path.display()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(CliError::io(format!("remove '{}'", path.display()))(error)),
            }
        }
        if let Some(top) = context.maybe_repo().and_then(|repo| repo.top())
            && super::watch::unset_fsmonitor(context, top)?
        {
            eprintln!("core.fsmonitor is unset again");
        }
        if Path::new(PROFILE).exists() {
            eprintln!("hint: `sudo apparmor_parser -R {PROFILE} && sudo rm {PROFILE}` takes the AppArmor profile away");
        }
        return Ok(0);
    }
    for (path, contents) in &files {
        let dir = path.parent().unwrap_or(&prefix);
        fs::create_dir_all(dir).map_err(CliError::io(format!("create '{}'", dir.display())))?;
        fs::write(path, contents).map_err(CliError::io(format!("write '{}'", path.display())))?;
        eprintln!("wrote '{}'", path.display());
    }
    if restricted() && !Path::new(PROFILE).exists() {
        eprintln!("this system's AppArmor forbids user namespaces to programs without a profile");
        eprintln!(
            "hint: `git sandbox setup --apparmor | sudo tee {PROFILE} && sudo apparmor_parser -r {PROFILE}` allows them to this one"
        );
    }
    Ok(0)
}

/// AppArmor's restriction of Ubuntu ≥ 23.10 is on.
fn restricted() -> bool {
    fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").is_ok_and(|text| text.trim() == "1")
}

/// The profile: unconfined but for being allowed user namespaces, for every place of this program.
fn profile(program: &Path) -> String {
    let mut paths = vec![program.to_owned()];
    for other in ["/usr/bin/git-sandbox", "/usr/local/bin/git-sandbox"] {
        if Path::new(other).exists() {
            paths.push(other.into());
        }
    }
    if let Some(home) = std::env::var_os("HOME") {
        paths.push(PathBuf::from(home).join(".cargo/bin/git-sandbox"));
    }
    paths.sort();
    paths.dedup();
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    format!(
        "abi <abi/4.0>,\ninclude <tunables/global>\n\nprofile git-sandbox {{{}}} flags=(unconfined) {{\n  userns,\n  \
         include if exists <local/git-sandbox>\n}}\n",
        if paths.len() == 1 { format!("{},", paths[0]) } else { paths.join(",") }
    )
}

/// Every file with its contents.
fn files(prefix: &Path, _context: &Context) -> Result<Vec<(PathBuf, Vec<u8>)>, CliError> {
    let mut files = Vec::new();
    let man = prefix.join("share/man/man1");
    let mut command = Cli::command();
    command.build();
    let mut page = |name: String, command: clap::Command| -> Result<(), CliError> {
        let mut text = Vec::new();
        clap_mangen::Man::new(command.name("git-sandbox").display_name(name.clone()))
            .title(name.clone())
            .render(&mut text)
            .map_err(CliError::io("write a man page"))?;
        files.push((man.join(format!("{name}.1")), text));
        Ok(())
    };
    page("git-sandbox".into(), command.clone())?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page(format!("git-sandbox-{}", verb.get_name()), verb.clone())?;
    }
    for (shell, path) in [
        (Shell::Bash, "share/bash-completion/completions/git-sandbox"),
        (Shell::Zsh, "share/zsh/site-functions/_git-sandbox"),
        (Shell::Fish, "share/fish/vendor_completions.d/git-sandbox.fish"),
    ] {
        let mut script = Vec::new();
        super::completions::write(shell, &mut script);
        files.push((prefix.join(path), script));
    }
    Ok(files)
}
