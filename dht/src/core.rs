//! Route records without IO: what makes one valid, which one replaces which, and what a peer remembers of them.
//!
//! Nothing here reads a clock, a key store or a socket; the time comes in as milliseconds since 1970-01-01 UTC.

pub mod cache;
pub mod record;
pub mod table;
