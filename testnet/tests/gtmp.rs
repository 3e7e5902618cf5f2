//! Temporary.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#[path = "mesh/common.rs"]
mod common;
#[path = "mesh/durable.rs"]
mod durable;
