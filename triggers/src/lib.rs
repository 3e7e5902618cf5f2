//! Functions that fire on events.

pub mod core;
pub mod runtime;
