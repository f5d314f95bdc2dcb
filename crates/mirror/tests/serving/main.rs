//! Real git against the service: what it serves, to whom, and what it leaves behind.

mod cache;
mod fetch;
mod http;
mod listeners;
mod push;
mod world;
