//! libFuzzer's entry to [`ampoule_fuzz::journal`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ampoule_fuzz::journal::run(data));
