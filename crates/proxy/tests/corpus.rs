//! The fuzz targets without a fuzzer: the seeds, and some thousand changed ones from a fixed start, so
//! that each run is the same run.

#[path = "../../../fuzz/entries.rs"]
mod entries;

use std::path::Path;

/// xorshift64*: enough to change bytes with, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 20, "{} seeds of {target}", paths.len());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// What parsers trip over, to be put anywhere.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b".",
    b"..",
    b"@",
    b"[",
    b"]",
    b"%",
    b"0x",
    b"xn--",
    b"*.",
    b"=",
    b"/",
    b",",
    b"Host: a.test\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.0",
    b"\xc3\xbc",
];

fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.next(seeds.len())].clone();
    for _ in 0..=random.next(3) {
        let at = random.next(bytes.len() + 1);
        match random.next(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, PIECES[random.next(PIECES.len())].iter().copied())),
            2 if at < bytes.len() => bytes[at] = random.next(256) as u8,
            3 if at < bytes.len() => bytes[at] ^= 1 << random.next(8),
            4 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let other = &seeds[random.next(seeds.len())];
                let from = random.next(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

fn run(target: &str, entry: fn(&[u8])) {
    let seeds = seeds(target);
    let mut random = Random(0x5eed_0000_0000_0001);
    for bytes in &seeds {
        entry(bytes);
    }
    for _ in 0..20_000 {
        let bytes = changed(&seeds, &mut random);
        if let Err(panic) = std::panic::catch_unwind(|| entry(&bytes)) {
            eprintln!("{target}: {:?}", bytes.escape_ascii().to_string());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn canonical_host() {
    run("canonical_host", entries::canonical_host);
}

#[test]
fn rule() {
    run("rule", entries::rule);
}

#[test]
fn connect_head() {
    run("connect_head", entries::connect_head);
}
