//! t
use sandbox_git::RefName;
/// t
pub fn unmap(_r: &[u8]) -> Option<RefName> { None }
