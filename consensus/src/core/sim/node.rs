//! A peer: what the driver does around a replica, with crashes in every gap.

use bytes::Bytes;
use canal_proto::peer::{Row, Rows, Seed};
use prost::Message as _;
use raft::eraftpb::Message;

use super::disk::{MemoryLog, State, Write};
use super::oracle::Check;
use super::rng::Rng;
use super::world::{GROUP, TICKS};
use super::{Sabotage, Setup};
use crate::core::group::{Group, Input, Install, Origin, SnapshotPoint};
use crate::core::keys::{Keys, Locals, Table};
use crate::core::kv::WriteBatch;

/// A peer.
#[derive(Default)]
pub(super) struct Node {
    pub(super) seed: Option<Seed>,
    pub(super) log: MemoryLog,
    pub(super) state: State,
    pub(super) group: Option<Group<MemoryLog>>,
    pub(super) inbox: Vec<Input>,
    pub(super) restart_at: u64,
    pub(super) applied: u64,
    /// The largest id of a replica that was here and is not any more.
    pub(super) gone: u64,
    /// A snapshot that is made, until then.
    pub(super) making: Option<(u64, SnapshotPoint, Bytes)>,
    /// A snapshot whose pieces are fetched, until then.
    pub(super) fetching: Option<(u64, usize, Box<Message>)>,
    /// A snapshot that is installed: the next step, and when.
    pub(super) installing: Option<(u64, Step, Install)>,
}

/// The steps of an installation behind the record of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Remove,
    Fill,
    Finish,
}

fn prefix() -> [u8; 8] {
    GROUP.0.to_be_bytes()
}

/// The rows that all replicas have in common.
pub(super) fn common(state: &State) -> Vec<Row> {
    let locals = Locals::load(&state.kv, GROUP).unwrap();
    let rows = state.kv.snapshot();
    let rows = rows.into_iter().filter(|(key, _)| key.starts_with(&prefix()) && !locals.is_local(key));
    rows.map(|(key, value)| Row { key, value }).collect()
}

impl Node {
    /// Starts from what is on disk.
    pub(super) fn open(&mut self, setup: Setup, now: u64, logger: &slog::Logger) -> Check {
        let Some(seed) = self.seed.clone() else { return Ok(()) };
        if let Some(record) = self.log.read(|image| image.installing.clone()) {
            let install = Install::from_record(record).map_err(|e| e.0)?;
            for step in [Step::Remove, Step::Fill, Step::Finish] {
                self.install(step, &install, setup)?;
            }
        }
        let (mut hard_state, last, compacted) =
            self.log.read(|image| (image.hard_state.clone(), image.last(), image.compacted.clone()));
        match setup.sabotage {
            Sabotage::ForgottenVotes => hard_state.vote = 0,
            Sabotage::ForgottenProducers => self.state.damage(&Keys(GROUP).one(Table::Producers)),
            _ => {}
        }
        let origin = Origin { seed, reader: self.log.clone(), hard_state, last, log_bytes: 0, compacted };
        let mut group = Group::open(origin, TICKS, &self.state.kv, logger).map_err(|e| e.0)?;
        if group.is_alone() {
            group.handle(Input::Campaign, now);
        }
        self.applied = group.status().applied;
        self.group = Some(group);
        Ok(())
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.group = None;
        self.inbox.clear();
        self.making = None;
        self.fetching = None;
        self.installing = None;
        self.log.crash(rng);
        self.state.crash(rng);
    }

    /// The replica is removed, or its disk is emptied: it never comes back under its id.
    pub(super) fn remove(&mut self) {
        let id = self.seed.as_ref().map_or(0, |seed| seed.replica);
        *self = Self { gone: self.gone.max(id), restart_at: self.restart_at, ..Self::default() };
    }

    /// The rows as they stand, as a snapshot's data.
    pub(super) fn freeze(&self, setup: Setup) -> Bytes {
        let mut rows = common(&self.state);
        if setup.sabotage == Sabotage::SnapshotWithoutProducers {
            rows.retain(|row| row.key[8] != Table::Producers as u8);
        }
        Rows { rows }.encode_to_vec().into()
    }

    /// One step of an installation. `true` when it was the last.
    pub(super) fn install(&mut self, step: Step, install: &Install, setup: Setup) -> Result<bool, String> {
        let honest = setup.sabotage != Sabotage::LooseInstall;
        match step {
            Step::Remove => {
                let rows = self.state.kv.snapshot();
                let ops = rows.into_keys().filter(|key| key.starts_with(&prefix())).map(|key| (key, None)).collect();
                self.state.write(WriteBatch { ops });
            }
            Step::Fill => {
                let rows = Rows::decode(install.data.clone()).map_err(|e| e.to_string())?.rows;
                let ops = rows.into_iter().map(|row| (row.key, Some(row.value))).collect();
                self.state.write(WriteBatch { ops });
                if honest {
                    self.state.flush();
                }
            }
            Step::Finish => {
                let seed = self.seed.as_ref().ok_or("an installation without a replica")?;
                let (compacted, hard_state) = install.finish(seed, &self.state.kv).map_err(|e| e.0)?;
                let write = Write {
                    hard_state: Some(hard_state),
                    compact: Some(compacted),
                    replace: true,
                    installing: Some(None),
                    sync: true,
                    ..Write::default()
                };
                self.log.write(write, honest);
                return Ok(true);
            }
        }
        Ok(false)
    }
}
