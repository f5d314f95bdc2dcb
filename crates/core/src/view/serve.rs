//! What `git fetch host` gets inside: a repository made of a view and the granted refs.

use super::View;
use crate::host_repo::write_bare;
use crate::store::{self, StoreError};
use sandbox_git::refs::write_packed;
use sandbox_git::{Git, GitCommand, Oid, RefName};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Why a repository to serve from could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare what is served to the sandbox")]
pub struct ServeError(#[from] StoreError);

/// Makes a bare repository in `dir` whose only objects are those of `view` and whose only refs
/// are `refs`. It is what a sandbox may ask questions of: never the host's repository, which
/// hands out every object by id.
pub fn prepare_serve(
    view: &View,
    refs: &[(RefName, Oid)],
    head: Option<&RefName>,
    dir: &Path,
) -> Result<(), ServeError> {
    write_bare(dir, view.format(), partial_config(view))?;
    borrow(view, dir)?;
    hold(view, dir)?;
    let packed = write_packed(refs.iter().map(|(name, oid)| (name, *oid, None)));
    store::write_whole(&dir.join("packed-refs"), &packed, false)?;
    if let Some(head) = head {
        let mut text = b"ref: ".to_vec();
        text.extend_from_slice(head.as_bytes());
        text.push(b'\n');
        store::write_whole(&dir.join("HEAD"), &text, false)?;
    }
    Ok(())
}

/// Gives the bare repository `dir` names of its own for the view's packs: a view that no snapshot names may
/// be removed by `gc` while it is served from.
fn hold(view: &View, dir: &Path) -> Result<(), StoreError> {
    let packs = view.objects().join("pack");
    let target = dir.join("objects/pack");
    store::make_dir(&target)?;
    let mut names: Vec<_> = std::fs::read_dir(&packs)
        .map_err(StoreError::io("list", &packs))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()
        .map_err(StoreError::io("list", &packs))?;
    // A pack counts from the moment its index is there.
    names.sort_by_key(|name| name.as_bytes().ends_with(b".idx"));
    for name in names {
        let path = packs.join(&name);
        std::fs::hard_link(&path, target.join(&name)).map_err(StoreError::io("link", &path))?;
    }
    Ok(())
}

/// Lets the bare repository `dir` read the view's objects, up to the view's boundary.
pub(crate) fn borrow(view: &View, dir: &Path) -> Result<(), StoreError> {
    let mut line = view.objects().as_os_str().as_bytes().to_vec();
    line.push(b'\n');
    store::write_whole(&dir.join("objects/info/alternates"), &line, false)?;
    if !view.shallow().is_empty() {
        let text: String = view.shallow().iter().map(|oid| format!("{oid}\n")).collect();
        store::write_whole(&dir.join("shallow"), text.as_bytes(), false)?;
    }
    Ok(())
}

/// An absent object stays absent: the promisor cannot be asked.
pub(crate) fn partial_config(view: &View) -> &'static str {
    if view.is_partial() {
        "[extensions]\n\tpartialClone = host\n[remote \"host\"]\n\tpromisor = true\n\turl = /dev/null/not-on-this-machine\n"
    } else {
        ""
    }
}

/// Returns the command that serves a repository of [`prepare_serve`]: `git upload-pack`, to be
/// connected to the asking client.
pub fn serve_command(git: &Git, dir: &Path) -> GitCommand {
    git.anywhere().args(["upload-pack", "--strict"]).arg(dir)
}
