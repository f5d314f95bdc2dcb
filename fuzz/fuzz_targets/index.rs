#![no_main]

#[path = "../entries/index.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::index(bytes));
