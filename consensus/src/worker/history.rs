//! What moves a group's events from the log to files, and lets go of both: when work begins, and where logs are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use canal_proto::GroupId;

use super::{Member, Worker, now_ms};
use crate::compaction::{self, Urgent, Work, unsealed};
use crate::core::group::{Input, SnapshotPoint};
use crate::core::sealing::{self, Unsealed};
use crate::handle::{self, Error};
use crate::sealer::{Job, THREADS};
use crate::transfer::{Source, Task};

/// How long files that nobody needs wait for a moment at which nothing is under way, before one is made.
const SWEEP_LATE: Duration = Duration::from_secs(30);

fn due(limits: &handle::History, unsealed: Unsealed, pressed: bool) -> bool {
    let own = unsealed.bytes >= limits.seal_bytes || unsealed.entries >= limits.seal_entries;
    unsealed.entries > 0 && (own || sealing::due(unsealed, pressed))
}

impl Worker {
    /// A look at all groups, every second: what is due, what can be cut, what can go.
    pub(super) fn look(&mut self, now: Instant) -> Result<(), Error> {
        let (mut entries, mut bytes) = (0, 0);
        let mut lost = false;
        for member in self.members.values_mut() {
            let status = member.shared.status.borrow();
            entries += status.last.saturating_add(1).saturating_sub(status.first);
            bytes += status.log_bytes;
            if member.history.prepared.is_some() && member.group.prepared().is_none() {
                member.history.prepared = None;
                lost = true;
            }
            lost |= member.history.let_go_of_part(now);
        }
        if lost {
            self.sweep.get_or_insert(now);
        }
        self.inner.files.trusted()?;
        self.find_damaged()?;
        self.find_unreadable();
        self.notice_mended();
        *self.inner.logs.lock() = (entries, bytes);
        self.pressed = entries > self.limits.log_entries || bytes > self.limits.log_bytes;
        self.cut_all()?;
        self.fetch_lacking(now);
        self.dispatch()
    }

    /// Begins to make durable what is applied.
    pub(super) fn flush(&mut self) {
        if self.flushing {
            return;
        }
        let applied = |(id, member): (&GroupId, &Member)| {
            let status = member.shared.status.borrow();
            let rows = !status.hollow && !status.installing;
            rows.then_some((*id, (status.replica, status.applied)))
        };
        let applied: BTreeMap<_, _> = self.members.iter().filter_map(applied).collect();
        self.flushing = true;
        self.flusher.flush(applied);
    }

    /// Cuts the logs as far as they can be; the next turn writes it.
    pub(super) fn cut_all(&mut self) -> Result<(), Error> {
        for (id, member) in &mut self.members {
            let Some(cut) = member.history.cut() else { continue };
            let status = member.shared.status.borrow();
            let cut = compaction::cut_beside(cut, &status, self.limits.seal_entries, self.pressed);
            let Some(cut) = cut.filter(|_| !self.cuts.contains_key(id)) else { continue };
            drop(status);
            if let Some(compacted) = member.group.compact(cut)? {
                tracing::debug!(group = %id, index = compacted.index, "the log is cut");
                self.cuts.insert(*id, compacted);
                self.dirty.insert(*id);
                member.history.leftovers = true;
            }
        }
        Ok(())
    }

    /// Asks other replicas for segments that could not be made here.
    fn fetch_lacking(&mut self, now: Instant) {
        for (id, member) in &mut self.members {
            let history = &mut member.history;
            let Some(lacking) = history.to_fetch(now) else { continue };
            let pieces = lacking.pieces();
            let status = member.shared.status.borrow();
            let source = |replica: &&canal_proto::peer::Replica| {
                Some(Source { peer: replica.peer_id().ok()?, addresses: replica.addresses.clone() })
            };
            let sources: Vec<Source> = compaction::givers(&status).iter().filter_map(source).collect();
            drop(status);
            if sources.is_empty() {
                let number = lacking.number;
                tracing::error!(
                    group = %id,
                    "segments are damaged or missing, and no other replica has them: what can be read of them is. Restore the \
                     files from a copy, and start the peer again"
                );
                history.made(number, Vec::new(), true);
                continue;
            }
            history.fetching = Some(self.next_task);
            self.transfer.begin(Task { group: *id, number: self.next_task, pieces, sources });
            self.next_task += 1;
        }
    }

    /// A follower needs a snapshot of the rows as they are now.
    pub(super) fn write_snapshot(&mut self, id: GroupId, point: SnapshotPoint) -> Result<(), Error> {
        let room = self.running < THREADS && !self.sweeping;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        let history = &mut member.history;
        // a snapshot names segments, so they have to be here
        if !room || history.work.is_some() || !history.lacking.is_empty() {
            history.wanted = Some(Instant::now());
            member.group.handle(Input::SnapshotFailed, now_ms());
            return Ok(());
        }
        history.wanted = None;
        history.work = Some(Work::Dump);
        tracing::info!(group = %id, index = point.index, "writes a snapshot for a replica that is too far behind");
        let frozen = self.inner.kv.freeze(&id.0.to_be_bytes())?;
        self.running += 1;
        self.pool.give(Job::Dump { group: id, point, frozen });
        Ok(())
    }

    /// Gives the files threads what is to be done next.
    pub(super) fn dispatch(&mut self) -> Result<(), Error> {
        if self.sweeping {
            return Ok(());
        }
        let now = Instant::now();
        let hollow = || self.members.values().any(|member| member.shared.status.borrow().hollow);
        let long = |work: Option<Work>| matches!(work, Some(Work::Dump | Work::Install));
        if let Some(due) = self.sweep.filter(|due| now >= *due && !hollow()) {
            // (a replica that has lost its state does not know which files it will need)
            // files that are being made are not named yet, so nothing is made meanwhile
            if self.running == 0 {
                self.begin_sweep();
                return Ok(());
            }
            // where there is always something to do, it has to wait for once; but not for work that takes minutes
            let late = now >= due + SWEEP_LATE;
            if late && !self.members.values().any(|member| long(member.history.work)) {
                return Ok(());
            }
        }
        while self.running < THREADS {
            let Some(job) = self.next_job(now) else { return Ok(()) };
            self.running += 1;
            self.pool.give(job);
        }
        Ok(())
    }

    fn begin_sweep(&mut self) {
        self.sweep = None;
        self.sweeping = true;
        self.running += 1;
        let held: BTreeSet<_> = self.members.values().flat_map(|member| member.history.holds()).collect();
        let groups = self.members.keys().copied().collect();
        self.pool.give(Job::Sweep { groups, held });
    }

    /// The next job, of the group that comes after the one served last; the longest log when logs are too long.
    fn next_job(&mut self, now: Instant) -> Option<Job> {
        if let Some((group, running)) = self.clearing.iter_mut().find(|(_, running)| !**running) {
            *running = true;
            return Some(Job::Clear { group: *group });
        }
        // while a snapshot waits for a thread, other work that can wait leaves one free
        let wanted = self.members.values().any(|member| member.history.wants(now));
        let spare = !wanted || self.running + 1 < THREADS;
        let ids = compaction::in_turn(&self.members, self.served);
        for id in &ids {
            let Some(member) = self.members.get_mut(id) else { continue };
            if let Some(job) = urgent(*id, member, now) {
                self.served = *id;
                return Some(job);
            }
        }
        if !spare {
            return None;
        }
        let sealable = self.members.iter().filter_map(|(id, member)| {
            let unsealed = self.sealable(member, now)?;
            Some((unsealed.bytes, *id))
        });
        if let Some((_, id)) = sealable.max() {
            return self.seal(id);
        }
        for id in &ids {
            let Some(member) = self.members.get_mut(id) else { continue };
            if let Some(job) = idle(*id, member, now) {
                self.served = *id;
                return Some(job);
            }
        }
        None
    }

    fn sealable(&self, member: &Member, now: Instant) -> Option<Unsealed> {
        let history = &member.history;
        let free = history.may_seal(now);
        let status = member.shared.status.borrow();
        let unsealed = unsealed(&status, history.sealed);
        (free && status.leads && due(&self.limits, unsealed, self.pressed)).then_some(unsealed)
    }

    fn seal(&mut self, id: GroupId) -> Option<Job> {
        let member = self.members.get_mut(&id)?;
        let through = member.history.begin_seal(&member.shared.status.borrow());
        member.tell_sealing();
        Some(Job::Seal { group: id, through })
    }
}

/// Work that somebody waits for.
fn urgent(id: GroupId, member: &mut Member, now: Instant) -> Option<Job> {
    Some(match member.history.begin_urgent(now)? {
        Urgent::Install(manifest) => Job::Install { group: id, manifest },
        Urgent::Make { number, segments } => Job::Make { group: id, number, segments },
    })
}

/// Work that can wait.
fn idle(id: GroupId, member: &mut Member, now: Instant) -> Option<Job> {
    let hollow = member.shared.status.borrow().hollow;
    Some(Job::Forget { group: id, through: member.history.begin_to_forget(hollow, now)? })
}
