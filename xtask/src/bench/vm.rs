//! Rows of virtual machines: their start beside QEMU with nothing in the guest, work inside, and what their helpers
//! hold. With the accelerator that is there, which `-accel` says.

use super::machine::pss;
use super::measure::{Sample, rounds, time};
use super::rows::{Bench, Rows, printed, take, timed};
use super::table::{Goal, Row, Unit};
use sandbox_testkit::guest_kernel;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each boot of an emulated guest takes seconds.
const MOST: usize = 3;
/// MiB of the guests.
const MEMORY: &str = "768";

const COMPILE: &str =
    "{ echo '#include <stdio.h>'; seq -f 'int f%.0f(int a){return a*3+(a>>2)%%7;}' 200; } >c.c && cc -O1 -c c.c";
const FILES: &str = "mkdir many && cd many && seq 20000 | xargs touch && cd .. && rm -r many";

/// Guests.
pub fn vm(bench: &Bench) -> Rows {
    let kernel = guest_kernel().map_err(str::to_owned)?;
    let repo = bench.small()?;
    let git = |key: &str, value: &str| {
        time(Command::new("git").args(["config", "--file"]).arg(config(bench)).args([key, value]))
    };
    git("sandbox.vm.kernel", &kernel.to_string_lossy())?;
    git("sandbox.vm.memory", &format!("{MEMORY}m"))?;
    let runs = bench.few(MOST);
    let guest = |args: &[&str]| bench.spawn(&repo, &[&["--driver", "qemu"], args].concat());
    // The initramfs is made, and whether there is KVM is known.
    guest(&["--rm", "first", "--", "true"])?;
    let initrd = initramfs(bench)?;
    let accel = accel(bench);
    let bare = || time(&mut bare(&kernel, &initrd, accel));
    let [ours, to_init] =
        take(rounds(runs, 0, &mut [Box::new(|| guest(&["--rm", "bench-boot", "--", "true"])), Box::new(bare)])?)?;

    guest(&["-d", "bench-vm"])?;
    bench.spawn(&repo, &["-d", "bench-here"])?;
    let inside = |name: &str, dir: &str, script: &str| {
        let script = format!("cd {dir} && {}", timed(script));
        printed(&mut bench.env().sandbox_command(repo.dir(), &["exec", name, "--", "sh", "-c", &script]))
    };
    let [status, status_here, compile, compile_disk, files, files_here] = take(rounds(
        runs,
        1,
        &mut [
            Box::new(|| inside("bench-vm", ".", "git status --porcelain")),
            Box::new(|| inside("bench-here", ".", "git status --porcelain")),
            Box::new(|| inside("bench-vm", ".", COMPILE)),
            // The home is on the guest's own disk, and under no overlay.
            Box::new(|| inside("bench-vm", "~", COMPILE)),
            Box::new(|| inside("bench-vm", ".", FILES)),
            Box::new(|| inside("bench-here", ".", FILES)),
        ],
    )?)?;
    let helpers = helpers(bench)?;
    for name in ["bench-vm", "bench-here"] {
        bench.run(&repo, &["drop", "--force", name])?;
    }
    let what = |text: &str| format!("a guest (-accel {accel}): {text}");
    let beside = |text: &str, ours: Sample, other: &str, peer: Sample| Row {
        goal: Goal::None,
        ..Row::against(what(text), ours, other, peer, 0.0)
    };
    Ok(vec![
        Row::against(what("spawn, `true`, drop"), ours, "QEMU, to init", to_init, 1.25),
        beside("`git status`", status, "namespaces", status_here),
        Row::against(what("a compile in the tree"), compile, "on its own disk", compile_disk, 1.3),
        beside("20,000 files written and deleted", files, "namespaces", files_here),
        Row::alone(
            what("PSS of file server and keeper"),
            Sample::new(vec![helpers]),
            Goal::Absolute(20.0 * 1024.0 * 1024.0),
            Unit::Size,
        ),
    ])
}

fn config(bench: &Bench) -> PathBuf {
    bench.env().home().join(".gitconfig")
}

/// Finds the guest's first files, which the program keeps in its cache.
fn initramfs(bench: &Bench) -> Result<PathBuf, String> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut dirs = vec![bench.root().join("cache")];
    while let Some(dir) = dirs.pop() {
        if dir.ends_with("initramfs") {
            return list(&dir).into_iter().next().ok_or_else(|| "there is no initramfs".to_owned());
        }
        dirs.extend(list(&dir).into_iter().filter(|path| path.is_dir() && !path.is_symlink()));
    }
    Err("the program has kept no initramfs".to_owned())
}

/// What the program took.
fn accel(bench: &Bench) -> &'static str {
    let told = bench.env().sandbox(bench.root(), &["doctor"]).stdout;
    if told.lines().any(|line| line.contains("/dev/kvm runs guests")) { "kvm" } else { "tcg" }
}

/// The same kernel and first files without devices: there is no such program as it is told to run, so it panics where
/// it would start it, and QEMU ends.
fn bare(kernel: &Path, initrd: &Path, accel: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "microvm,rtc=on"]);
    command.args(["-accel", if accel == "kvm" { "kvm" } else { "tcg,thread=multi" }]);
    command.args(["-cpu", if accel == "kvm" { "host" } else { "max" }, "-smp", "2", "-m", MEMORY]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    let clock = sandbox_sys::clock::tsc_khz(std::time::Duration::from_millis(10));
    let clock = clock.filter(|_| accel != "kvm").map(|khz| format!(" tsc_early_khz={khz}")).unwrap_or_default();
    command.args(["-append", &format!("quiet loglevel=0 rdinit=/nothing panic=-1 reboot=t{clock}")]);
    command
}

/// PSS of the two processes that a guest has beside its supervisor and QEMU.
fn helpers(bench: &Bench) -> Result<f64, String> {
    let live = bench.env().live_processes();
    let mut sum = 0.0;
    for (role, pid) in &live {
        let named = fs::read(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in String::from_utf8_lossy(&named).split_whitespace() {
            let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            let child: u32 = child.parse().map_err(|_| "a pid is a number".to_owned())?;
            match role.as_str() {
                "supervisor" if words.contains("__vm-fs") => sum += pss(child)?,
                // QEMU's parent.
                "init" if words.contains("qemu-system") => sum += pss(*pid)?,
                _ => {}
            }
        }
    }
    if sum == 0.0 { Err("there are no helpers".to_owned()) } else { Ok(sum) }
}
