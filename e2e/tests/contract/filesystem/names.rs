//! Rows about names: renames, links, directories.

use super::probe::{Said, list, said};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, renameat_with};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> std::io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, flags)?)
}

pub fn rename_directory(at: &Path) -> Said {
    fs::rename(at.join("dir"), at.join("moved"))?;
    let (top, deep) = (list(&at.join("moved"))?, fs::read_to_string(at.join("moved/sub/deep/d"))?);
    Ok(format!("{top} {} {}", deep.trim(), at.join("dir").exists()))
}

pub fn rename_directory_keeps_its_inode(at: &Path) -> Said {
    let before = fs::metadata(at.join("dir"))?.ino();
    fs::rename(at.join("dir"), at.join("moved"))?;
    Ok(format!("{}", fs::metadata(at.join("moved"))?.ino() == before))
}

pub fn rename_directory_noreplace(at: &Path) -> Said {
    let onto = |name: &str| said(rename(&at.join("dir"), &at.join(name), RenameFlags::NOREPLACE));
    Ok(format!("{}, {}, {}, {}", onto("empty"), onto("f"), onto("new"), list(&at.join("new"))?))
}

pub fn rename_directory_across_parents(at: &Path) -> Said {
    fs::rename(at.join("dir"), at.join("other/dir"))?;
    let up = fs::read_to_string(at.join("other/dir/sub/../../x"))?;
    Ok(format!("{} {} {}", list(&at.join("other"))?, list(&at.join("other/dir/sub"))?, up.trim()))
}

pub fn rename_nested_directory(at: &Path) -> Said {
    fs::rename(at.join("dir/sub/deep"), at.join("deep"))?;
    fs::rename(at.join("dir/sub"), at.join("deep/sub"))?;
    fs::rename(at.join("deep"), at.join("dir/deep"))?;
    Ok(format!("{}; {}; {}", list(&at.join("dir"))?, list(&at.join("dir/deep"))?, list(&at.join("dir/deep/sub"))?))
}

pub fn rename_back_and_forth(at: &Path) -> Said {
    for _ in 0..5 {
        fs::rename(at.join("dir"), at.join("moved"))?;
        fs::rename(at.join("moved"), at.join("dir"))?;
    }
    Ok(format!("{} {}", list(at)?, list(&at.join("dir"))?))
}

pub fn rename_onto_empty_directory(at: &Path) -> Said {
    fs::rename(at.join("dir"), at.join("empty"))?;
    Ok(format!("{} {}", list(&at.join("empty"))?, at.join("dir").exists()))
}

pub fn rename_errors(at: &Path) -> Said {
    let tell = |from: &str, to: &str| said(fs::rename(at.join(from), at.join(to)));
    Ok([
        tell("dir", "other"),
        tell("dir", "f"),
        tell("f", "dir"),
        tell("dir", "dir/sub/dir"),
        tell("dir", "link"),
        tell("gone", "new"),
        tell("dir", "gone/new"),
        tell("dir/.", "new"),
        tell("dir", "dir"),
        tell("f/", "new"),
        tell("f", "new/"),
    ]
    .join(", "))
}

pub fn exchange_directories(at: &Path) -> Said {
    rename(&at.join("dir"), &at.join("other"), RenameFlags::EXCHANGE)?;
    Ok(format!("{}; {}", list(&at.join("dir"))?, list(&at.join("other"))?))
}

pub fn exchange_files(at: &Path) -> Said {
    rename(&at.join("f"), &at.join("dir/a"), RenameFlags::EXCHANGE)?;
    Ok(format!("{} {}", fs::read_to_string(at.join("f"))?.trim(), fs::read_to_string(at.join("dir/a"))?.trim()))
}

pub fn exchange_file_and_directory(at: &Path) -> Said {
    rename(&at.join("dir"), &at.join("f"), RenameFlags::EXCHANGE)?;
    Ok(format!("{} {}", list(&at.join("f"))?, fs::read_to_string(at.join("dir"))?.trim()))
}

pub fn rename_while_a_file_in_it_is_open(at: &Path) -> Said {
    let mut file = fs::File::options().read(true).append(true).open(at.join("dir/a"))?;
    fs::rename(at.join("dir"), at.join("moved"))?;
    file.write_all(b"later\n")?;
    let same = file.metadata()?.ino() == fs::metadata(at.join("moved/a"))?.ino();
    Ok(format!("{same} {:?}", fs::read_to_string(at.join("moved/a"))?))
}

pub fn rename_while_the_directory_is_open(at: &Path) -> Said {
    let dir = rustix::fs::open(at.join("dir"), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
    fs::rename(at.join("dir"), at.join("moved"))?;
    Ok(said(rustix::fs::openat(&dir, "a", OFlags::RDONLY, Mode::empty())))
}

pub fn rename_while_it_is_a_working_directory(at: &Path) -> Said {
    let mut child = Command::new("sh")
        .args(["-c", "read line; cat a 2>/dev/null || echo nothing here"])
        .current_dir(at.join("dir"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    fs::rename(at.join("dir"), at.join("moved"))?;
    drop(child.stdin.take());
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).trim().to_owned())
}

/// Nobody may ever see both names, and a file may never be seen torn.
pub fn rename_while_others_list_it(at: &Path) -> Said {
    let stop = AtomicBool::new(false);
    let torn = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut torn = false;
            while !stop.load(Ordering::Relaxed) {
                for name in ["dir/a", "moved/a"] {
                    torn |= fs::read_to_string(at.join(name)).is_ok_and(|text| text != "this is dir/a\n");
                }
            }
            torn
        });
        let moved = (0..5).try_for_each(|_| {
            fs::rename(at.join("dir"), at.join("moved"))?;
            fs::rename(at.join("moved"), at.join("dir"))
        });
        stop.store(true, Ordering::Relaxed);
        moved.map(|()| watcher.join().unwrap_or(true))
    })?;
    Ok(format!("{torn} {}", list(&at.join("dir"))?))
}

pub fn rename_then_make_anew(at: &Path) -> Said {
    fs::rename(at.join("dir"), at.join("moved"))?;
    fs::create_dir(at.join("dir"))?;
    fs::write(at.join("dir/a"), "new")?;
    let there = list(&at.join("dir"))?;
    fs::remove_dir_all(at.join("moved"))?;
    Ok(format!("{there}; {}; {}", list(at)?, fs::read_to_string(at.join("dir/a"))?))
}

pub fn directory_made_anew_is_empty(at: &Path) -> Said {
    fs::remove_dir_all(at.join("dir"))?;
    let gone = said(fs::read_dir(at.join("dir")));
    fs::create_dir(at.join("dir"))?;
    let empty = list(&at.join("dir"))?;
    Ok(format!("{gone}; '{empty}'; {}", said(fs::remove_dir(at.join("dir")))))
}

pub fn replace_over_open_file(at: &Path) -> Said {
    let mut old = fs::File::open(at.join("f"))?;
    fs::write(at.join("f.new"), "new")?;
    fs::rename(at.join("f.new"), at.join("f"))?;
    let mut text = String::new();
    old.read_to_string(&mut text)?;
    Ok(format!("{} {} {}", text.trim(), old.metadata()?.nlink(), fs::read_to_string(at.join("f"))?))
}

pub fn replace_keeps_other_links(at: &Path) -> Said {
    fs::rename(at.join("g"), at.join("h1"))?;
    let (one, two) = (fs::read_to_string(at.join("h1"))?, fs::read_to_string(at.join("h2"))?);
    Ok(format!("{} {}", one.trim(), two.trim()))
}

pub fn unlink_of_open_file(at: &Path) -> Said {
    let mut file = fs::File::options().read(true).write(true).open(at.join("f"))?;
    fs::remove_file(at.join("f"))?;
    file.write_all(b"THIS")?;
    let mut rest = String::new();
    file.read_to_string(&mut rest)?;
    Ok(format!("{} {} {}", rest.trim(), file.metadata()?.nlink(), at.join("f").exists()))
}

pub fn hard_link_of_a_file(at: &Path) -> Said {
    fs::hard_link(at.join("f"), at.join("dir/f"))?;
    fs::write(at.join("f"), "through the first name")?;
    let same = fs::metadata(at.join("f"))?.ino() == fs::metadata(at.join("dir/f"))?.ino();
    Ok(format!("{same} {} {}", fs::metadata(at.join("f"))?.nlink(), fs::read_to_string(at.join("dir/f"))?))
}

pub fn hard_link_count(at: &Path) -> Said {
    Ok(format!("{}", fs::metadata(at.join("h1"))?.nlink()))
}

pub fn links_are_one_file_for_reading(at: &Path) -> Said {
    Ok(format!("{}", fs::metadata(at.join("h1"))?.ino() == fs::metadata(at.join("h2"))?.ino()))
}

pub fn links_are_one_file_for_writing(at: &Path) -> Said {
    fs::write(at.join("h1"), "written")?;
    Ok(fs::read_to_string(at.join("h2"))?.trim().to_owned())
}

pub fn names_and_paths_have_limits(at: &Path) -> Said {
    let name = |len| said(fs::write(at.join("n".repeat(len)), "x"));
    let link = |len| said(symlink("t".repeat(len), at.join(format!("to-{len}"))));
    let mut path = at.join("dir");
    while path.as_os_str().len() < 4200 {
        path.push("d");
    }
    let wide = at.join("wide");
    fs::create_dir(&wide)?;
    Ok([
        name(255),
        name(256),
        link(4095),
        link(4096),
        said(fs::metadata(&path)),
        said(fs::create_dir(wide.join("\u{e4}".repeat(127)))),
    ]
    .join(", "))
}

pub fn parents_of_deep_directories(at: &Path) -> Said {
    let mut path = PathBuf::from("dir/sub/deep");
    for n in 0..100 {
        path.push(format!("level{n}"));
    }
    fs::create_dir_all(at.join(&path))?;
    fs::rename(at.join("dir/sub/deep/level0"), at.join("level0"))?;
    let deepest = at.join("level0").join((1..100).map(|n| format!("level{n}")).collect::<PathBuf>());
    let up: PathBuf = deepest.join("../".repeat(101));
    let text = fs::read_to_string(up.join("f"));
    Ok(format!("{} {}", deepest.is_dir(), said(text)))
}

pub fn errors_of_existing_names(at: &Path) -> Said {
    let open = |name: &str, flags| said(rustix::fs::open(at.join(name), flags, Mode::RUSR));
    Ok([
        said(fs::remove_dir(at.join("dir"))),
        said(fs::remove_dir(at.join("f"))),
        said(fs::create_dir(at.join("dir"))),
        said(fs::create_dir(at.join("f"))),
        said(fs::remove_file(at.join("dir"))),
        said(symlink("x", at.join("link"))),
        said(fs::hard_link(at.join("f"), at.join("g"))),
        said(fs::hard_link(at.join("dir"), at.join("dir2"))),
        open("f", OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY),
        open("dir", OFlags::WRONLY),
        open("link", OFlags::NOFOLLOW),
        open("f", OFlags::DIRECTORY),
        open("f/x", OFlags::RDONLY),
        open("gone", OFlags::RDONLY),
        said(fs::remove_dir(at.join("dir/."))),
        said(rustix::fs::unlinkat(CWD, at.join("empty"), AtFlags::REMOVEDIR)),
        said(fs::remove_dir(at.join("empty"))),
    ]
    .join(", "))
}

/// What is neither made nor removed meanwhile is listed exactly once.
pub fn listing_while_it_changes(at: &Path) -> Said {
    let dir = at.join("dir");
    for n in 0..500 {
        fs::write(dir.join(format!("stays{n}")), "")?;
        fs::write(dir.join(format!("goes{n}")), "")?;
    }
    let mut seen = Vec::new();
    for (n, entry) in fs::read_dir(&dir)?.enumerate() {
        if n < 500 {
            fs::remove_file(dir.join(format!("goes{n}")))?;
            fs::write(dir.join(format!("comes{n}")), "")?;
        }
        seen.push(entry?.file_name().to_string_lossy().into_owned());
    }
    seen.retain(|name| !name.starts_with("goes") && !name.starts_with("comes"));
    seen.sort();
    let all = seen.len();
    seen.dedup();
    Ok(format!("{all} {}", seen.len()))
}

pub fn listing_agrees_with_stat(at: &Path) -> Said {
    fs::write(at.join("f"), "so that one is changed")?;
    let mut wrong = Vec::new();
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if std::os::unix::fs::DirEntryExt::ino(&entry) != meta.ino() || entry.file_type()? != meta.file_type() {
            wrong.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    wrong.sort();
    Ok(format!("wrong: {}", wrong.join(" ")))
}

pub fn symbolic_links(at: &Path) -> Said {
    fs::write(at.join("link"), "through the link")?;
    let through = fs::read_to_string(at.join("f"))?;
    symlink("loop", at.join("loop"))?;
    fs::rename(at.join("link"), at.join("dir/link"))?;
    let broken = said(fs::read(at.join("dir/link")));
    Ok(format!(
        "{through}, {broken}, {}, {}",
        said(fs::read(at.join("loop"))),
        fs::read_link(at.join("dir/link"))?.display()
    ))
}
