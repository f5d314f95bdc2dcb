//! `cp`: files out of and into a sandbox.
//!
//! Out: `tar`-like, but nothing of it is trusted. A helper inside would be the sandbox's word; so
//! the files are read from the host, from the directories that the view is stacked of, by
//! descriptors beneath their roots, never following a link: regular files and directories only,
//! without set-id bits, capped. In: a session inside writes them.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::start::connect_or_start;
use crate::text::{count, escape, parse_size, size};
use sandbox_core::copy_out::{self, CopyOut, Links};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_protocol::{Exec, escape_bytes};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

pub fn run(context: &Context, args: &cli::Cp) -> Outcome {
    let store = context.store()?;
    let limit = parse_size(&args.max_size).ok_or_else(|| {
        CliError::usage(format!("'{}' is not a size", escape(&args.max_size))).hint("for example 100m")
    })?;
    match (split(&args.source), split(&args.target)) {
        (Some((name, path)), None) => {
            let sandbox = context.sandbox(&store, name)?;
            out(context, &store, &sandbox, path, Path::new(&args.target), args.links, limit)
        }
        (None, Some((name, path))) => {
            let sandbox = context.sandbox(&store, name)?;
            into(context, &store, &sandbox, Path::new(&args.source), path, limit)
        }
        _ => Err(CliError::usage("one of the two must be in a sandbox, written NAME:PATH")
            .hint("for example `git sandbox cp fix-login:out/report.md .`")),
    }
}

/// `NAME:PATH`; a path with a slash before the colon is one of the host.
fn split(text: &str) -> Option<(&str, &str)> {
    let (name, path) = text.split_once(':')?;
    (sandbox_core::id::Name::parse(name).is_ok() && !path.is_empty()).then_some((name, path))
}

/// The path relative to the main work tree; absolute ones below any tree are understood.
pub fn relative(sandbox: &Sandbox, path: &str) -> Result<(Sandbox, PathBuf), CliError> {
    let path = Path::new(path);
    let tree = sandbox.trees().find(|tree| path.starts_with(&tree.mount().worktree)).unwrap_or(sandbox.at(0));
    let path = path.strip_prefix(&tree.mount().worktree).unwrap_or(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if path.is_absolute() || !plain {
        return Err(CliError::usage(format!("'{}' is not below the work tree", escape(&path.to_string_lossy())))
            .hint("paths in a sandbox are relative to the top of its work tree"));
    }
    let path = path.components().filter(|part| *part != Component::CurDir).collect();
    Ok((tree, path))
}

fn out(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    path: &str,
    target: &Path,
    links: bool,
    limit: u64,
) -> Outcome {
    let (tree, relative) = relative(sandbox, path)?;
    let target = match relative.file_name() {
        Some(name) if target.is_dir() => target.join(name),
        _ => target.to_owned(),
    };
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        return Err(CliError::new(format!("there is no directory '{}'", escape(&parent.to_string_lossy())))
            .hint(format!("`mkdir -p '{}'` makes it", escape(&parent.to_string_lossy()))));
    }
    let links = if links { Links::Inside } else { Links::None };
    let request = CopyOut { path: &relative, target: &target, links, limit };
    crate::picture::fresh_with(context, store, sandbox, &[(tree.tree, &relative)])?;
    let copied = copy_out::copy_out(store, &tree, &request)?;
    for (path, why) in &copied.skipped {
        let shown = if path.is_empty() { relative.to_string_lossy() } else { path.into() };
        eprintln!("skipped '{}': {why}", escape(&shown));
    }
    eprintln!("copied {}, {}", count(copied.files, "file"), size(copied.bytes));
    Ok(if copied.files == 0 && !copied.skipped.is_empty() { 1 } else { 0 })
}

fn into(context: &Context, store: &Store, sandbox: &Sandbox, source: &Path, path: &str, limit: u64) -> Outcome {
    let meta = fs::metadata(source).map_err(CliError::io(format!("read '{}'", source.display())))?;
    if !meta.is_file() {
        return Err(CliError::new(format!("'{}' is not a regular file", source.display()))
            .hint("directories: `tar c DIR | git sandbox exec NAME -- tar x`"));
    }
    if meta.len() > limit {
        return Err(CliError::new(format!("'{}' is larger than {}", source.display(), size(limit)))
            .hint("`--max-size SIZE` allows more"));
    }
    let bytes = fs::read(source).map_err(CliError::io(format!("read '{}'", source.display())))?;
    let (tree, mut inside) = relative(sandbox, path)?;
    if path.ends_with('/') || inside.as_os_str().is_empty() {
        inside.push(source.file_name().unwrap_or(OsStr::new("file")));
    }
    let mode = format!("{:o}", meta.permissions().mode() & 0o755);
    // Beside it, then renamed: whoever reads it inside sees the old file or the new one.
    let script = r#"[ -d "$1" ] && set -- "$1/$3" "$2"
d=$(dirname -- "$1") && mkdir -p -- "$d" && t=$(mktemp -- "$d/.cp.XXXXXX") || exit 1
cat >"$t" && chmod "$2" "$t" && mv -fT -- "$t" "$1" || { rm -f -- "$t"; exit 1; }"#;
    let argv = ["sh", "-c", script, "cp"].map(|arg| escape_bytes(arg.as_bytes()));
    let mut argv = argv.to_vec();
    argv.push(escape_bytes(inside.as_os_str().as_bytes()));
    argv.push(mode);
    argv.push(escape_bytes(source.file_name().unwrap_or(OsStr::new("file")).as_bytes()));
    let cwd = escape_bytes(tree.mount().worktree.as_os_str().as_bytes());
    let mut connection = connect_or_start(context, store, sandbox)?;
    let (status, _, err) = connection.run(Exec { argv, cwd, ..Exec::default() }, &bytes, 1 << 16)?;
    if status.shell() != 0 {
        return Err(CliError::new(format!(
            "cannot write '{}' inside '{}'",
            escape(&inside.to_string_lossy()),
            sandbox.name()
        ))
        .cause(escape(String::from_utf8_lossy(&err).lines().next().unwrap_or_default())));
    }
    eprintln!("copied 1 file, {}", size(bytes.len() as u64));
    Ok(0)
}
