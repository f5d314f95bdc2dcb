#![no_main]

#[path = "../entries/ref_name.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::ref_name(bytes));
