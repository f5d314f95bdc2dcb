//! Extended attributes: which are carried, and what is left of an access control list.
//!
//! | attribute | in the layer |
//! |---|---|
//! | `user.*` | as it is, except the overlay's own `user.overlay.*` |
//! | `system.posix_acl_access`, `system.posix_acl_default` | the entries of owner, group, mask, others, and of the one user and group that exist inside |
//! | `security.capability` | left out |
//! | other names (`security.selinux`, `trusted.*`) | belong to the machine, not to the tree |
//!
//! An entry for somebody who does not exist inside would be dropped by the kernel at the first write,
//! so it is dropped here, where it can be counted. The mask stays: it is what the mode shows as the
//! group's bits, and with it the group keeps the rights that it had.

use rustix::fs::XattrFlags;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Names and values, sorted by name.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a layer holds of an entry's extended attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Name and value, sorted by name.
    carried: Vec<(CString, Vec<u8>)>,
    /// Something was left out that changes who may do what.
    pub(super) lessened: bool,
}

impl Attributes {
    /// Reads those of an open file or directory; `ids` are the user and group that exist inside.
    ///
    /// What cannot be read is not carried: an attribute is no reason to fail.
    pub(super) fn of(file: BorrowedFd<'_>, ids: (u32, u32)) -> Self {
        let mut all = Self::default();
        for name in names(file) {
            match name.to_bytes() {
                ACCESS | DEFAULT => {
                    let Some(value) = value(file, &name) else { continue };
                    let (kept, lessened) = kept_entries(&value, ids);
                    all.lessened |= lessened;
                    // Three entries say what the mode says: the kernel would not store them.
                    if kept.len() > HEADER + 3 * ENTRY || name.to_bytes() == DEFAULT && !kept.is_empty() {
                        all.carried.push((name, kept));
                    }
                }
                b"security.capability" => all.lessened = true,
                other if other.starts_with(b"user.") && !other.starts_with(b"user.overlay.") => {
                    if let Some(value) = value(file, &name) {
                        all.carried.push((name, value));
                    }
                }
                _ => {}
            }
        }
        all.carried.sort();
        all
    }

    /// Returns whether two entries have the same ones in a layer.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.carried == other.carried
    }

    /// Returns whether there is nothing to set.
    pub(super) fn is_empty(&self) -> bool {
        self.carried.is_empty()
    }

    /// Returns names and values.
    pub(super) fn into_pairs(self) -> Pairs {
        self.carried.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect()
    }

    /// Sets them; false when the layer's file system has no room for one, or no such attributes.
    ///
    /// To be called after the mode was set: an access control list has the mode's bits in it.
    pub(super) fn set(&self, file: BorrowedFd<'_>) -> bool {
        let mut all = true;
        for (name, value) in &self.carried {
            // Each one, whatever became of the one before.
            all &= rustix::fs::fsetxattr(file, name.as_c_str(), value, XattrFlags::empty()).is_ok();
        }
        all
    }
}

fn names(file: BorrowedFd<'_>) -> Vec<CString> {
    // Nearly every file has none: one call says so.
    if rustix::fs::flistxattr_query(file).unwrap_or(0) == 0 {
        return Vec::new();
    }
    let mut buffer = vec![0u8; 64 * 1024];
    let Ok(len) = rustix::fs::flistxattr(file, &mut buffer[..]) else { return Vec::new() };
    let names = buffer[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
    names.filter_map(|name| CString::new(name).ok()).collect()
}

fn value(file: BorrowedFd<'_>, name: &CStr) -> Option<Vec<u8>> {
    let mut value = vec![0u8; 64 * 1024];
    let len = rustix::fs::fgetxattr(file, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

// The format: linux/posix_acl_xattr.h, little endian. A version, then a tag, rights and an id each.
const HEADER: usize = 4;
const ENTRY: usize = 8;
const VERSION: u32 = 2;
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

/// Returns a list without the entries of others, and whether there were any. A list in a format
/// that is not known is left out whole.
fn kept_entries(list: &[u8], (uid, gid): (u32, u32)) -> (Vec<u8>, bool) {
    let Some((header, entries)) = list.split_first_chunk::<HEADER>() else { return (Vec::new(), false) };
    if u32::from_le_bytes(*header) != VERSION {
        return (Vec::new(), true);
    }
    let mut kept = header.to_vec();
    let mut lessened = false;
    for entry in entries.chunks_exact(ENTRY) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        match tag {
            USER if id != uid => lessened = true,
            GROUP if id != gid => lessened = true,
            _ => kept.extend_from_slice(entry),
        }
    }
    (kept, lessened)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut list = VERSION.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            list.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
        }
        list
    }

    #[test]
    fn entries_of_others_are_left_out() {
        let none = u32::MAX;
        let whole = list(&[
            (1, 6, none),
            (USER, 6, 7),
            (USER, 4, 8),
            (4, 4, none),
            (GROUP, 6, 9),
            (16, 6, none),
            (32, 0, none),
        ]);
        let ours = list(&[(1, 6, none), (USER, 6, 7), (4, 4, none), (16, 6, none), (32, 0, none)]);
        assert_eq!(kept_entries(&whole, (7, 7)), (ours.clone(), true));
        assert_eq!(kept_entries(&ours, (7, 7)), (ours, false));
        assert_eq!(kept_entries(b"\x03\0\0\0", (7, 7)), (Vec::new(), true), "another version");
        assert_eq!(kept_entries(b"", (7, 7)), (Vec::new(), false));
    }
}
