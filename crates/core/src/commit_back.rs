//! Temporary while landing is being written.
use crate::connection::Connection;
use crate::sandbox::Sandbox;
use crate::store::Store;
use sandbox_git::Git;
/// x
#[derive(Debug, Default)]
pub struct Brought { /// x
 pub lines: Vec<String>, /// x
 pub refused: Vec<(String,String)> }
/// x
#[derive(Debug, thiserror::Error)]
pub enum CommitBackError { /// x
 #[error("x")] X }
/// x
pub fn commit_back(_c: &mut Connection, _g: &Git, _s: &Store, _b: &Sandbox) -> Result<Brought, CommitBackError> { Ok(Brought::default()) }
/// x
pub fn refused(_s: &Sandbox) -> Option<Vec<String>> { None }
/// x
pub fn remove_refs(_g: &Git, _s: &Store, _b: &Sandbox) -> Result<(), CommitBackError> { Ok(()) }
