//! Bringing replicas to life, those that the disk holds at a start and new ones, and what a crash has left of others.

use std::cell::RefCell;

use canal_consensus::compaction;
use canal_consensus::core::group::{Group, Input, Install, Origin};
use canal_consensus::core::keys::end_of;
use canal_consensus::core::kv::{Kv as _, KvError, WriteBatch};
use canal_consensus::dump;
use canal_consensus::log_store::GroupWrite;
use canal_proto::GroupId;
use canal_proto::peer::{Manifest, Seed};
use prost::Message as _;

use super::turn::TICKS;
use super::{Live, Member, Stage, TICK};
use crate::sim::around::Machine;
use crate::sim::disk::{Disk, Log};
use crate::sim::rooms::Place;
use crate::sim::seen::Seen;
use crate::sim::world::{Event, PeerContent, World};

impl World {
    /// A peer's process starts with what is on its disk.
    pub(in crate::sim) fn start(&mut self, peer: Machine) {
        let held = &mut self.peers[peer];
        held.start += 1;
        held.stage = Stage::Up;
        held.paused_until = 0;
        held.live = Some(Live::new(Place::new(peer, self.identities.clone(), self.catalog.clone())));
        let start = held.start;
        self.trace.tell(self.now, || format!("peer {peer}: starts, for the {start}. time"));
        self.dht.restart(peer);
        let damaged = self.peers[peer].disk.log.damaged();
        if !damaged.is_empty() {
            // what was synced is not all there any more: votes may be gone as well, so it begins anew with an empty disk
            self.tally.count("damaged log found");
            self.trace.tell(self.now, || format!("peer {peer}: the log of {damaged:?} is damaged; it begins anew"));
            self.peers[peer].disk = Disk::default();
        }
        if let Err(error) = self.open_all(peer) {
            return self.store_failed(peer, &error);
        }
        self.hire_peer(peer);
        let phase = self.disk_rng.below(TICK);
        self.queue.push(self.now + phase, Event::Tick { peer, start });
        self.turn(peer);
    }

    fn open_all(&mut self, peer: Machine) -> Result<(), KvError> {
        let disk = &self.peers[peer].disk;
        let groups = disk.log.groups();
        let orphans: Vec<GroupId> = disk.rows.groups().into_iter().filter(|id| !groups.contains(id)).collect();
        let (removed, lost): (Vec<_>, Vec<_>) = orphans.into_iter().partition(|id| disk.log.gone(*id) > 0);
        if !lost.is_empty() && groups.is_empty() {
            return Err(KvError("there is applied state, but no log: the log was lost or moved".into()));
        }
        if let Some(live) = self.peers[peer].live.as_mut() {
            live.clearing.extend(&removed);
        }
        removed.into_iter().for_each(|group| self.clear(peer, group));
        for id in groups {
            let seed = self.peers[peer].disk.log.read(id, |image| image.seed.clone()).flatten();
            if let Some(seed) = seed {
                self.bring_to_life(peer, Seed::clone(&seed))?;
            }
        }
        Ok(())
    }

    pub(in crate::sim) fn bring_to_life(&mut self, peer: Machine, seed: Seed) -> Result<(), KvError> {
        let id = GroupId(seed.group);
        let group = self.open_replica(peer, seed)?;
        let pulse = group.pulse();
        let history = self.history_of(peer, id)?;
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
        let member = Member {
            group,
            history,
            leads: false,
            led_term: 0,
            ruled: 0,
            told: pulse.applied,
            opened: self.now,
            heard: std::collections::BTreeMap::new(),
            led: Vec::new(),
            rooms: Vec::new(),
        };
        live.members.insert(id, member);
        live.dirty.insert(id);
        self.hire_replica(peer, id);
        Ok(())
    }

    /// The snapshot that a replica was taking over can't be had: it goes on as after a crash, from what is on disk.
    pub(in crate::sim) fn give_up_installation(&mut self, peer: Machine, id: GroupId) -> Result<(), KvError> {
        let Some(member) = self.member(peer, id) else { return Ok(()) };
        let seed = member.group.seed().clone();
        let group = self.open_replica(peer, seed)?;
        let history = self.history_of(peer, id)?;
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
        live.fetches.retain(|_, task| task.group != id);
        live.cuts.remove(&id);
        live.dirty.insert(id);
        if let Some(member) = live.members.get_mut(&id) {
            member.told = group.pulse().applied;
            (member.group, member.history) = (group, history);
        }
        self.tally.count("installation given up");
        Ok(())
    }

    fn open_replica(&mut self, peer: Machine, seed: Seed) -> Result<Group<Log>, KvError> {
        let id = GroupId(seed.group);
        let now_ms = self.now_ms(peer);
        let record = self.peers[peer].disk.log.read(id, |image| image.installing.clone()).flatten();
        if let Some(record) = record {
            self.finish_installation(peer, &seed, &Install::from_record(record)?)?;
        }
        let disk = &mut self.peers[peer].disk;
        disk.rows.open(id);
        let log = disk.log.clone();
        let read = |image: &crate::sim::disk::log::Image| {
            (image.hard_state.clone(), image.last(), image.bytes(), image.compacted.clone())
        };
        let (hard_state, last, log_bytes, compacted) = log.read(id, read).unwrap_or_default();
        let origin = Origin { seed, reader: log, hard_state, last, log_bytes, compacted };
        let kv = disk.rows.open(id);
        let mut group = Group::open(origin, TICKS, kv, &self.logger)?;
        if group.is_alone() {
            group.handle(Input::Campaign, now_ms);
        }
        let pulse = group.pulse();
        if pulse.hollow {
            self.tally.count("hollow");
            self.trace.tell(self.now, || format!("peer {peer}: the replica of group {id} is hollow"));
        }
        Ok(group)
    }

    /// What the rows say of a group's seals, and which of their files are here.
    pub(in crate::sim) fn history_of(&mut self, peer: Machine, id: GroupId) -> Result<compaction::History, KvError> {
        let disk = &mut self.peers[peer].disk;
        let kv = disk.rows.open(id);
        let old = compaction::old_notes(id, kv, |hash| disk.files.contains(hash))?;
        disk.rows.write_one(id, old);
        compaction::load(id, disk.rows.open(id), |hash| disk.files.contains(hash))
    }

    /// Does again what the record of an installation says, that a crash cut off. When its files are not all here, or
    /// damaged, the group's rows go.
    fn finish_installation(&mut self, peer: Machine, seed: &Seed, install: &Install) -> Result<(), KvError> {
        let id = GroupId(seed.group);
        let manifest = Manifest::decode(install.data.clone()).unwrap_or_default();
        let disk = &mut self.peers[peer].disk;
        let batches = RefCell::new(Vec::new());
        let written = dump::install_from(id, &manifest, &PeerContent(disk), disk.rows.open_ref(id), &mut |batch| {
            batches.borrow_mut().push(batch.clone());
            Ok(())
        });
        let finished = match written {
            Ok(()) => {
                batches.into_inner().into_iter().for_each(|batch| disk.rows.write_one(id, batch));
                disk.rows.flush(disk.rows.written());
                Some(install.finish(seed, disk.rows.open(id))?)
            }
            Err(dump::Error::Kv(error)) => return Err(error),
            Err(_) => None,
        };
        let write = match finished {
            Some((compacted, hard_state)) => {
                let (replica, index, term) = (seed.replica, install.index, install.term);
                self.see(Seen::Installed { peer, group: id, replica, index, term });
                GroupWrite::installed(id, compacted, hard_state)
            }
            None => {
                self.clear_now(peer, id)?;
                let disk = &mut self.peers[peer].disk;
                disk.rows.flush(disk.rows.written());
                GroupWrite { group: id, installing: Some(None), ..GroupWrite::default() }
            }
        };
        let log = &self.peers[peer].disk.log;
        log.write(vec![write])?;
        log.sync()
    }

    /// Removes all rows of a group.
    pub(in crate::sim) fn clear_now(&mut self, peer: Machine, id: GroupId) -> Result<(), KvError> {
        let disk = &mut self.peers[peer].disk;
        let prefix = id.0.to_be_bytes();
        let rows = disk.rows.open(id).scan(&prefix, &end_of(&prefix), usize::MAX, false)?;
        let ops = rows.into_iter().map(|(key, _)| (key, None)).collect();
        disk.rows.write_one(id, WriteBatch { ops });
        Ok(())
    }
}
