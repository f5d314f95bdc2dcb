//! Files of packs: each ends with the hash of all that is before it (gitformat-pack(5)).

use crate::oid::ObjectFormat;
use sha1::Digest;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Whether a `.pack`, `.idx` or `.rev` file is what it was when it was written, by the hash at its end. Reads all of
/// it.
pub fn is_whole(path: &Path, format: ObjectFormat) -> io::Result<bool> {
    match format {
        ObjectFormat::Sha1 => check::<sha1::Sha1>(path),
        ObjectFormat::Sha256 => check::<sha2::Sha256>(path),
    }
}

fn check<D: Digest>(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let size = <D as Digest>::output_size() as u64;
    let Some(body) = file.metadata()?.len().checked_sub(size) else { return Ok(false) };
    let mut digest = D::new();
    let mut buffer = vec![0u8; 256 * 1024];
    let mut left = body;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..most])?;
        digest.update(&buffer[..most]);
        left -= most as u64;
    }
    let mut told = Vec::new();
    file.read_to_end(&mut told)?;
    Ok(digest.finalize()[..] == told[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flipped_byte_or_a_missing_end_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pack-x.pack");
        let mut bytes = vec![7u8; 600 * 1024];
        bytes.extend(sha1::Sha1::digest(&bytes).to_vec());
        let whole = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            is_whole(&path, ObjectFormat::Sha1).unwrap()
        };
        assert!(whole(&bytes));
        for at in [0, 300 * 1024, bytes.len() - 1] {
            bytes[at] ^= 4;
            assert!(!whole(&bytes), "{at}");
            bytes[at] ^= 4;
        }
        assert!(!whole(&bytes[..bytes.len() - 1]) && !whole(&[]));
        assert!(!is_whole(&path, ObjectFormat::Sha256).unwrap());
    }
}
