//! The files threads: they make segments and snapshots, take snapshots over, and clean up, so that the Raft thread never
//! waits for a file.
//!
//! One piece of work is done for a group at a time; the worker sees to that, and to it that the log is not cut where work
//! reads it. Each can be done twice without harm. A failing store is told to the worker, which stops; a failing file
//! only fails the work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use canal_proto::limits::MAX_DELIVERY;
use canal_proto::log::{Seal, Segment};
use canal_proto::peer::Manifest;
use canal_proto::{ContentHash, GroupId, TopicId};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;

use crate::core::group::SnapshotPoint;
use crate::core::keys::{Keys, Table, end_of};
use crate::core::kv::{Kv, KvError, WriteBatch};
use crate::core::sealing;
use crate::core::txn::decode;
use crate::dump;
use crate::files::Files;
use crate::handle::Inner;
use crate::worker::{Report, Request, now_ms};

/// Threads. Two, so that one long snapshot does not hold up the sealing of all groups.
pub(crate) const THREADS: usize = 2;
/// Events that are read at a time to write them to a segment.
const READ: usize = 16 * MAX_DELIVERY;
/// Their bytes.
const READ_BYTES: usize = 4 << 20;
/// Rows removed in one batch: a batch is written as a whole, and the Raft thread's wait for it.
const SLICE: usize = 4096;
/// Rows looked up at a time to be removed.
const FOUND: usize = 16 * SLICE;
/// A file that nobody names goes when it has been so for this long: somebody may be reading or fetching it.
pub(crate) const GRACE: Duration = Duration::from_secs(60);

/// Work for a thread.
pub(crate) enum Job {
    /// Make the segments with which everything up to this index would be sealed.
    Seal { group: GroupId, through: u64 },
    /// Make these segments, which a seal names.
    Make { group: GroupId, number: u64, segments: Vec<Segment> },
    /// Write a snapshot of these rows.
    Dump { group: GroupId, point: SnapshotPoint, frozen: Box<dyn Kv + Send> },
    /// Replace a group's rows by those of a snapshot.
    Install { group: GroupId, manifest: Manifest },
    /// Remove rows that are not needed any more, with all segments up to this index on disk.
    Forget { group: GroupId, through: u64 },
    /// Remove all rows of a group.
    Clear { group: GroupId },
    /// Remove files that are not named by a row of these groups nor held.
    Sweep { groups: Vec<GroupId>, held: BTreeSet<ContentHash> },
}

/// What becomes of the files of a seal.
#[derive(Debug)]
pub(crate) enum Made {
    /// `here` are here; `lacking` can't be made here, another replica has to give them. `superseded`: others have taken the
    /// place of some before they were made.
    Here { here: Vec<Segment>, lacking: Vec<Segment>, superseded: bool },
    /// Something failed; try again.
    Failed(String),
}

/// The threads; dropping it waits for what they do at the moment.
pub(crate) struct Pool {
    jobs: Option<Sender<Job>>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn start(inner: &Arc<Inner>, grace: Duration) -> std::io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::bounded(THREADS);
        let stop = Arc::new(AtomicBool::new(false));
        let unnamed = Arc::new(Mutex::new(BTreeMap::new()));
        let mut pool = Self { jobs: Some(jobs), stop: stop.clone(), threads: Vec::new() };
        for n in 0..THREADS {
            let bench = Bench { inner: inner.clone(), stop: stop.clone(), grace, unnamed: unnamed.clone() };
            let queue: Receiver<Job> = queue.clone();
            let thread = std::thread::Builder::new().name(format!("files-{n}")).spawn(move || {
                for job in queue {
                    let report = bench.work(job);
                    // fails only when the worker is gone, and nobody wants to know any more
                    let _ = bench.inner.inbox.send(Request::Report(report));
                }
            })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Gives a job to a thread. The caller has at most [`THREADS`] under way, so there is room.
    pub(crate) fn give(&self, job: Job) {
        if let Some(jobs) = &self.jobs
            && let Err(TrySendError::Full(_)) = jobs.try_send(job)
        {
            tracing::error!("work on files was given to threads that are all busy; this is a bug");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Bench {
    inner: Arc<Inner>,
    stop: Arc<AtomicBool>,
    grace: Duration,
    unnamed: Arc<Mutex<BTreeMap<ContentHash, Instant>>>,
}

/// Why a segment could not be made.
enum Unmade {
    /// The events are not all here.
    Lacking(String),
    /// The files failed, or the peer is stopping.
    Failed(String),
}

impl Bench {
    fn files(&self) -> &Files {
        &self.inner.files
    }

    fn work(&self, job: Job) -> Report {
        match job {
            Job::Seal { group, through } => Report::Sealed { group, result: self.seal(group, through) },
            Job::Make { group, number, segments } => Report::Made { group, number, result: self.make(group, segments) },
            Job::Dump { group, point, frozen } => {
                let written = dump::write(group, frozen.as_ref(), &self.inner.log, self.files());
                Report::Dumped { group, point, result: written.map_err(|e| e.to_string()) }
            }
            Job::Install { group, manifest } => {
                let installed = dump::install(group, &manifest, self.files(), self.inner.kv.as_ref());
                Report::Installed { group, result: installed }
            }
            Job::Forget { group, through } => Report::Forgotten { group, result: self.forget(group, through) },
            Job::Clear { group } => Report::Cleared { group, result: self.clear(group) },
            Job::Sweep { groups, held } => Report::Swept { result: self.sweep(&groups, held) },
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Makes the segments of a seal; none when there is nothing to seal.
    fn seal(&self, group: GroupId, through: u64) -> Result<Option<Seal>, String> {
        let Some(plan) = sealing::plan(self.inner.kv.as_ref(), group, through).map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let mut segments = Vec::with_capacity(plan.parts.len());
        for mut part in plan.parts {
            let whole = |segment: &Segment| {
                ContentHash::from_slice(&segment.hash).is_ok_and(|hash| self.files().contains(&hash))
            };
            // one that is damaged and has no other copy can't be taken over by the next
            if let Some(replaced) = part.replaces.take_if(|replaced| !whole(replaced)) {
                part.first = replaced.end();
            }
            match self.write(group, part.topic, part.first, part.end, part.replaces.as_ref()) {
                Ok(segment) => {
                    // what came with a snapshot, the log can't tell of: it counts from now on
                    let known = self.inner.view(group).appended(part.topic, part.end.saturating_sub(1));
                    let appended_ms = known.ok().flatten().map_or_else(now_ms, |(_, time)| time);
                    segments.push(Segment { appended_ms, ..segment });
                }
                Err(Unmade::Lacking(error) | Unmade::Failed(error)) => return Err(error),
            }
        }
        Ok(Some(Seal { through: plan.through, segments }))
    }

    /// Writes the events `first..end` of a topic to a segment.
    fn write(
        &self,
        group: GroupId,
        topic: TopicId,
        first: u64,
        end: u64,
        replaced: Option<&Segment>,
    ) -> Result<Segment, Unmade> {
        let failed = |e: crate::files::Error| Unmade::Failed(e.to_string());
        let view = self.inner.view(group);
        let mut writer = self.files().segment(topic, first).map_err(failed)?;
        while writer.next() < end {
            if self.stopping() {
                return Err(Unmade::Failed("the peer is stopping".to_owned()));
            }
            let from = writer.next();
            let max = usize::try_from(end - from).unwrap_or(READ).min(READ);
            let events = match replaced.filter(|replaced| (replaced.first..replaced.end()).contains(&from)) {
                Some(replaced) => self.files().events(replaced, from, max, READ_BYTES).map_err(|e| e.to_string()),
                None => view.events(topic, from, max, READ_BYTES).map_err(|e| e.to_string()),
            };
            let events = events.map_err(Unmade::Lacking)?;
            if events.is_empty() {
                return Err(Unmade::Lacking(format!("topic {topic} has no event at offset {from}")));
            }
            for event in events.iter().filter(|event| event.offset < end) {
                writer.push(event).map_err(failed)?;
            }
        }
        writer.finish().map_err(failed)
    }

    /// Makes segments that a seal names from what this replica has itself, and compares.
    fn make(&self, group: GroupId, segments: Vec<Segment>) -> Result<Made, KvError> {
        let keys = Keys(group);
        let (mut here, mut lacking) = (Vec::new(), Vec::new());
        let mut superseded = false;
        for segment in segments {
            let Ok(hash) = ContentHash::from_slice(&segment.hash) else { continue };
            let topic = TopicId(segment.topic);
            let own = keys.topic(Table::Replaced, topic, segment.first);
            let row: Option<Segment> = self.row(&keys.topic(Table::Segments, topic, segment.first))?;
            match row {
                Some(row) if row.hash == segment.hash => {}
                Some(_) => {
                    superseded = true;
                    continue;
                }
                // let go
                None => continue,
            }
            if !self.files().contains(&hash) {
                let replaced: Option<Segment> = self.row(&own)?;
                match self.write(group, topic, segment.first, segment.end(), replaced.as_ref()) {
                    Ok(made) if made.hash == segment.hash => {}
                    Ok(made) => {
                        self.inner.counts.differing.fetch_add(1, Ordering::Relaxed);
                        tracing::error!(
                            %group, %topic, first = segment.first,
                            "a segment made here differs from the group's; it is fetched from another replica. Check this \
                             peer's disk, and that of the peer that leads the group"
                        );
                        tracing::debug!(?made, ?segment, "the two segments");
                        lacking.push(segment);
                        continue;
                    }
                    Err(Unmade::Lacking(reason)) => {
                        tracing::info!(%group, %topic, reason, "a segment can't be made here; another replica is asked");
                        lacking.push(segment);
                        continue;
                    }
                    Err(Unmade::Failed(reason)) => return Ok(Made::Failed(reason)),
                }
            }
            here.push(segment);
        }
        Ok(Made::Here { here, lacking, superseded })
    }

    fn row<M: prost::Message + Default>(&self, key: &[u8]) -> Result<Option<M>, KvError> {
        self.inner.kv.get(key)?.map(|bytes| decode(key, bytes)).transpose()
    }

    /// Removes rows, a slice at a time.
    fn remove(&self, keys: Vec<Bytes>) -> Result<(), KvError> {
        for slice in keys.chunks(SLICE) {
            let ops = slice.iter().map(|key| (key.clone(), None)).collect();
            self.inner.kv.write(&WriteBatch { ops })?;
        }
        Ok(())
    }

    fn forget(&self, group: GroupId, through: u64) -> Result<(), KvError> {
        loop {
            let gone = sealing::sealed_locators(self.inner.kv.as_ref(), group, through, FOUND)?;
            let more = gone.len() >= FOUND;
            self.remove(gone)?;
            if !more || self.stopping() {
                return Ok(());
            }
        }
    }

    fn clear(&self, group: GroupId) -> Result<bool, KvError> {
        let prefix = group.0.to_be_bytes();
        loop {
            let rows = self.inner.kv.scan(&prefix, &end_of(&prefix), FOUND, false)?;
            let keys: Vec<Bytes> = rows.into_iter().map(|(key, _)| key).collect();
            let more = keys.len() >= FOUND;
            self.remove(keys)?;
            if !more {
                // a new replica of the group must never wake up over rows of this one
                self.inner.kv.flush()?;
                return Ok(true);
            }
            if self.stopping() {
                return Ok(false);
            }
        }
    }

    /// Removes files that have not been named for a while; says whether there are some that may have to go later.
    fn sweep(&self, groups: &[GroupId], mut held: BTreeSet<ContentHash>) -> Result<bool, KvError> {
        for group in groups {
            for table in [Table::Segments, Table::Replaced] {
                let prefix = Keys(*group).one(table);
                for (key, value) in self.inner.kv.scan(&prefix, &end_of(&prefix), usize::MAX / 2, false)? {
                    let segment: Segment = decode(&key, value)?;
                    held.extend(ContentHash::from_slice(&segment.hash).ok());
                }
            }
        }
        let mut unnamed = self.unnamed.lock();
        let partials = self.files().partials().unwrap_or_default();
        let all: BTreeSet<ContentHash> =
            self.files().list().into_iter().map(|(hash, _)| hash).chain(partials).collect();
        unnamed.retain(|hash, _| all.contains(hash) && !held.contains(hash));
        let now = Instant::now();
        for hash in all.difference(&held) {
            let since = *unnamed.entry(*hash).or_insert(now);
            if now.duration_since(since) < self.grace {
                continue;
            }
            unnamed.remove(hash);
            if let Err(error) = self.files().remove(hash) {
                tracing::warn!(%hash, %error, "a file that is no longer needed can't be removed; it is tried again");
                unnamed.insert(*hash, now);
            }
        }
        Ok(!unnamed.is_empty())
    }
}

/// Things that happened, counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Damage found in logs and state.
    pub(crate) damage_found: AtomicU64,
    /// What all groups hold here was lost, and is not there again yet.
    pub(crate) mending: AtomicBool,
    /// Damage that was mended, of logs and state.
    pub(crate) damage_repaired: AtomicU64,
    /// Segments made here that were not what the group agreed on.
    pub(crate) differing: AtomicU64,
    /// Snapshots written here.
    pub(crate) written: AtomicU64,
    /// Snapshots taken over here.
    pub(crate) installed: AtomicU64,
}

impl Counts {
    /// At the start; `state`: the state was lost.
    pub(crate) fn of_damage(state: bool) -> Self {
        Self { damage_found: AtomicU64::new(state.into()), mending: AtomicBool::new(state), ..Self::default() }
    }
}
