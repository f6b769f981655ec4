//! One target of the fuzzer.
#![no_main]

#[path = "../bodies/nbd.rs"]
#[allow(dead_code, reason = "each target has one of them")]
mod nbd;

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd::replies(data));
