//! Functions that fire on events.

pub mod runtime;
pub mod core;
