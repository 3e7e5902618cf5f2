//! Everything that reads bytes which somebody else made, as one function each: what fuzzers run, and what the tests run
//! over their corpora (`testnet/fuzz`).
//!
//! A target takes any bytes and tells whether they were taken for what they should be. It promises more than that nothing
//! panics: what was read is written and read again without a change, and keeps to the limits; what carries a checksum is
//! never taken with another content. A law that does not hold is a failed assertion.
//!
//! Nothing here touches the network. Targets that need a disk use a directory of their own.

mod bytes;
mod components;
mod directories;
mod history;
mod machine;
pub mod mutate;
mod names;
mod queues;
mod replica;
mod routes;
mod settings;
mod wire;

pub use components::components;
pub use directories::directories;
pub use history::{segments, snapshots};
pub use machine::{commands, records};
pub use names::names;
pub use queues::queues;
pub use replica::replica;
pub use routes::routes;
pub use settings::{configurations, scenarios};
pub use wire::{answers, deliveries, greetings, raft_batches, requests};

/// A decoder under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of the fuzz target, and of the directory of its corpus.
    pub name: &'static str,
    /// Runs it; true when the bytes were taken.
    pub run: fn(&[u8]) -> bool,
    /// Mutated inputs that it is given in one run of the tests: cheap ones get more.
    pub rounds: u32,
    /// Bytes on the heap that it may use at a time for an input of a frame's size or less, beside what the input takes.
    pub memory: usize,
}

const MIB: usize = 1 << 20;

/// All targets.
pub const ALL: [Target; 16] = [
    Target { name: "requests", run: requests, rounds: 2000, memory: 64 * MIB },
    Target { name: "answers", run: answers, rounds: 6000, memory: 64 * MIB },
    Target { name: "deliveries", run: deliveries, rounds: 6000, memory: 64 * MIB },
    Target { name: "greetings", run: greetings, rounds: 6000, memory: 64 * MIB },
    Target { name: "raft_batches", run: raft_batches, rounds: 6000, memory: 64 * MIB },
    Target { name: "replica", run: replica, rounds: 1500, memory: 64 * MIB },
    Target { name: "routes", run: routes, rounds: 2000, memory: MIB },
    Target { name: "commands", run: commands, rounds: 4000, memory: 64 * MIB },
    Target { name: "records", run: records, rounds: 4000, memory: 64 * MIB },
    Target { name: "segments", run: segments, rounds: 600, memory: 64 * MIB },
    Target { name: "snapshots", run: snapshots, rounds: 400, memory: 64 * MIB },
    Target { name: "components", run: components, rounds: 300, memory: 256 * MIB },
    Target { name: "scenarios", run: scenarios, rounds: 4000, memory: 16 * MIB },
    Target { name: "configurations", run: configurations, rounds: 600, memory: 16 * MIB },
    Target { name: "directories", run: directories, rounds: 400, memory: 16 * MIB },
    Target { name: "names", run: names, rounds: 8000, memory: MIB },
];

/// A target that is slow beside the others: each input is a file that is opened by a database.
pub const QUEUES: Target = Target { name: "queues", run: queues, rounds: 60, memory: 128 * MIB };
