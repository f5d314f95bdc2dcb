//! The way out of a guest: ports of the virtual serial device, found by their names.
//!
//! ```text
//!   host → guest   u32 length (little endian), GuestSpec as JSON
//!   guest → host   Word as JSON, one a line, until Ready; then the agent's own bytes, both ways
//! ```
//! A second port is for what the host asks of the first process itself ([`super::hold`]).

use super::{Failure, during};
use crate::vm::guest::{GuestSpec, Word};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// The port's name.
pub const PORT: &str = "git-sandbox.control";

/// The name of the port at which the first process itself answers.
pub const OWN_PORT: &str = "git-sandbox.machine";

/// A spec is some hundred kilobytes.
const LARGEST: u32 = 64 << 20;

/// How long the device may take to be there after its module is loaded.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens a port.
pub fn open(port: &str) -> Result<File, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(name) = find(Path::new("/sys/class/virtio-ports"), port) {
            let path = Path::new("/dev").join(name);
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => return Ok(file),
                Err(error) if Instant::now() > until => {
                    return Err(during(format!("open '{}'", path.display()))(error));
                }
                Err(_) => {}
            }
        }
        if Instant::now() > until {
            return Err(format!("there is no port '{port}'").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn find(ports: &Path, port: &str) -> Option<String> {
    fs::read_dir(ports).ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim() == port).then(|| entry.file_name().into_string().ok())?
    })
}

/// Reads what the guest is told.
pub fn read_spec(channel: &mut impl Read) -> Result<GuestSpec, Failure> {
    let mut length = [0u8; 4];
    channel.read_exact(&mut length).map_err(during("read from the host"))?;
    let length = u32::from_le_bytes(length);
    if length > LARGEST {
        return Err("the host says too much".into());
    }
    let mut text = vec![0u8; length as usize];
    channel.read_exact(&mut text).map_err(during("read from the host"))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Says one word.
pub fn say(channel: &mut impl Write, word: &Word) -> Result<(), Failure> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    let said: io::Result<()> = channel.write_all(&line);
    said.map_err(during("speak to the host"))
}
