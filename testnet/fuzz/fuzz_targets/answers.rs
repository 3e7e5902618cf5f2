//! See `canal_testnet::decoders::answers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    canal_testnet::decoders::answers(data);
});
