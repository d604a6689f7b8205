//! libFuzzer's entry to [`ampoule_fuzz::oci`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ampoule_fuzz::oci::run(data));
