//! Points by name at which a test makes this program die or fail. Only builds with debug assertions have them;
//! in a release build a point is nothing, and its name is not in the program.
//!
//! ```text
//! GIT_SANDBOX_FAULT = NAME[:N]:kill|enospc|eio      at the Nth time (1) that NAME is reached
//!                     log:FILE                      NAME is appended to FILE each time
//! ```
//!
//! Names are `operation.step`; the acceptance run finds them in the source, so that a new one is run too.

/// Reads what a test asks for. The program calls it once, first of all.
#[cfg(debug_assertions)]
pub fn arm(asked: Option<&std::ffi::OsStr>) {
    if let Some(fault) = asked.and_then(|asked| armed::parse(asked.to_str()?)) {
        let _ = armed::FAULT.set(fault);
    }
}

/// Reads nothing: this build has no points.
#[cfg(not(debug_assertions))]
pub fn arm(_asked: Option<&std::ffi::OsStr>) {}

/// A step that may be made to fail, or not to end at all.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) -> std::io::Result<()> {
    match armed::FAULT.get() {
        None => Ok(()),
        Some(fault) => fault.at(name),
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
mod armed {
    use std::io::{self, Write};
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    pub static FAULT: OnceLock<Fault> = OnceLock::new();

    pub enum Fault {
        Log(PathBuf),
        At { name: String, left: AtomicU32, how: How },
    }

    #[derive(Clone, Copy)]
    pub enum How {
        Kill,
        Error(i32),
    }

    pub fn parse(text: &str) -> Option<Fault> {
        if let Some(file) = text.strip_prefix("log:") {
            return Some(Fault::Log(file.into()));
        }
        let (name, how) = text.rsplit_once(':')?;
        let how = match how {
            "kill" => How::Kill,
            "enospc" => How::Error(libc::ENOSPC),
            "eio" => How::Error(libc::EIO),
            _ => return None,
        };
        let (name, times) = match name.rsplit_once(':') {
            Some((name, times)) => (name, times.parse().ok()?),
            None => (name, 1),
        };
        Some(Fault::At { name: name.to_owned(), left: AtomicU32::new(times), how })
    }

    impl Fault {
        pub fn at(&self, reached: &str) -> io::Result<()> {
            match self {
                Self::Log(file) => {
                    let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
                    file.and_then(|mut file| file.write_all(format!("{reached}\n").as_bytes()))
                }
                Self::At { name, left, how } if name == reached && left.fetch_sub(1, Ordering::SeqCst) == 1 => {
                    match how {
                        How::Kill => {
                            let _ =
                                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                            unreachable!("nobody survives that signal")
                        }
                        How::Error(code) => Err(io::Error::from_raw_os_error(*code)),
                    }
                }
                Self::At { .. } => Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::armed::parse;

    #[test]
    fn a_fault_comes_once_at_its_time() {
        let fault = parse("drop.away:2:enospc").unwrap();
        assert!(fault.at("drop.away").is_ok());
        assert!(fault.at("drop.other").is_ok());
        assert_eq!(fault.at("drop.away").unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        assert!(fault.at("drop.away").is_ok());
        assert!(["", "x", "x:never", "x:y:kill"].iter().all(|text| parse(text).is_none()));
    }
}
