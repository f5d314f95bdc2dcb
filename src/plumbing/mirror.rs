//! `__mirror FILE`: leads a sandbox to its mirror, and to nothing else. Standard input is the listening socket that the
//! sandbox sees on its loopback; the file says where the mirror is, and as whom it is asked.
//!
//! What speaks to it is not trusted, and it can reach the network: it is walled in as the proxy is.

use super::{argument, proxy};
use crate::error::CliError;
use sandbox_core::store::read_json;
use sandbox_mirror::client::Endpoint;
use sandbox_mirror::client::endpoint::BadEndpoint;
use sandbox_mirror::client::front::{Front, Otherwise};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::future::pending;
use std::path::Path;

/// Bytes that one life of a sandbox may move to and from the mirror.
const MOST: u64 = 64 << 30;

/// Where a sandbox's way to the mirror leads: `mirror.json`, which only its owner can read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leads {
    /// `http://HOST:PORT` or `unix:/PATH`.
    pub to: String,
    /// The token of its session, unless the address says who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<String>,
    /// While the mirror is down, fetches are led to the upstream: it may be reached.
    #[serde(default)]
    pub upstream: bool,
}

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let file = Path::new(argument(args, 0, "the file")?).to_owned();
    let leads: Leads = read_json(&file)?.ok_or_else(|| CliError::new("nothing says where the mirror is"))?;
    let to: Endpoint = leads.to.parse().map_err(|error| CliError::chain(&error as &BadEndpoint))?;
    proxy::harden().map_err(CliError::io("put a wall around the way to the mirror"))?;
    let (listener, _) = proxy::take_over().map_err(CliError::io("take over the socket"))?;
    let otherwise = if leads.upstream { Otherwise::Upstream } else { Otherwise::Nothing };
    let front = Front { to, bearer: leads.bearer, secret: None, otherwise, most: MOST };
    front.serve(listener, pending()).map_err(CliError::io("lead to the mirror"))
}
