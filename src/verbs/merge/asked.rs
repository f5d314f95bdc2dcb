//! What the command line says about commits that are made here: sides that win, the message, the signature.

use crate::cli;
use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use sandbox_integrate::{Choice, Choices, Draft, MergePlan, Repo, RepoPath, Side, Signing, finish_commits};
use std::io;
use std::process::Command;

/// What is asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// Conflicts that are decided.
    pub choices: Choices,
    /// The user edits messages.
    edit: bool,
    /// With this key (empty: the default one).
    sign: Option<String>,
    /// Never, whatever `commit.gpgSign` says.
    no_sign: bool,
}

impl Asked {
    pub fn merge(args: &cli::Merge) -> Result<Self, CliError> {
        let choices = Choices { sides: sides(&args.resolve)?, no_rerere: args.no_rerere };
        Ok(Self { choices, edit: args.edit, sign: args.sign.clone(), no_sign: args.no_sign })
    }

    pub fn pick(args: &cli::Pick) -> Result<Self, CliError> {
        let choices = Choices { sides: sides(&args.resolve)?, no_rerere: args.no_rerere };
        Ok(Self { choices, edit: false, sign: args.sign.clone(), no_sign: args.no_sign })
    }

    /// Gives the commits of a plan their last form: it is about to be carried out.
    pub fn finish(&self, context: &Context, repo: &Repo, plan: &mut MergePlan) -> Result<(), CliError> {
        if !plan.makes_commits() {
            return Ok(());
        }
        let signing = match (&self.sign, self.no_sign) {
            (Some(key), _) => Some(Signing { key: Some(key.clone()).filter(|key| !key.is_empty()) }),
            (None, false) if plan.signs() => Some(Signing::default()),
            _ => None,
        };
        let mut failed = None;
        let mut edit = |draft: &Draft<'_>| {
            edit(context, repo, draft.message).map_err(|error| {
                failed = Some(error);
                io::Error::other("the editor failed")
            })
        };
        let editor: Option<sandbox_integrate::Editor<'_>> = if self.edit { Some(&mut edit) } else { None };
        let done = finish_commits(repo, plan, editor, signing.as_ref());
        match (done, failed) {
            (Ok(true), _) => Ok(()),
            (Ok(false), _) => Err(CliError::new("the message is empty")
                .hint("nothing was written; merge again, or give the message with `-m`")
                .status(1)),
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// Reads `ours`, `theirs`, `ours:PATH`, `theirs:PATH`.
fn sides(texts: &[String]) -> Result<Vec<Choice>, CliError> {
    let one = |text: &String| {
        let (word, path) = text.split_once(':').map_or((text.as_str(), None), |(word, path)| (word, Some(path)));
        let side = match word {
            "ours" => Side::Ours,
            "theirs" => Side::Theirs,
            _ => {
                return Err(CliError::usage(format!("'{}' is no side of a merge", escape(word)))
                    .hint("`ours` is what is here, `theirs` what the sandbox has: `--resolve theirs:src/main.rs`"));
            }
        };
        let path = path.map(|path| {
            RepoPath::parse(path.trim_end_matches('/').as_bytes()).ok_or_else(|| {
                CliError::usage(format!("'{}' is not a path of the repository", escape(path)))
                    .hint("as the conflict names it, from the top of the working tree")
            })
        });
        Ok(Choice { side, path: path.transpose()? })
    };
    texts.iter().map(one).collect()
}

/// What stands below a message that is edited.
const ASK: &str = "Please enter the commit message for your changes. Lines that start like\nthis one are left out, and an empty message merges nothing.\n";

/// Lets the user edit a message in the editor that git would take; `None` if nothing of it is left.
fn edit(context: &Context, repo: &Repo, message: &str) -> Result<Option<String>, CliError> {
    let git = |args: &[&str], input: &str| -> Result<String, CliError> {
        let name = format!("git {}", args[0]);
        let failed = CliError::io(format!("run `{name}`"));
        let file = tempfile::tempfile().and_then(|mut file| {
            io::Write::write_all(&mut file, input.as_bytes())?;
            io::Seek::rewind(&mut file)?;
            Ok(file)
        });
        let file = file.map_err(CliError::io("make a temporary file"))?;
        // With the whole environment of the user: it names the editor.
        let mut command = Command::new(context.git()?.program());
        command.current_dir(repo.worktree()).args(args).stdin(file);
        let output = command.output().map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().trim_start_matches("error: ").trim_start_matches("fatal: ");
            return Err(CliError::new(format!("`{name}` failed"))
                .cause(escape(said.lines().next().unwrap_or_default()))
                .hint("nothing was written; give the message with `-m`"));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let editor = git(&["var", "GIT_EDITOR"], "")?;
    let editor = editor.trim_end();
    let comment = git(&["stripspace", "--comment-lines"], ASK)?;
    let file = repo.gitdir().join("COMMIT_EDITMSG");
    let shown = file.display().to_string();
    std::fs::write(&file, format!("{}\n\n{comment}", message.trim_end()))
        .map_err(CliError::io(format!("write '{}'", escape(&shown))))?;
    // As git runs it: the setting is a piece of shell.
    let mut command = Command::new("sh");
    command.current_dir(repo.worktree()).arg("-c").arg(format!("{editor} \"$@\"")).arg(editor).arg(&file);
    let status = command.status().map_err(CliError::io("run the editor"))?;
    if !status.success() {
        return Err(CliError::new(format!("there was a problem with the editor '{}'", escape(editor)))
            .hint("nothing was written; give the message with `-m`"));
    }
    let text = std::fs::read_to_string(&file).map_err(CliError::io(format!("read '{}'", escape(&shown))))?;
    let text = git(&["stripspace", "--strip-comments"], &text)?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}
