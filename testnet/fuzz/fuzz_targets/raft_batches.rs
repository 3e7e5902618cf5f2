//! See `canal_testnet::decoders::raft_batches`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    canal_testnet::decoders::raft_batches(data);
});
