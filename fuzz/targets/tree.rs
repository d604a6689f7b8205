//! libFuzzer's entry to [`ampoule_fuzz::tree`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ampoule_fuzz::tree::run(data));
