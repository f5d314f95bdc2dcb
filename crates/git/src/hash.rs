//! Object ids of content that is not (yet) in any repository.

use crate::oid::{ObjectFormat, Oid};
use sha1::Digest;
use std::io::{self, Read};

/// Returns the id that git would give an object of this kind and content.
pub fn hash_object(format: ObjectFormat, kind: &str, content: &[u8]) -> Oid {
    let mut content = content;
    let size = content.len() as u64;
    // Reading from memory cannot fail, and the size is that of what is read.
    hash(format, kind, &mut content, size).unwrap_or_else(|_| Oid::null(format))
}

/// Returns the id of a blob with the content of a file of `size` bytes, read in pieces.
/// Content of another length is an error: the file is being written.
pub fn hash_file(format: ObjectFormat, file: &mut impl Read, size: u64) -> io::Result<Oid> {
    hash(format, "blob", file, size)
}

fn hash(format: ObjectFormat, kind: &str, content: &mut impl Read, size: u64) -> io::Result<Oid> {
    let header = format!("{kind} {size}\0");
    match format {
        ObjectFormat::Sha1 => digest::<sha1::Sha1>(header.as_bytes(), content, size),
        ObjectFormat::Sha256 => digest::<sha2::Sha256>(header.as_bytes(), content, size),
    }
}

fn digest<D: Digest>(header: &[u8], content: &mut impl Read, size: u64) -> io::Result<Oid> {
    let mut digest = D::new();
    digest.update(header);
    let mut buffer = vec![0u8; 64 * 1024];
    let mut read = 0;
    loop {
        match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                read += n as u64;
                digest.update(&buffer[..n]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if read != size {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file changed while it was read"));
    }
    Oid::from_raw(&digest.finalize()).ok_or_else(|| io::Error::other("digest of an unknown length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_git() {
        // `git hash-object` of an empty blob, in both formats, and of "hello\n".
        let empty = hash_object(ObjectFormat::Sha1, "blob", b"");
        assert_eq!(empty.to_string(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        let empty = hash_object(ObjectFormat::Sha256, "blob", b"");
        assert_eq!(empty.to_string(), "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813");
        let hello = hash_file(ObjectFormat::Sha1, &mut &b"hello\n"[..], 6).unwrap();
        assert_eq!(hello.to_string(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert!(hash_file(ObjectFormat::Sha1, &mut &b"hello\n"[..], 5).is_err());
    }
}
