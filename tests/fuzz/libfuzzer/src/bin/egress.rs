#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| casemate_fuzz::egress::run(data));
