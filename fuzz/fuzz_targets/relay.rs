#![no_main]

#[path = "../entries/relay.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::relay(bytes));
