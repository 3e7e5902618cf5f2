//! What moves a group's events from the log to files, and lets go of both, as the product's driver and its files threads
//! do it: when work begins, what it does, what becomes of it, and where logs are cut.
//!
//! Work is done at the end of the time that it takes, and reported to the peer's turn afterwards; a crash before leaves
//! nothing of it. Taking over a snapshot is done in steps, with time between them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use canal_consensus::compaction::{self, Prepared, Urgent, Work};
use canal_consensus::core::group::{Input, Install, SnapshotPoint};
use canal_consensus::core::keys::{Keys, Table, end_of};
use canal_consensus::core::kv::{Kv, KvError, MemoryKv, WriteBatch};
use canal_consensus::core::sealing;
use canal_consensus::core::txn::decode;
use canal_consensus::dump;
use canal_consensus::files::{Encoder, events_in};
use canal_consensus::log_store::GroupWrite;
use canal_consensus::view::Source;
use canal_proto::log::{Kind as CommandKind, Seal, Segment};
use canal_proto::peer::{Manifest, Piece};
use canal_proto::{ContentHash, GroupId, TopicId};
use prost::Message as _;

use super::{Inbound, Waiter};
use crate::sim::around::Machine;
use crate::sim::faults::Kind;
use crate::sim::mutants::{self, Mutant};
use crate::sim::queue::Micros;
use crate::sim::world::{Event, PeerContent, World};

/// Files threads, as in the product.
const THREADS: usize = 2;
/// How long a piece of work takes, at least and at most.
const WORK: (Micros, Micros) = (2_000, 60_000);
/// How often it is looked whether something is due.
const LOOK: Micros = 1_000_000;
/// Events read at a time.
const READ: usize = 4096;
/// Their bytes.
const READ_BYTES: usize = 4 << 20;
/// Rows looked up at a time to be removed.
const FOUND: usize = 16_384;

/// What the other threads of a peer do.
#[derive(Default)]
pub struct Threads {
    running: usize,
    /// Files may be there that nothing names, and when they are looked for.
    sweep: Option<Micros>,
    sweeping: bool,
    pressed: bool,
    flushing: bool,
    next_flush: Micros,
    next_look: Micros,
    served: GroupId,
    unnamed: BTreeMap<ContentHash, Micros>,
}

/// Work of a thread.
pub enum Job {
    Seal { group: GroupId, through: u64 },
    Make { group: GroupId, number: u64, segments: Vec<Segment> },
    Dump { group: GroupId, point: SnapshotPoint, frozen: MemoryKv },
    Install { group: GroupId, manifest: Manifest, steps: Option<VecDeque<WriteBatch>> },
    Forget { group: GroupId, through: u64 },
    Clear { group: GroupId },
    Sweep { groups: Vec<GroupId>, held: BTreeSet<ContentHash> },
    Flush { applied: BTreeMap<GroupId, (u64, u64)>, upto: u64 },
}

/// What became of it.
pub enum Report {
    Sealed { group: GroupId, result: Result<Option<Seal>, String> },
    Made { group: GroupId, number: u64, made: Made },
    Dumped { group: GroupId, point: SnapshotPoint, result: Result<Manifest, String> },
    Installed { group: GroupId, result: Result<(), String> },
    Forgotten { group: GroupId },
    Cleared { group: GroupId },
    Swept { more: bool },
    Flushed { applied: BTreeMap<GroupId, (u64, u64)> },
    Fetched { group: GroupId, number: u64, all: bool },
}

/// What becomes of the files of a seal.
pub struct Made {
    here: Vec<Segment>,
    lacking: Vec<Segment>,
    superseded: bool,
}

impl World {
    /// Files may be there that nothing names.
    pub(in crate::sim) fn wants_sweep(&mut self, peer: Machine) {
        let now = self.now;
        if let Some(live) = self.peers[peer].live.as_mut() {
            live.files.sweep.get_or_insert(now);
        }
    }

    /// With each tick: whether it is time for a flush, or for a look at what is due.
    pub(in crate::sim) fn look(&mut self, peer: Machine) -> Result<(), KvError> {
        let (now, flush_every) = (self.now, self.setup.limits.flush_ms * 1000);
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
        let threads = &mut live.files;
        let flush = now >= threads.next_flush;
        if flush {
            threads.next_flush = now + flush_every;
        }
        let look = now >= threads.next_look;
        if look {
            threads.next_look = now + LOOK.min(flush_every);
        }
        if flush {
            self.flush(peer);
        }
        if !look {
            return Ok(());
        }
        let log_entries = self.setup.limits.log_entries;
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
        let (mut entries, mut lost) = (0, false);
        for member in live.members.values_mut() {
            let status = member.group.status();
            entries += status.last.saturating_add(1).saturating_sub(status.first);
            if member.history.prepared.is_some() && member.group.prepared().is_none() {
                member.history.prepared = None;
                lost = true;
            }
        }
        live.files.pressed = entries > log_entries;
        if lost {
            self.wants_sweep(peer);
        }
        self.find_damaged(peer)?;
        self.cut_all(peer)?;
        self.fetch_lacking(peer);
        self.dispatch(peer);
        Ok(())
    }

    fn find_damaged(&mut self, peer: Machine) -> Result<(), KvError> {
        let disk = &mut self.peers[peer].disk;
        let damaged: Vec<ContentHash> = disk.files.take_damaged().into_iter().collect();
        if damaged.is_empty() {
            return Ok(());
        }
        damaged.iter().for_each(|hash| disk.files.remove(hash));
        self.tally.count("damaged files found");
        let groups: Vec<GroupId> = self.peers[peer].live.iter().flat_map(|live| live.members.keys().copied()).collect();
        for group in groups {
            let segments = self.segments(peer, group, Table::Segments)?;
            let Some(member) = self.member(peer, group) else { continue };
            if member.history.damaged(&damaged) {
                member.group.snapshot_spoilt();
                self.tally.count("snapshots spoilt");
            }
            let Some(member) = self.member(peer, group) else { continue };
            for segment in segments {
                if damaged.iter().any(|hash| hash.0[..] == segment.hash[..]) {
                    member.history.lost(segment);
                }
            }
        }
        Ok(())
    }

    pub(in crate::sim) fn segments(
        &self,
        peer: Machine,
        group: GroupId,
        table: Table,
    ) -> Result<Vec<Segment>, KvError> {
        let prefix = Keys(group).one(table);
        let kv = self.peers[peer].disk.rows.open_ref(group);
        let rows = kv.scan(&prefix, &end_of(&prefix), usize::MAX, false)?;
        rows.into_iter().map(|(key, value)| decode(&key, value)).collect()
    }

    fn flush(&mut self, peer: Machine) {
        let held = &mut self.peers[peer];
        let upto = held.disk.rows.written();
        let Some(live) = held.live.as_mut().filter(|live| !live.files.flushing) else { return };
        let applied = |(id, member): (&GroupId, &super::Member)| {
            let pulse = member.group.pulse();
            let rows = !pulse.hollow && !pulse.installing;
            rows.then_some((*id, (member.group.seed().replica, pulse.applied)))
        };
        let applied = live.members.iter().filter_map(applied).collect();
        live.files.flushing = true;
        self.schedule(peer, Job::Flush { applied, upto });
    }

    /// Cuts the logs as far as they can be; the next turn writes it.
    fn cut_all(&mut self, peer: Machine) -> Result<(), KvError> {
        let keep = self.setup.limits.seal_entries;
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
        let mut cuts = 0;
        for (id, member) in &mut live.members {
            let Some(cut) = member.history.cut().filter(|_| !live.cuts.contains_key(id)) else { continue };
            let cut = compaction::cut_beside(cut, &member.group.status(), keep, live.files.pressed);
            let Some(cut) = cut else { continue };
            if let Some(compacted) = member.group.compact(cut)? {
                live.cuts.insert(*id, compacted);
                live.dirty.insert(*id);
                member.history.leftovers = true;
                cuts += 1;
            }
        }
        (0..cuts).for_each(|_| self.tally.count("log cut"));
        Ok(())
    }

    /// Asks other replicas for segments that could not be made here.
    fn fetch_lacking(&mut self, peer: Machine) {
        let now = self.instant();
        let mut tasks = Vec::new();
        let Some(live) = self.peers[peer].live.as_mut() else { return };
        for (id, member) in &mut live.members {
            let history = &mut member.history;
            let Some(lacking) = history.to_fetch(now) else { continue };
            let pieces = lacking.pieces();
            let status = member.group.status();
            let replicas = compaction::givers(&status);
            let sources = replicas.into_iter().filter_map(|replica| self.identities.holder(replica)).collect();
            history.fetching = Some(live.next_task);
            tasks.push((*id, live.next_task, pieces, sources));
            live.next_task += 1;
        }
        for (id, number, pieces, sources) in tasks {
            self.tally.count("segments fetched");
            self.begin_fetch(peer, id, number, pieces, sources);
        }
    }

    /// A follower needs a snapshot of the rows as they are now.
    pub(in crate::sim) fn write_snapshot(&mut self, peer: Machine, id: GroupId, point: SnapshotPoint) {
        let (now, now_ms) = (self.instant(), self.now_ms(peer));
        let held = &mut self.peers[peer];
        let Some(live) = held.live.as_mut() else { return };
        let room = live.files.running < THREADS && !live.files.sweeping;
        let Some(member) = live.members.get_mut(&id) else { return };
        let history = &mut member.history;
        if !room || history.work.is_some() || !history.lacking.is_empty() {
            history.wanted = Some(now);
            member.group.handle(Input::SnapshotFailed, now_ms);
            return;
        }
        history.wanted = None;
        history.work = Some(Work::Dump);
        let rows = held.disk.rows.open_ref(id).snapshot();
        let frozen = MemoryKv::default();
        frozen.write(&WriteBatch { ops: rows.into_iter().map(|(key, value)| (key, Some(value))).collect() });
        live.files.running += 1;
        self.trace.tell(self.now, || format!("peer {peer}: writes a snapshot of group {id} at {}", point.index));
        self.schedule(peer, Job::Dump { group: id, point, frozen });
    }

    /// From now on the group waits for a snapshot's rows: its record is in the log.
    pub(in crate::sim) fn begin_installation(
        &mut self,
        peer: Machine,
        id: GroupId,
        install: Install,
    ) -> Result<(), KvError> {
        let manifest = Manifest::decode(install.data.clone())
            .map_err(|e| KvError(format!("group {id}: a snapshot's manifest can't be read: {e}")))?;
        if let Some(live) = self.peers[peer].live.as_mut() {
            live.fetches.retain(|_, task| task.group != id);
            if let Some(member) = live.members.get_mut(&id) {
                member.history.offered = None;
                member.history.installing = Some((install, manifest));
            }
        }
        self.dispatch(peer);
        Ok(())
    }

    /// Removes the rows of a group that was removed.
    pub(in crate::sim) fn clear(&mut self, peer: Machine, group: GroupId) {
        if let Some(live) = self.peers[peer].live.as_mut() {
            live.files.running += 1;
            self.schedule(peer, Job::Clear { group });
        }
    }

    fn schedule(&mut self, peer: Machine, job: Job) {
        let start = self.peers[peer].start;
        let mut lasts = self.disk_rng.between(WORK.0, WORK.1);
        if self.faulty && self.slow_disks.contains(&peer) {
            lasts *= 20;
        }
        self.queue.push(self.now + lasts, Event::Job { peer, start, job: Box::new(job) });
    }

    /// Gives the files threads what is to be done next.
    pub(in crate::sim) fn dispatch(&mut self, peer: Machine) {
        let now = self.now;
        loop {
            let instant = self.instant();
            let seal_entries = self.setup.limits.seal_entries;
            let Some(live) = self.peers[peer].live.as_mut() else { return };
            if live.files.sweeping {
                return;
            }
            let hollow = || live.members.values().any(|member| member.group.pulse().hollow);
            if live.files.sweep.is_some_and(|due| now >= due) && !hollow() {
                if live.files.running == 0 {
                    live.files.sweep = None;
                    live.files.sweeping = true;
                    live.files.running += 1;
                    let held = live.members.values().flat_map(|member| member.history.holds()).collect();
                    let groups = live.members.keys().copied().collect();
                    self.schedule(peer, Job::Sweep { groups, held });
                }
                return;
            }
            if live.files.running >= THREADS {
                return;
            }
            let Some(job) = next_job(live, instant, seal_entries) else { return };
            live.files.running += 1;
            self.schedule(peer, job);
        }
    }

    /// The time that a piece of work takes is over: it is done, and reported.
    pub(in crate::sim) fn work(&mut self, peer: Machine, job: Job) -> Result<(), KvError> {
        let report = match job {
            Job::Seal { group, through } => Report::Sealed { group, result: self.seal(peer, group, through) },
            Job::Make { group, number, segments } => {
                Report::Made { group, number, made: self.make(peer, group, segments)? }
            }
            Job::Dump { group, point, frozen } => {
                let content = PeerContent(&self.peers[peer].disk);
                let mut put = |bytes: &[u8]| {
                    let hash = content.0.files.put(bytes.to_vec().into());
                    Ok(Piece { hash: hash.to_vec().into(), size: bytes.len() as u64 })
                };
                let written = dump::write_to(group, &frozen, &content, &mut put);
                Report::Dumped { group, point, result: written.map_err(|e| e.to_string()) }
            }
            Job::Install { group, manifest, steps: None } => {
                let disk = &self.peers[peer].disk;
                let steps = RefCell::new(VecDeque::new());
                let mut write = |batch: &WriteBatch| {
                    steps.borrow_mut().push_back(batch.clone());
                    Ok(())
                };
                let rows = disk.rows.open_ref(group);
                match dump::install_from(group, &manifest, &PeerContent(disk), rows, &mut write) {
                    Ok(()) => {
                        let steps = Some(steps.into_inner());
                        self.schedule(peer, Job::Install { group, manifest, steps });
                        return Ok(());
                    }
                    Err(dump::Error::Kv(error)) => return Err(error),
                    Err(error) => Report::Installed { group, result: Err(error.to_string()) },
                }
            }
            Job::Install { group, manifest, steps: Some(mut steps) } => {
                let strength = self.setup.faults.strength(Kind::CrashInInstall);
                if self.faulty && strength > 0 && self.disk_rng.chance(strength) {
                    self.crash(peer, Kind::CrashInInstall);
                    return Ok(());
                }
                let rows = &mut self.peers[peer].disk.rows;
                match steps.pop_front() {
                    Some(batch) => {
                        rows.write_one(group, batch);
                        self.schedule(peer, Job::Install { group, manifest, steps: Some(steps) });
                        return Ok(());
                    }
                    None => {
                        if !mutants::is(Mutant::SnapshotAckedEarly) {
                            rows.flush(rows.written());
                        }
                        Report::Installed { group, result: Ok(()) }
                    }
                }
            }
            Job::Forget { group, through } => {
                let rows = &mut self.peers[peer].disk.rows;
                loop {
                    let gone = sealing::sealed_locators(rows.open_ref(group), group, through, FOUND)?;
                    let more = gone.len() >= FOUND;
                    rows.write_one(group, WriteBatch { ops: gone.into_iter().map(|key| (key, None)).collect() });
                    if !more {
                        break Report::Forgotten { group };
                    }
                }
            }
            Job::Clear { group } => {
                self.clear_now(peer, group)?;
                let rows = &mut self.peers[peer].disk.rows;
                rows.flush(rows.written());
                Report::Cleared { group }
            }
            Job::Sweep { groups, held } => Report::Swept { more: self.sweep(peer, &groups, held)? },
            Job::Flush { applied, upto } => {
                self.peers[peer].disk.rows.flush(upto);
                Report::Flushed { applied }
            }
        };
        if let Some(live) = self.peers[peer].live.as_mut() {
            live.inbox.push_back(Inbound::Report(report));
        }
        Ok(())
    }

    fn seal(&mut self, peer: Machine, group: GroupId, through: u64) -> Result<Option<Seal>, String> {
        let kv = self.peers[peer].disk.rows.open_ref(group);
        let Some(plan) = sealing::plan(kv, group, through).map_err(|e| e.to_string())? else { return Ok(None) };
        let mut segments = Vec::with_capacity(plan.parts.len());
        for part in plan.parts {
            segments.push(self.segment(peer, group, part.topic, part.first, part.end, part.replaces.as_ref())?);
        }
        Ok(Some(Seal { through: plan.through, segments }))
    }

    /// Writes the events `first..end` of a topic to a segment.
    fn segment(
        &self,
        peer: Machine,
        group: GroupId,
        topic: TopicId,
        first: u64,
        end: u64,
        replaced: Option<&Segment>,
    ) -> Result<Segment, String> {
        let disk = &self.peers[peer].disk;
        let content = PeerContent(disk);
        let source = Source { group, kv: disk.rows.open_ref(group), content: &content };
        let mut encoder = Encoder::begin(topic, first);
        while encoder.next() < end {
            let from = encoder.next();
            let max = usize::try_from(end - from).unwrap_or(READ).min(READ);
            let events = match replaced.filter(|replaced| (replaced.first..replaced.end()).contains(&from)) {
                Some(replaced) => {
                    let hash = ContentHash::from_slice(&replaced.hash).map_err(|e| e.to_string())?;
                    let bytes = disk.files.read(&hash).map_err(|e| format!("{e:?}"))?;
                    events_in(&bytes, replaced, from, max, READ_BYTES).map_err(str::to_owned)?
                }
                None => source.events(topic, from, max, READ_BYTES).map_err(|e| e.to_string())?,
            };
            if events.is_empty() {
                return Err(format!("topic {topic} has no event at offset {from}"));
            }
            for event in events.iter().filter(|event| event.offset < end) {
                encoder.push(event).map_err(|e| e.to_string())?;
            }
        }
        let segment = encoder.finish().map_err(|e| e.to_string())?;
        disk.files.put(encoder.take().into());
        Ok(segment)
    }

    fn one(&self, peer: Machine, group: GroupId, key: &[u8]) -> Result<Option<Segment>, KvError> {
        let kv = self.peers[peer].disk.rows.open_ref(group);
        kv.get(key)?.map(|bytes| decode(key, bytes)).transpose()
    }

    /// Makes segments that a seal names from what this replica has itself, and compares.
    fn make(&mut self, peer: Machine, group: GroupId, segments: Vec<Segment>) -> Result<Made, KvError> {
        let keys = Keys(group);
        let mut made = Made { here: Vec::new(), lacking: Vec::new(), superseded: false };
        for segment in segments {
            let Ok(hash) = ContentHash::from_slice(&segment.hash) else { continue };
            let topic = TopicId(segment.topic);
            match self.one(peer, group, &keys.topic(Table::Segments, topic, segment.first))? {
                Some(row) if row.hash == segment.hash => {}
                Some(_) => {
                    made.superseded = true;
                    continue;
                }
                None => continue,
            }
            if !self.peers[peer].disk.files.contains(&hash) {
                let replaced = self.one(peer, group, &keys.topic(Table::Replaced, topic, segment.first))?;
                match self.segment(peer, group, topic, segment.first, segment.end(), replaced.as_ref()) {
                    Ok(own) if own.hash == segment.hash => self.tally.count("segment made"),
                    Ok(own) => {
                        self.differs(peer, group, &own, &segment);
                        made.lacking.push(segment);
                        continue;
                    }
                    Err(_) => {
                        made.lacking.push(segment);
                        continue;
                    }
                }
            }
            made.here.push(segment);
        }
        Ok(made)
    }

    fn sweep(&mut self, peer: Machine, groups: &[GroupId], mut held: BTreeSet<ContentHash>) -> Result<bool, KvError> {
        for group in groups {
            for table in [Table::Segments, Table::Replaced] {
                let segments = self.segments(peer, *group, table)?;
                held.extend(segments.iter().filter_map(|segment| ContentHash::from_slice(&segment.hash).ok()));
            }
        }
        let (now, grace) = (self.now, self.setup.limits.grace_ms * 1000);
        let this = &mut self.peers[peer];
        let Some(live) = this.live.as_mut() else { return Ok(false) };
        let unnamed = &mut live.files.unnamed;
        let all = this.disk.files.names();
        unnamed.retain(|hash, _| all.contains(hash) && !held.contains(hash));
        for hash in all.difference(&held) {
            let since = *unnamed.entry(*hash).or_insert(now);
            if now - since >= grace {
                unnamed.remove(hash);
                this.disk.files.remove(hash);
            }
        }
        Ok(!unnamed.is_empty())
    }

    fn ended(&mut self, peer: Machine, group: GroupId) {
        let Some(live) = self.peers[peer].live.as_mut() else { return };
        live.files.running = live.files.running.saturating_sub(1);
        if let Some(member) = live.members.get_mut(&group) {
            member.history.work = None;
        }
    }

    /// The turn hears what became of work.
    pub(in crate::sim) fn report(&mut self, peer: Machine, report: Report) -> Result<(), KvError> {
        let (now, now_ms) = (self.instant(), self.now_ms(peer));
        match report {
            Report::Sealed { group, result } => {
                self.ended(peer, group);
                let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
                let Some(member) = live.members.get_mut(&group) else { return Ok(()) };
                match result {
                    Ok(Some(seal)) => {
                        member.history.proposed = Some(seal.segments.clone());
                        let ticket = live.ticket(group, Waiter::Seal);
                        if let Some(member) = live.members.get_mut(&group) {
                            let kind = Box::new(CommandKind::Seal(seal));
                            member.group.handle(Input::Propose(ticket, kind), now_ms);
                            live.dirty.insert(group);
                        }
                        self.tally.count("seal proposed");
                    }
                    Ok(None) => {}
                    Err(_) => member.history.rest(Work::Seal, now),
                }
            }
            Report::Made { group, number, made } => {
                self.ended(peer, group);
                let disk = &mut self.peers[peer].disk;
                let ops = compaction::notes(group, disk.rows.open_ref(group), made.here)?;
                disk.rows.write_one(group, WriteBatch { ops });
                if let Some(member) = self.member(peer, group) {
                    member.history.made(number, made.lacking, made.superseded);
                    member.history.leftovers = true;
                }
                self.wants_sweep(peer);
            }
            Report::Dumped { group, point, result } => {
                self.ended(peer, group);
                let id = self.peers[peer].id;
                let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
                let Some(member) = live.members.get_mut(&group) else { return Ok(()) };
                let written = result.is_ok();
                let input = match result {
                    Ok(mut manifest) => {
                        manifest.peer = id.to_vec().into();
                        let data = manifest.encode_to_vec().into();
                        member.history.prepared = Some(Prepared { manifest });
                        Input::SnapshotReady(point, data)
                    }
                    Err(_) => Input::SnapshotFailed,
                };
                member.group.handle(input, now_ms);
                live.dirty.insert(group);
                if written {
                    self.tally.count("snapshot written");
                }
                self.wants_sweep(peer);
            }
            Report::Installed { group, result } => {
                self.ended(peer, group);
                self.installed(peer, group, result)?;
            }
            Report::Forgotten { group } => self.ended(peer, group),
            Report::Cleared { group } => {
                self.ended(peer, group);
                if let Some(live) = self.peers[peer].live.as_mut() {
                    live.clearing.remove(&group);
                }
                self.wants_sweep(peer);
            }
            Report::Swept { more } => {
                let again = self.now + (self.setup.limits.grace_ms * 1000).max(100_000);
                let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
                live.files.running = live.files.running.saturating_sub(1);
                live.files.sweeping = false;
                if more {
                    live.files.sweep.get_or_insert(again);
                }
            }
            Report::Fetched { group, number, all } => self.fetch_ended(peer, group, number, all),
            Report::Flushed { applied } => {
                let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
                live.files.flushing = false;
                for (id, (replica, index)) in applied {
                    let member = live.members.get_mut(&id).filter(|member| member.group.seed().replica == replica);
                    if let Some(member) = member {
                        member.history.flushed = member.history.flushed.max(index);
                    }
                }
                self.cut_all(peer)?;
            }
        }
        self.let_leave(peer)?;
        self.dispatch(peer);
        Ok(())
    }

    fn installed(&mut self, peer: Machine, group: GroupId, result: Result<(), String>) -> Result<(), KvError> {
        let held = &mut self.peers[peer];
        let Some(live) = held.live.as_mut() else { return Ok(()) };
        let Some(member) = live.members.get_mut(&group) else { return Ok(()) };
        let Some((install, _)) = member.history.installing.take() else { return Ok(()) };
        if result.is_err() {
            return self.give_up_installation(peer, group);
        }
        let rows = held.disk.rows.open_ref(group);
        let (compacted, hard_state) = install.finish(member.group.seed(), rows)?;
        live.cuts.remove(&group);
        held.disk.log.write(vec![GroupWrite::installed(group, compacted, hard_state)])?;
        held.disk.log.sync()?;
        member.group.installed(rows)?;
        member.told = install.index;
        let replica = member.group.seed().replica;
        live.dirty.insert(group);
        let mut history = self.history_of(peer, group)?;
        history.flushed = install.index;
        if let Some(member) = self.member(peer, group) {
            member.history = history;
        }
        self.tally.count("snapshot installed");
        self.see(crate::sim::seen::Seen::Installed { peer, group, replica, index: install.index, term: install.term });
        self.wants_sweep(peer);
        Ok(())
    }

    fn fetch_ended(&mut self, peer: Machine, group: GroupId, number: u64, all: bool) {
        let (now, now_ms) = (self.instant(), self.now_ms(peer));
        let Some(live) = self.peers[peer].live.as_mut() else { return };
        let Some(member) = live.members.get_mut(&group) else { return };
        let history = &mut member.history;
        if history.fetched(number, all, now) {
            return;
        }
        let Some(offered) = history.offered.take_if(|offered| offered.number == number) else { return };
        if all {
            member.group.handle(Input::Message(offered.from, offered.message), now_ms);
            live.dirty.insert(group);
        } else {
            history.interrupted(offered, now);
        }
    }
}

/// The next job, of the group that comes after the one served last.
fn next_job(live: &mut super::Live, now: std::time::Instant, seal_entries: u64) -> Option<Job> {
    let wanted = live.members.values().any(|member| member.history.wants(now));
    let spare = !wanted || live.files.running + 1 < THREADS;
    let served = live.files.served;
    let ids = compaction::in_turn(&live.members, served);
    for id in &ids {
        let Some(member) = live.members.get_mut(id) else { continue };
        if let Some(job) = urgent(*id, member, now) {
            live.files.served = *id;
            return Some(job);
        }
    }
    if !spare {
        return None;
    }
    let sealable = live.members.iter().filter_map(|(id, member)| {
        // most do not lead, and the status is dear
        if !member.history.may_seal(now) || !member.group.pulse().leads {
            return None;
        }
        let unsealed = compaction::unsealed(&member.group.status(), member.history.sealed);
        (unsealed.entries >= seal_entries).then_some((unsealed.bytes, *id))
    });
    if let Some((_, id)) = sealable.max() {
        let member = live.members.get_mut(&id)?;
        let status = member.group.status();
        let through = member.history.begin_seal(&status);
        return Some(Job::Seal { group: id, through });
    }
    for id in &ids {
        let Some(member) = live.members.get_mut(id) else { continue };
        let hollow = member.group.pulse().hollow;
        if let Some(through) = member.history.begin_to_forget(hollow, now) {
            live.files.served = *id;
            return Some(Job::Forget { group: *id, through });
        }
    }
    None
}

/// Work that somebody waits for.
fn urgent(id: GroupId, member: &mut super::Member, now: std::time::Instant) -> Option<Job> {
    Some(match member.history.begin_urgent(now)? {
        Urgent::Install(manifest) => Job::Install { group: id, manifest, steps: None },
        Urgent::Make { number, segments } => Job::Make { group: id, number, segments },
    })
}
