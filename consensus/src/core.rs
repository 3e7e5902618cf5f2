//! Groups without IO: the Raft replica, and the state machine that its entries drive.
//!
//! Nothing in here opens a file, a socket or a thread, reads a clock or draws a random number. Inputs carry the
//! time; state is read through [`kv::Kv`] and changed through a [`kv::WriteBatch`]; what has to be sent, persisted
//! or answered is an output.

pub mod group;
pub mod keys;
pub mod kv;
pub mod log;
pub mod machine;
pub mod outgoing;
pub mod retention;
pub mod rows;
pub mod sealing;
pub mod txn;

#[cfg(test)]
mod sim;
