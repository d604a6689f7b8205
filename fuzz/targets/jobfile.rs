//! libFuzzer's entry to [`ampoule_fuzz::jobfile`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ampoule_fuzz::jobfile::run(data));
