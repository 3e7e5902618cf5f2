//! See `canal_testnet::decoders::components`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    canal_testnet::decoders::components(data);
});
