//! Whether the processor can run a guest: `/dev/kvm` may open and a stock kernel hang in it all the same, or QEMU
//! abort on a register that the host does not give.
//!
//! ```text
//!   sandbox.vm.accel   /dev/kvm        probe                       ─►
//!   tcg                                                               emulation
//!   auto               absent, closed                                 emulation, and why
//!   auto               opens           a guest gets to user mode      KVM
//!   auto               opens           it hangs, QEMU ends            emulation, and why
//!   kvm                (the same)      …                              KVM, or refused with why
//! ```
//!
//! The probe boots the very kernel that guests get, to its first program: 197 bytes that say a word and restart.
//! What came of it is remembered for this kernel, this QEMU and this boot of the host.

use super::cpio::Archive;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox_core::driver::{Check, Verdict};
use sandbox_core::launch::Accel;
use sandbox_core::store::{make_dir, read_json, write_json};
use sandbox_sys::child::die_with_us;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The device.
const KVM: &str = "/dev/kvm";

/// A guest that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(8);

/// The longest that a guest may take to its first program.
const WHOLE: Duration = Duration::from_secs(60);

/// Bytes of what it says that are kept.
const KEPT: usize = 16 << 10;

/// Verdicts that are remembered.
const MOST: usize = 32;

/// What the guest's first program says.
const WORD: &str = "git-sandbox-probe: user mode";

/// What runs a guest's instructions, and why no better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The processor.
    Kvm,
    /// Emulation.
    Tcg {
        /// Why not the processor, in words.
        why: String,
        /// The command that changes it.
        fix: Option<String>,
    },
}

/// What became of opening the device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Device {
    Opens,
    Absent,
    /// Its group, when it is one that a user can be put into.
    Closed(Option<String>),
    Broken(String),
}

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    /// Why a guest does not run; `None` when it does.
    why: Option<String>,
}

/// Decides what runs guests of `kernel` with this `qemu`. Takes as long as a guest boots, or [`SILENCE`], where that
/// is not remembered below `cache`.
pub fn choose(accel: Accel, cache: &Path, qemu: &Path, kernel: &Path) -> Choice {
    decide(accel, device(Path::new(KVM)), || remembered(cache, qemu, kernel))
}

/// Forgets what was found, so that it is tried again.
pub fn forget(cache: &Path) -> io::Result<()> {
    match fs::remove_file(cache.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The line of `doctor`.
pub fn check(accel: Accel, cache: &Path, qemu: &Path, kernel: &Path) -> Check {
    let (verdict, found, fix) = match choose(accel, cache, qemu, kernel) {
        Choice::Kvm => (Verdict::Ok, format!("{KVM} runs guests of this kernel"), None),
        Choice::Tcg { why, fix } if accel == Accel::Kvm => (Verdict::Missing, why, fix),
        Choice::Tcg { why, fix } => (Verdict::Weak, format!("emulation, many times slower: {why}"), fix),
    };
    Check { name: "acceleration".into(), verdict, found, fix }
}

fn decide(accel: Accel, device: Device, probe: impl FnOnce() -> Found) -> Choice {
    let no = |why: &str, fix: Option<&str>| Choice::Tcg { why: why.to_owned(), fix: fix.map(str::to_owned) };
    if accel == Accel::Tcg {
        return no("sandbox.vm.accel = tcg", None);
    }
    match device {
        Device::Absent => no(
            "there is no '/dev/kvm'",
            Some(
                "sudo modprobe kvm-intel || sudo modprobe kvm-amd   # after virtualization was switched on in the firmware, or nested virtualization for this machine",
            ),
        ),
        Device::Closed(Some(group)) => no(
            &format!("this user may not open '/dev/kvm'; its group '{group}' may"),
            Some(&format!("sudo usermod -aG {group} \"$USER\"   # then log in again")),
        ),
        Device::Closed(None) => no(
            "this user may not open '/dev/kvm'",
            Some(
                "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && sudo usermod -aG kvm \"$USER\"   # then log in again",
            ),
        ),
        Device::Broken(why) => no(&format!("'/dev/kvm' cannot be opened: {why}"), None),
        Device::Opens => match probe().why {
            None => Choice::Kvm,
            Some(why) => no(&format!("'/dev/kvm' opens, but {why}"), None),
        },
    }
}

fn device(path: &Path) -> Device {
    let Err(error) = fs::OpenOptions::new().read(true).write(true).open(path) else { return Device::Opens };
    match error.kind() {
        io::ErrorKind::NotFound => Device::Absent,
        io::ErrorKind::PermissionDenied => {
            let group = path.metadata().ok().filter(|meta| meta.mode() & 0o060 == 0o060 && meta.gid() != 0);
            Device::Closed(group.and_then(|meta| group_name(meta.gid())))
        }
        _ => Device::Broken(error.to_string()),
    }
}

/// The name of a group, as `/etc/group` has it: a static program must not call NSS.
fn group_name(gid: u32) -> Option<String> {
    let text = fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 3 && fields[2].parse() == Ok(gid)).then(|| fields[0].to_owned())
    })
}

/// Where verdicts are remembered, below the cache.
const FILE: &str = "accel.json";

/// That file.
#[derive(Default, Serialize, Deserialize)]
struct Verdicts {
    /// By [`key`].
    #[serde(default)]
    verdicts: BTreeMap<String, Found>,
}

fn remembered(cache: &Path, qemu: &Path, kernel: &Path) -> Found {
    let key = key(qemu, kernel);
    if let Some(found) = key.as_ref().and_then(|key| recall(cache, key)) {
        return found;
    }
    let found = match probe(qemu, kernel, cache, &["kvm", "host"], (SILENCE, WHOLE)) {
        Ok(found) => found,
        // Nothing is known of it then.
        Err(error) => return Found { why: Some(format!("it cannot be tried: {error}")) },
    };
    if let Some(key) = key {
        remember(cache, key, &found);
    }
    found
}

fn known(cache: &Path) -> Verdicts {
    read_json(&cache.join(FILE)).ok().flatten().unwrap_or_default()
}

fn recall(cache: &Path, key: &str) -> Option<Found> {
    known(cache).verdicts.remove(key)
}

/// Where it cannot be remembered it is tried again.
fn remember(cache: &Path, key: String, found: &Found) {
    let mut known = known(cache);
    if known.verdicts.len() >= MOST {
        known.verdicts.clear();
    }
    known.verdicts.insert(key, found.clone());
    let _ = make_dir(cache).and_then(|()| write_json(&cache.join(FILE), &known, false));
}

/// What a verdict is about; `None` where it cannot be told.
fn key(qemu: &Path, kernel: &Path) -> Option<String> {
    let mut key = sandbox_sys::process::boot_id().ok()?;
    for file in [qemu, kernel, Path::new(KVM)] {
        let meta = fs::metadata(file).ok()?;
        let time = (meta.mtime(), meta.mtime_nsec());
        // The time of a device is when something was last written to it.
        let time = if file == Path::new(KVM) { (0, 0) } else { time };
        let (dev, ino) = (meta.dev(), meta.ino());
        key.push_str(&format!(" {} {dev}:{ino} {} {}.{}", file.display(), meta.len(), time.0, time.1));
    }
    Some(key)
}

/// The guest's first program: write(1, [`WORD`]), reboot(RESTART). Without a library and at a fixed address, for it
/// is all that the archive has.
#[cfg(target_arch = "x86_64")]
fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    #[rustfmt::skip]
    let code: &[u8] = &[
        0xb8, 1, 0, 0, 0,                   // mov eax, 1           write
        0xbf, 1, 0, 0, 0,                   // mov edi, 1           standard output
        0x48, 0x8d, 0x35, 31, 0, 0, 0,      // lea rsi, [rip + 31]  behind the code
        0xba, 29, 0, 0, 0,                  // mov edx, 29
        0x0f, 0x05,                         // syscall
        0xb8, 169, 0, 0, 0,                 // mov eax, 169         reboot
        0xbf, 0xad, 0xde, 0xe1, 0xfe,       // mov edi, LINUX_REBOOT_MAGIC1
        0xbe, 0x69, 0x19, 0x12, 0x28,       // mov esi, LINUX_REBOOT_MAGIC2
        0xba, 0x67, 0x45, 0x23, 0x01,       // mov edx, LINUX_REBOOT_CMD_RESTART
        0x0f, 0x05,                         // syscall
        0xeb, 0xfe,                         // jmp to itself
    ];
    let size = HEADERS + code.len() as u64 + WORD.len() as u64 + 1;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    // ET_EXEC for EM_X86_64; entry, program headers behind this one, no sections.
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    [BASE + HEADERS, 64, 0].iter().for_each(|field| put(&field.to_le_bytes()));
    put(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, read and execute: the whole file.
    put(&[1, 0, 0, 0, 5, 0, 0, 0]);
    [0, BASE, BASE, size, size, 0x1000].iter().for_each(|field| put(&field.to_le_bytes()));
    put(code);
    put(WORD.as_bytes());
    put(b"\n");
    elf
}

/// Not written for this processor: nothing can be tried, and guests are emulated.
#[cfg(not(target_arch = "x86_64"))]
fn program() -> Vec<u8> {
    Vec::new()
}

/// Boots a guest to its first program with an accelerator and a processor. An error is that it could not be tried.
fn probe(
    qemu: &Path,
    kernel: &Path,
    cache: &Path,
    [accelerator, processor]: &[&str; 2],
    (silence, whole): (Duration, Duration),
) -> io::Result<Found> {
    make_dir(cache).map_err(io::Error::other)?;
    let program = program();
    if program.is_empty() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "there is no probe for this processor"));
    }
    let mut archive = Archive::new(Vec::new());
    archive.directory("dev", 0o755)?;
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, program.len() as u64, &program[..])?;
    // Kept: the same bytes each time, and QEMU wants a file.
    let image = cache.join(format!(".probe-{}.cpio", std::process::id()));
    fs::File::create(&image)?.write_all(&archive.finish()?)?;
    let mut command = Command::new(qemu);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "microvm,rtc=on"])
        .args(["-accel", accelerator, "-cpu", processor, "-m", "256M", "-serial", "stdio"])
        .args(["-append", "console=ttyS0 panic=-1 reboot=t"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(&image)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_us(&mut command);
    let found = command.spawn().and_then(|child| watch(Guest(child), silence, whole));
    let _ = fs::remove_file(&image);
    found
}

/// A guest that ends when nobody needs it any more.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads what a guest says until it is in user mode, hangs or ends.
fn watch(mut guest: Guest, silence: Duration, whole: Duration) -> io::Result<Found> {
    let (Some(mut said), Some(mut complaints)) = (guest.0.stdout.take(), guest.0.stderr.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let (began, mut heard) = (Instant::now(), Instant::now());
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    loop {
        let left = (heard + silence).min(began + whole).saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [
            PollFd::from_borrowed_fd(said.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(complaints.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => {
                let last = last_line(&text);
                let after = if last.is_empty() { String::new() } else { format!(" after '{last}'") };
                return Ok(Found { why: Some(format!("a guest hangs in it{after}")) });
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = [!fds[0].revents().is_empty(), !fds[1].revents().is_empty()];
        let mut bytes = [0u8; 4096];
        // What QEMU itself says is no sign of life of the guest.
        if ready[1] {
            let n = complaints.read(&mut bytes)?;
            keep(&mut errors, &bytes[..n]);
            if n == 0 && !ready[0] {
                return ended(&mut guest, &text, &errors);
            }
        }
        if ready[0] {
            match said.read(&mut bytes)? {
                0 => return ended(&mut guest, &text, &errors),
                n => {
                    keep(&mut text, &bytes[..n]);
                    heard = Instant::now();
                }
            }
            if text.windows(WORD.len()).any(|window| window == WORD.as_bytes()) {
                return Ok(Found { why: None });
            }
        }
    }
}

fn keep(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(bytes);
    let over = text.len().saturating_sub(KEPT);
    text.drain(..over);
}

fn ended(guest: &mut Guest, text: &[u8], errors: &[u8]) -> io::Result<Found> {
    let status = guest.0.wait()?;
    let said = [last_line(errors), last_line(text)].into_iter().find(|line| !line.is_empty()).unwrap_or_default();
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    Ok(Found { why: Some(format!("QEMU ends ({status}){said}")) })
}

/// The last line with anything in it, printable and of bounded length: a guest said it.
pub(super) fn last_line(text: &[u8]) -> String {
    let printable = |line: &[u8]| -> String {
        line.iter().filter(|byte| (0x20..0x7f).contains(*byte)).map(|byte| char::from(*byte)).take(200).collect()
    };
    text.split(|byte| matches!(byte, b'\n' | b'\r'))
        .rev()
        .map(printable)
        .map(|line| line.trim().to_owned())
        .find(|line| !line.is_empty())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_verdict_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        assert_eq!(recall(&cache, "a"), None);
        let (runs, hangs) = (Found { why: None }, Found { why: Some("a guest hangs in it".into()) });
        remember(&cache, "a".into(), &hangs);
        remember(&cache, "b".into(), &runs);
        assert_eq!((recall(&cache, "a"), recall(&cache, "b")), (Some(hangs.clone()), Some(runs)));
        (0..MOST).for_each(|n| remember(&cache, n.to_string(), &hangs));
        assert!(known(&cache).verdicts.len() <= MOST && recall(&cache, &(MOST - 1).to_string()).is_some());
        forget(&cache).unwrap();
        assert_eq!(recall(&cache, "0"), None);
    }

    #[test]
    fn what_runs_guests() {
        let words = |accel, device, why: Option<&str>| {
            let found = Found { why: why.map(str::to_owned) };
            match decide(accel, device, || found) {
                Choice::Kvm => "kvm".to_owned(),
                Choice::Tcg { why, fix } => format!("tcg: {why}; {}", fix.unwrap_or_default()),
            }
        };
        assert_eq!(words(Accel::Tcg, Device::Opens, None), "tcg: sandbox.vm.accel = tcg; ");
        assert_eq!(words(Accel::Auto, Device::Opens, None), "kvm");
        assert_eq!(
            words(Accel::Auto, Device::Opens, Some("a guest hangs in it")),
            "tcg: '/dev/kvm' opens, but a guest hangs in it; "
        );
        assert_eq!(
            words(Accel::Auto, Device::Closed(Some("kvm".into())), None),
            "tcg: this user may not open '/dev/kvm'; its group 'kvm' may; \
             sudo usermod -aG kvm \"$USER\"   # then log in again"
        );
        assert!(words(Accel::Auto, Device::Closed(None), None).contains("sudo chgrp kvm /dev/kvm"));
        assert!(words(Accel::Auto, Device::Absent, None).starts_with("tcg: there is no '/dev/kvm'; sudo modprobe kvm"));
        assert_eq!(words(Accel::Auto, Device::Broken("no".into()), None), "tcg: '/dev/kvm' cannot be opened: no; ");
    }

    #[test]
    fn a_device_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvm");
        assert_eq!(device(&path), Device::Absent);
        fs::write(&path, "").unwrap();
        assert_eq!(device(&path), Device::Opens);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o0)).unwrap();
        if !rustix::process::geteuid().is_root() {
            assert_eq!(device(&path), Device::Closed(None));
        }
        assert!(matches!(device(dir.path()), Device::Broken(_)));
    }

    /// A program in QEMU's place that says `script`'s output.
    fn tried(script: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let qemu = dir.path().join("qemu");
        fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&qemu, PermissionsExt::from_mode(0o755)).unwrap();
        let limits = (Duration::from_secs(2), Duration::from_secs(20));
        probe(&qemu, Path::new("/k"), dir.path(), &["kvm", "host"], limits).unwrap().why
    }

    #[test]
    fn a_guest_that_hangs_or_ends_is_none() {
        assert_eq!(tried(&format!("echo '{WORD}'; exec /bin/sleep 100")), None);
        assert_eq!(
            tried("echo 'Probing EDD... ok'; exec /bin/sleep 100").as_deref(),
            Some("a guest hangs in it after 'Probing EDD... ok'")
        );
        assert_eq!(tried("exec /bin/sleep 100").as_deref(), Some("a guest hangs in it"));
        assert_eq!(
            tried("echo 'error: failed to set MSR 0x38d to 0x0' >&2; exit 1").as_deref(),
            Some("QEMU ends (exit status: 1): error: failed to set MSR 0x38d to 0x0")
        );
        // QEMU's own complaints are no life of the guest.
        let start = Instant::now();
        let noisy = "n=0; while [ $n -lt 100 ]; do echo x >&2; /bin/sleep 0.2; n=$((n+1)); done";
        assert_eq!(tried(noisy).as_deref(), Some("a guest hangs in it"));
        assert!(start.elapsed() < Duration::from_secs(18), "it was not left to its own end");
    }

    #[test]
    fn what_a_guest_says_is_printable_and_bounded() {
        assert_eq!(last_line(b"a\n\x1b[31mred\x07\n\n"), "[31mred");
        assert_eq!(last_line(&[b'x'; 1000]).len(), 200);
    }

    #[test]
    fn the_program_is_whole() {
        let elf = program();
        assert_eq!(elf.len(), 197);
        assert!(elf.ends_with(b"user mode\n"));
    }
}
