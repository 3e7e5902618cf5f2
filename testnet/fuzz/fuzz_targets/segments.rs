//! See `canal_testnet::decoders::segments`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    canal_testnet::decoders::segments(data);
});
