//! Entries of the log, and the records beside it.

use bytes::Bytes;
use canal_consensus::core::group::{Group, Install, Origin};
use canal_consensus::core::kv::{MemoryKv, WriteBatch};
use canal_consensus::core::log::Compacted;
use canal_consensus::core::machine::{self, Place};
use canal_consensus::core::rows;
use canal_consensus::core::txn::Txn;
use canal_consensus::state_store::MAX_KEY;
use canal_proto::cursor::Cursor;
use canal_proto::log::Command;
use canal_proto::peer::Seed;
use canal_proto::{GroupId, MeshId};
use raft::eraftpb::HardState;

use super::bytes::Parts;
use super::history::TICKS;
use super::replica::Log;
use super::wire::message;

/// Entries of one input: enough for one to build on another.
const MAX_COMMANDS: usize = 64;

/// Entries of a catalog's group, one after the other (each with its length before it, in two bytes): two replicas come to
/// the same rows and the same answers, and every row's key has its place in a store.
pub fn commands(data: &[u8]) -> bool {
    let mesh = MeshId([7; 16]);
    let group = GroupId::of_catalog(mesh, "default");
    let replicas = [MemoryKv::default(), MemoryKv::default()];
    let mut parts = Parts(data);
    let mut taken = false;
    for index in 1..=MAX_COMMANDS as u64 {
        let Some(part) = parts.part() else { break };
        let Some(command) = message::<Command>(part) else { return false };
        let place = Place { mesh, group, namespace: "default", index, term: 1 };
        let apply = |kv: &MemoryKv| {
            let mut batch = WriteBatch::default();
            let applied = machine::apply(&mut Txn::new(group, kv, &mut batch), place, &command);
            (applied, batch)
        };
        let [(first, batch), (second, other)] = [apply(&replicas[0]), apply(&replicas[1])];
        assert!(first == second && batch == other, "two replicas differ in entry {index}");
        assert!(batch.ops.keys().all(|key| (9..=MAX_KEY).contains(&key.len())), "a key that no store takes");
        // rows are damaged only when something other than this wrote them; what a later version wrote can't be applied
        assert!(first.is_ok() || command.kind.is_none(), "entry {index} stops its group: {first:?}");
        if first.is_err() {
            return taken;
        }
        taken = true;
        for kv in &replicas {
            kv.write(&batch);
        }
    }
    taken
}

/// What stands beside a log: the record of a snapshot that is being installed, where the log begins, how a replica came to
/// life, and the rows of a state. The first byte says which; a replica is begun with what can be.
pub fn records(data: &[u8]) -> bool {
    let mut parts = Parts(data);
    let kind = parts.byte();
    let bytes = parts.0;
    match kind % 10 {
        0 => match Install::from_record(Bytes::copy_from_slice(bytes)) {
            Ok(install) => {
                assert!(Install::from_record(install.record()).is_ok_and(|again| again == install));
                // there are no rows of it
                assert!(install.finish(&super::history::seed(), &MemoryKv::default()).is_err() || install.index == 0);
                true
            }
            Err(error) => {
                assert!(error.0.contains("damaged"));
                false
            }
        },
        1 => message::<Compacted>(bytes)
            .is_some_and(|compacted| begin(super::history::seed(), compacted.index, Some(compacted))),
        2 => message::<Seed>(bytes).is_some_and(|seed| begin(seed, 0, None)),
        3 => message::<rows::Configuration>(bytes).is_some(),
        4 => message::<rows::Topic>(bytes).is_some(),
        5 => message::<rows::Producer>(bytes).is_some(),
        6 => message::<rows::OutboxRow>(bytes).is_some(),
        7 => message::<rows::Locator>(bytes).is_some(),
        8 => message::<Cursor>(bytes).is_some(),
        _ => message::<rows::Applied>(bytes).is_some(),
    }
}

fn begin(seed: Seed, last: u64, compacted: Option<Compacted>) -> bool {
    let origin =
        Origin { seed, reader: Log::default(), hard_state: HardState::default(), last, log_bytes: 0, compacted };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    Group::open(origin, TICKS, &MemoryKv::default(), &logger).is_ok()
}
