//! The half that asks the file system: runs every row in a directory and writes what came of it.

use super::{files, names};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// What a row says: a text without anything that differs from run to run.
pub type Said = io::Result<String>;

/// One thing that is asked. The directory holds what [`fill`] makes.
pub struct Row {
    pub name: &'static str,
    pub ask: fn(&Path) -> Said,
}

macro_rules! table {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        /// All rows.
        pub const ROWS: &[Row] = &[$($(Row { name: stringify!($name), ask: $module::$name }),*),*];
    };
}

table! {
    names:
        rename_directory, rename_directory_keeps_its_inode, rename_directory_noreplace, rename_directory_across_parents,
        rename_nested_directory, rename_back_and_forth, rename_onto_empty_directory, rename_errors,
        exchange_directories, exchange_files, exchange_file_and_directory, rename_while_a_file_in_it_is_open,
        rename_while_the_directory_is_open, rename_while_it_is_a_working_directory, rename_while_others_list_it,
        rename_then_make_anew, directory_made_anew_is_empty, replace_over_open_file, replace_keeps_other_links,
        unlink_of_open_file, hard_link_of_a_file, hard_link_count, links_are_one_file_for_reading,
        links_are_one_file_for_writing, names_and_paths_have_limits, parents_of_deep_directories,
        errors_of_existing_names, listing_while_it_changes, listing_agrees_with_stat, symbolic_links;
    files:
        a_reader_sees_a_later_write, a_mapping_sees_a_later_write, a_writable_mapping, appends_and_truncation,
        flock_excludes, flock_lasts_over_the_first_write, record_locks, open_file_description_locks,
        inotify_tells, inotify_of_a_file, inode_over_first_write, one_device, anonymous_files, sockets, pipes,
        holes, holes_after_a_write, fallocate, punch_and_zero, copy_range, times, change_time_moves, birth_time,
        user_attributes, access_control_lists, modes, set_id_bits, owners, running_programs_are_not_written, syncing,
        direct_io, pathconf_like_limits;
}

/// The shell line that runs all rows in `dir` and prints what they say.
pub fn script(dir: &str) -> String {
    format!(
        "FS_PROBE={dir} ./probe-program --exact filesystem::probe::rows_have_an_answer >probe.log 2>&1 ||
         {{ cat probe.log; exit 1; }}; cat probe.out"
    )
}

/// Makes what each row works on.
pub fn lay_out(dir: &Path) {
    for row in ROWS {
        fill(&dir.join(row.name));
    }
}

fn fill(dir: &Path) {
    for below in ["dir/sub/deep", "other", "empty"] {
        fs::create_dir_all(dir.join(below)).expect("new");
    }
    for file in ["f", "g", "h1", "dir/a", "dir/b", "dir/sub/c", "dir/sub/deep/d", "other/x"] {
        fs::write(dir.join(file), format!("this is {file}\n")).expect("new");
    }
    fs::hard_link(dir.join("h1"), dir.join("h2")).expect("one file system");
    symlink("f", dir.join("link")).expect("new");
    fs::write(dir.join("big"), vec![b'.'; 256 * 1024]).expect("new");
    let sparse = fs::File::create(dir.join("sparse")).expect("new");
    sparse.set_len(8 << 20).expect("holes cost nothing");
    std::os::unix::fs::FileExt::write_all_at(&sparse, &[b'x'; 4096], 4 << 20).expect("there is room");
    fs::copy("/bin/sleep", dir.join("program")).expect("a program of every machine");
    fs::set_permissions(dir.join("program"), fs::Permissions::from_mode(0o755)).expect("ours");
}

/// Every row has an answer; with `FS_PROBE`, about the directory that it names.
#[test]
fn rows_have_an_answer() {
    let asked = std::env::var_os("FS_PROBE").map(std::path::PathBuf::from);
    let temp = asked.is_none().then(|| tempfile::tempdir().expect("a temporary directory"));
    if let Some(temp) = &temp {
        lay_out(temp.path());
    }
    let dir = asked.or_else(|| temp.as_ref().map(|temp| temp.path().to_owned())).expect("one of them");
    let dir = dir.canonicalize().expect("the directory is there");
    let mut out = String::new();
    for row in ROWS {
        let own = dir.join(format!("{}.made", row.name));
        fill(&own);
        for (kind, at) in [("captured", dir.join(row.name)), ("made", own)] {
            let said = (row.ask)(&at).unwrap_or_else(|error| format!("failed: {error}"));
            assert!(!said.contains(['\n', '\t']), "{}: {said}", row.name);
            out += &format!("{kind} {}\t{said}\n", row.name);
        }
    }
    if temp.is_none() {
        let mut file = fs::File::create("probe.out").expect("a writable directory");
        file.write_all(out.as_bytes()).expect("there is room");
    }
}

/// `ok`, or what the kernel said.
pub fn said<T>(result: Result<T, impl Into<io::Error>>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.into().to_string(),
    }
}

/// The names in a directory, sorted.
pub fn list(dir: &Path) -> io::Result<String> {
    let mut names: Vec<String> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names.join(" "))
}
