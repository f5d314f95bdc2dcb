//! `completions`: a script for one shell, for both spellings.

use crate::cli::{Cli, Completions};
use crate::error::Outcome;
use clap::CommandFactory;
use std::io::Write;

pub fn run(args: &Completions) -> Outcome {
    let mut script = Vec::new();
    write(args.shell, &mut script);
    let _ = std::io::stdout().write_all(&script);
    Ok(0)
}

/// Writes the script. For bash, `git sandbox …` too: git's own completion calls `_git_sandbox`.
pub fn write(shell: clap_complete::Shell, out: &mut Vec<u8>) {
    clap_complete::generate(shell, &mut Cli::command(), "git-sandbox", out);
    if shell == clap_complete::Shell::Bash {
        out.extend_from_slice(
            b"\n# `git sandbox \xe2\x80\xa6`: git's completion asks this function.\n_git_sandbox() {\n    local verbs=\"",
        );
        let verbs: Vec<String> = Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
        out.extend_from_slice(verbs.join(" ").as_bytes());
        out.extend_from_slice(
            b"\"\n    if [ \"${COMP_CWORD}\" -le 2 ]; then\n        COMPREPLY=($(compgen -W \"$verbs\" -- \"$cur\"))\n    else\n        \
              local names\n        names=$(git sandbox list --json 2>/dev/null | sed -n 's/.*\"name\": *\"\\([^\"]*\\)\".*/\\1/p')\n        \
              COMPREPLY=($(compgen -W \"$names\" -- \"$cur\"))\n    fi\n}\n",
        );
    }
}
