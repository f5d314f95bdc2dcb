//! Seccomp filters: a small assembler and the load. Knows no policy: what is refused is its caller's.
//!
//! A filter is a *policy as a table* (numbers of one architecture, tests of arguments, answers),
//! compiled into classic BPF:
//!
//! ```text
//!   arch ≠ ours        → kill the process      (int 0x80 reaches the i386 table from 64-bit code)
//!   nr ≥ 0x4000_0000   → ENOSYS                (x86-64 only: x32)
//!   nr > ceiling       → ENOSYS                (a call newer than the review)
//!   nr in the table    → its rules in order, the first whose tests all hold answers
//!   otherwise          → allow
//! ```
//!
//! Arguments are compared by their low 32 bits: the kernel truncates `ioctl` requests, socket
//! families and `clone` flags to 32 bits, so a comparison of 64 can be walked around.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// The architecture that this build's filters are for.
#[cfg(target_arch = "x86_64")]
pub const NATIVE_ARCH: u32 = 0xC000_003E;
/// The architecture that this build's filters are for.
#[cfg(target_arch = "aarch64")]
pub const NATIVE_ARCH: u32 = 0xC000_00B7;

/// `AUDIT_ARCH_X86_64`.
pub const ARCH_X86_64: u32 = 0xC000_003E;
/// `AUDIT_ARCH_AARCH64`.
pub const ARCH_AARCH64: u32 = 0xC000_00B7;

/// Numbers from here on are the x32 calls of an x86-64 kernel.
pub const X32_BIT: u32 = 0x4000_0000;

/// What a filter answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The call goes on.
    Allow,
    /// The call fails with this errno.
    Errno(u16),
    /// The process that holds the listener decides.
    Notify,
    /// The whole process ends with SIGSYS.
    Kill,
}

impl Answer {
    /// Returns the value that the kernel knows it by.
    pub fn raw(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Self::Notify => libc::SECCOMP_RET_USER_NOTIF,
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// A test of one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Which argument, 0–5.
    pub arg: u8,
    /// Applied to its low 32 bits first.
    pub mask: u32,
    /// What the masked value is compared with.
    pub values: Vec<u32>,
    /// The test holds when the value is among them (`true`) or not among them (`false`).
    pub among: bool,
}

impl Test {
    /// Returns whether the test holds for a call's arguments: the model that the compiled code must match.
    pub fn holds(&self, args: &[u64; 6]) -> bool {
        let value = args[usize::from(self.arg)] as u32 & self.mask;
        self.values.contains(&value) == self.among
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Number of the call in the policy's architecture.
    pub nr: u32,
    /// All must hold; none means always.
    pub tests: Vec<Test>,
    /// What is answered then.
    pub answer: Answer,
}

/// A whole filter as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The one architecture that is let in (`ARCH_*`).
    pub arch: u32,
    /// The highest number that was reviewed; what is above does not exist.
    pub ceiling: u32,
    /// In order; for one number the first that applies answers, and a number of which none applies is allowed.
    pub rules: Vec<Rule>,
    /// What is answered to numbers without a rule: `Allow` makes the table a deny list.
    pub otherwise: Answer,
}

impl Policy {
    /// Returns what the policy says of a call: the model against which its program is replayed.
    pub fn decide(&self, arch: u32, nr: u32, args: &[u64; 6]) -> Answer {
        if arch != self.arch {
            return Answer::Kill;
        }
        if nr > self.ceiling {
            return Answer::Errno(libc::ENOSYS as u16);
        }
        let of_number = || self.rules.iter().filter(|rule| rule.nr == nr);
        let applies = |rule: &&Rule| rule.tests.iter().all(|test| test.holds(args));
        match of_number().find(applies) {
            Some(rule) => rule.answer,
            None if of_number().next().is_some() => Answer::Allow,
            None => self.otherwise,
        }
    }

    /// Returns the program; an error when a block of rules is too long for BPF's short jumps.
    pub fn compile(&self) -> io::Result<Program> {
        let mut code = vec![
            fetch(ARCH_OFFSET),
            jump(JEQ, self.arch, 1, 0),
            answer(Answer::Kill),
            fetch(NR_OFFSET),
            jump(JGE, X32_BIT, 1, 0),
            jump(JGT, self.ceiling, 0, 1),
            answer(Answer::Errno(libc::ENOSYS as u16)),
        ];
        // Calls that are answered whatever their arguments are: chains of comparisons that share a return.
        let mut plain: Vec<(Answer, Vec<u32>)> = Vec::new();
        let mut tested: Vec<(u32, Vec<&Rule>)> = Vec::new();
        for rule in &self.rules {
            let seen_plain = plain.iter().any(|(_, numbers)| numbers.contains(&rule.nr));
            let seen_tested = tested.iter_mut().find(|(nr, _)| *nr == rule.nr);
            match (seen_plain, seen_tested) {
                (true, _) => {}
                (false, Some((_, rules))) => rules.push(rule),
                (false, None) if !rule.tests.is_empty() => tested.push((rule.nr, vec![rule])),
                (false, None) => match plain.iter_mut().find(|(answer, _)| *answer == rule.answer) {
                    Some((_, numbers)) => numbers.push(rule.nr),
                    None => plain.push((rule.answer, vec![rule.nr])),
                },
            }
        }
        for (verdict, numbers) in &plain {
            for chunk in numbers.chunks(200) {
                for (index, nr) in chunk.iter().enumerate() {
                    // Over the rest of the chain and the jump that skips the return.
                    code.push(jump(JEQ, *nr, (chunk.len() - index) as u8, 0));
                }
                code.push(skip(1));
                code.push(answer(*verdict));
            }
        }
        for (nr, rules) in &tested {
            let mut block = Vec::new();
            for rule in rules {
                rule_block(rule, &mut block)?;
            }
            block.push(answer(Answer::Allow));
            code.push(jump(JEQ, *nr, 0, short(block.len())?));
            code.extend(block);
        }
        code.push(answer(self.otherwise));
        Program::from_code(code)
    }
}

/// One rule of a number that is already matched: falls through when a test fails.
fn rule_block(rule: &Rule, block: &mut Vec<Insn>) -> io::Result<()> {
    // Built backwards: each failing test jumps over everything that comes after it.
    let mut tail = vec![answer(rule.answer)];
    for test in rule.tests.iter().rev() {
        let mut head = vec![fetch(ARGS_OFFSET + 8 * u32::from(test.arg) + LOW_HALF)];
        if test.mask != u32::MAX {
            head.push(Insn { code: AND, jt: 0, jf: 0, k: test.mask });
        }
        let count = test.values.len();
        for (index, value) in test.values.iter().enumerate() {
            let left = count - index - 1;
            if test.among {
                // A match goes on behind the chain; the last comparison fails past the tail.
                let miss = if left == 0 { short(tail.len())? } else { 0 };
                head.push(jump(JEQ, *value, short(left)?, miss));
            } else {
                head.push(jump(JEQ, *value, short(left + tail.len())?, 0));
            }
        }
        if count == 0 && test.among {
            head.push(skip(u32::from(short(tail.len())?)));
        }
        head.extend(tail);
        tail = head;
    }
    block.extend(tail);
    Ok(())
}

/// One BPF instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

const LD: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

// Offsets in `struct seccomp_data`.
const NR_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGS_OFFSET: u32 = 16;
const LOW_HALF: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };

fn fetch(offset: u32) -> Insn {
    Insn { code: LD, jt: 0, jf: 0, k: offset }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code, jt, jf, k }
}

fn skip(count: u32) -> Insn {
    Insn { code: JA, jt: 0, jf: 0, k: count }
}

fn answer(answer: Answer) -> Insn {
    Insn { code: RET, jt: 0, jf: 0, k: answer.raw() }
}

fn short(distance: usize) -> io::Result<u8> {
    u8::try_from(distance).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a filter rule is too long"))
}

/// A compiled filter: plain data, 8 bytes an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    code: Vec<Insn>,
}

impl Program {
    fn from_code(code: Vec<Insn>) -> io::Result<Self> {
        // BPF_MAXINSNS: the kernel takes no more.
        if code.is_empty() || code.len() > 4096 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a filter must have 1 to 4096 instructions"));
        }
        Ok(Self { code })
    }

    /// Reads a program back from its bytes.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        if !bytes.len().is_multiple_of(8) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a filter is cut off"));
        }
        let code = bytes
            .chunks_exact(8)
            .map(|b| Insn {
                code: u16::from_ne_bytes([b[0], b[1]]),
                jt: b[2],
                jf: b[3],
                k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            })
            .collect();
        Self::from_code(code)
    }

    /// Returns the program as `struct sock_filter` bytes in native order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.code.len() * 8);
        for insn in &self.code {
            bytes.extend(insn.code.to_ne_bytes());
            bytes.extend([insn.jt, insn.jf]);
            bytes.extend(insn.k.to_ne_bytes());
        }
        bytes
    }

    /// Returns the number of instructions.
    pub fn len(&self) -> usize {
        self.code.len()
    }

    /// Returns false: a program has at least one instruction.
    pub fn is_empty(&self) -> bool {
        self.code.is_empty()
    }

    /// Runs the program on a call, as the kernel would; `None` when it is not valid. For tests.
    pub fn run(&self, arch: u32, nr: u32, args: &[u64; 6]) -> Option<u32> {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&nr.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (index, arg) in args.iter().enumerate() {
            data[16 + 8 * index..24 + 8 * index].copy_from_slice(&arg.to_ne_bytes());
        }
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let insn = self.code.get(at)?;
            at += 1;
            let mut branch = |taken: bool| at += usize::from(if taken { insn.jt } else { insn.jf });
            match insn.code {
                LD => {
                    let offset = insn.k as usize;
                    a = u32::from_ne_bytes(data.get(offset..offset + 4)?.try_into().ok()?);
                }
                AND => a &= insn.k,
                JA => at += insn.k as usize,
                JEQ => branch(a == insn.k),
                JGT => branch(a > insn.k),
                JGE => branch(a >= insn.k),
                RET => return Some(insn.k),
                _ => return None,
            }
        }
    }
}

fn install(program: &Program, flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let fprog = libc::sock_fprog {
        len: program.code.len() as u16,
        filter: program.code.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `fprog` names `len` instructions that live over the call; `Insn` has the layout of
    // `struct sock_filter`, and the kernel checks the program before it takes it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Puts a filter on the calling thread and all that it starts, for ever.
/// Needs `no_new_privs` (or CAP_SYS_ADMIN in the user namespace).
pub fn load(program: &Program) -> io::Result<()> {
    install(program, 0).map(drop)
}

/// Like [`load`], and returns the descriptor on which [`Answer::Notify`] calls are received.
/// A notified call can then only be interrupted by a deadly signal (from Linux 5.19).
pub fn load_with_listener(program: &Program) -> io::Result<OwnedFd> {
    // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: without it any signal restarts the call, and the
    // work for it is done twice.
    const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let raw = match install(program, listener | WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install(program, listener)?,
        other => other?,
    };
    // SAFETY: with NEW_LISTENER the result is a new descriptor that nobody else has; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    fn rule(nr: u32, tests: Vec<Test>, answer: Answer) -> Rule {
        Rule { nr, tests, answer }
    }

    fn test(arg: u8, mask: u32, values: &[u32], among: bool) -> Test {
        Test { arg, mask, values: values.to_vec(), among }
    }

    fn sample() -> Policy {
        let eperm = Answer::Errno(1);
        let mut rules: Vec<Rule> = (300..320).map(|nr| rule(nr, vec![], eperm)).collect();
        rules.push(rule(5, vec![], Answer::Notify));
        rules.push(rule(16, vec![test(1, u32::MAX, &[7, 8, 9], true)], eperm));
        rules.push(rule(41, vec![test(0, u32::MAX, &[1, 2], false)], Answer::Errno(97)));
        rules.push(rule(
            41,
            vec![test(0, u32::MAX, &[2, 10], true), test(1, 0xf, &[3], true), test(2, u32::MAX, &[0], false)],
            eperm,
        ));
        rules.push(rule(56, vec![test(0, 0x7E02_0000, &[0], false)], eperm));
        Policy { arch: NATIVE_ARCH, ceiling: 400, rules, otherwise: Answer::Allow }
    }

    #[test]
    fn the_program_answers_as_the_policy() {
        answers_as(&sample());
        // An allow list: the same table, and refusal of what it does not name.
        let mut rules = sample().rules;
        rules.push(rule(77, vec![], Answer::Allow));
        answers_as(&Policy { rules, otherwise: Answer::Errno(libc::EPERM as u16), ..sample() });
    }

    fn answers_as(policy: &Policy) {
        let program = policy.compile().unwrap();
        let values = [0u64, 1, 2, 3, 7, 8, 9, 10, 0x13, 0x1000_0000, 0x1_0000_0007, u64::MAX];
        for nr in (0..420).chain([X32_BIT, X32_BIT + 1, u32::MAX]) {
            for a in values {
                for b in values {
                    for c in [0, 1] {
                        let args = [a, b, c, 0, 0, 0];
                        let expected = policy.decide(NATIVE_ARCH, nr, &args).raw();
                        assert_eq!(program.run(NATIVE_ARCH, nr, &args), Some(expected), "{nr} {args:x?}");
                    }
                }
            }
        }
        assert_eq!(program.run(0x4000_0003, 1, &[0; 6]), Some(Answer::Kill.raw()));
    }

    #[test]
    fn bytes_are_the_program() {
        let program = sample().compile().unwrap();
        assert_eq!(Program::from_bytes(&program.to_bytes()).unwrap(), program);
        assert!(Program::from_bytes(&program.to_bytes()[..7]).is_err());
        assert!(Program::from_bytes(&[]).is_err());
    }

    #[test]
    fn the_kernel_takes_it_and_obeys() {
        let policy = Policy {
            arch: NATIVE_ARCH,
            ceiling: 467,
            rules: vec![rule(libc::SYS_uname as u32, vec![], Answer::Errno(libc::EPERM as u16))],
            otherwise: Answer::Allow,
        };
        let program = policy.compile().unwrap();
        let mut command = Command::new("/bin/uname");
        command.arg("-n");
        // SAFETY: between fork and exec only two system calls are made.
        unsafe {
            command.pre_exec(move || {
                rustix::thread::set_no_new_privs(true)?;
                load(&program)
            })
        };
        let output = command.output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("not permitted"), "{output:?}");
    }
}
