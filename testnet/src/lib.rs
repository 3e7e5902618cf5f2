//! Many peers on one machine.
