#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, dead_code)]
#[path = "mesh/common.rs"]
mod common;
#[path = "mesh/peers.rs"]
mod peers;
