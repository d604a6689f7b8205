//! libFuzzer's entry to [`ampoule_fuzz::wire`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ampoule_fuzz::wire::run(data));
