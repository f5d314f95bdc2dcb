#![no_main]

// The reader of the file is part of the program, which is no library: its text alone is here.
#[path = "../entries/project.rs"]
mod entry;
#[path = "../../src/layers.rs"]
#[allow(dead_code, reason = "the program uses the rest")]
mod layers;
#[path = "../../src/project/parse.rs"]
mod parse;
#[path = "../../src/text.rs"]
#[allow(dead_code, unused_imports, reason = "the program uses the rest")]
mod text;

use parse::Project;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::project(bytes));
