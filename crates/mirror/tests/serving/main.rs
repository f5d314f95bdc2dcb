//! Real git against the service: what it serves, to whom, and what it leaves behind.

mod cache;
mod fetch;
mod http;
mod listeners;
mod push;
#[path = "../support/seen.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod seen;
mod world;
