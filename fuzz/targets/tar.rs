//! libFuzzer's entry to [`ampoule_fuzz::tar`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ampoule_fuzz::tar::run(data));
