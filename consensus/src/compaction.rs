//! What a replica's driver keeps of one group to move its events from the log to files: which seals are waited for, how
//! far the log may be cut, which work is under way, and which snapshots come and go.
//!
//! Nothing here does any work; the worker asks what comes next and tells what became of it. The rule that all of it is
//! for: an entry leaves the log only when everything that it did is on disk elsewhere ([`History::cut`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use canal_proto::log::Segment;
use canal_proto::peer::{Manifest, Piece, Replica};
use canal_proto::{ContentHash, GroupId, PeerId};
use raft::eraftpb::Message;

use crate::core::group::{Install, Status};
use crate::core::sealing;

mod rows;

pub use rows::{load, note_replaced, notes, old_notes, segments_of, unsealed};

/// A snapshot that was not asked for again in this time is not needed any more: followers answer heartbeats far more often.
const STILL_WANTED: Duration = Duration::from_secs(2);
/// Wait after work on a group's files failed: the disk may be full, or the other replicas away.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// How long what was fetched of a snapshot is kept while its leader is away, or offers none.
const KEEP_PART: Duration = Duration::from_hours(6);
/// Seals in a row that are not taken, before it is told: one is, now and then, when a topic comes or goes.
const TELL_REFUSED: u32 = 4;

/// What the files threads do for a group; one thing at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Takes over a snapshot.
    Install,
    /// Makes the files of a seal that was applied.
    Make,
    /// Makes the files of a seal that will be proposed.
    Seal,
    /// Writes a snapshot.
    Dump,
    /// Removes rows that nobody needs any more.
    Forget,
}

/// Segments of a seal that was applied, that are not known to be here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lacking {
    /// Names it in its group.
    pub number: u64,
    /// Index up to which the seal seals; none when files of earlier seals were lost.
    pub through: Option<u64>,
    pub segments: Vec<Segment>,
    /// They can't be made here: another replica has to give them.
    pub fetch: bool,
    /// A later seal's segment has taken the place of one of them, which was not made: what it held is only here when that
    /// one is.
    pub superseded: bool,
}

impl Lacking {
    /// The files that these segments are.
    pub fn pieces(&self) -> Vec<Piece> {
        let piece = |segment: &Segment| Piece { hash: segment.hash.clone(), size: segment.size };
        self.segments.iter().map(piece).collect()
    }
}

/// Work that somebody waits for.
#[derive(Debug)]
pub enum Urgent {
    /// Takes over the snapshot of this manifest.
    Install(Manifest),
    /// Makes the files of a seal that was applied.
    Make {
        /// Names it in its group.
        number: u64,
        segments: Vec<Segment>,
    },
}

/// How far a log that may be cut at `cut` is cut beside its followers: one that lacks at most `keep` entries is spared a
/// snapshot, unless logs are too long. `None`: there is nothing to cut.
pub fn cut_beside(cut: u64, status: &Status, keep: u64, pressed: bool) -> Option<u64> {
    let near = status.last.saturating_sub(keep);
    let followers = status.progress.values().filter(|progress| progress.recent && !progress.snapshot);
    let slowest = followers.map(|progress| progress.matched).min().filter(|slowest| *slowest >= near && !pressed);
    let cut = slowest.map_or(cut, |slowest| cut.min(slowest));
    (cut >= status.first).then_some(cut)
}

/// The other replicas, in the order in which they are asked for files: the leader has them for certain.
pub fn givers(status: &Status) -> Vec<&Replica> {
    let replicas = status.configuration.replicas.iter();
    let mut replicas: Vec<_> = replicas.filter(|replica| replica.id != status.replica).collect();
    replicas.sort_by_key(|replica| replica.id != status.leader);
    replicas
}

/// The groups in the order in which they are served: those that come after the one served last first.
pub fn in_turn<T>(groups: &BTreeMap<GroupId, T>, served: GroupId) -> Vec<GroupId> {
    let behind = groups.range(served..).skip_while(|(id, _)| **id == served);
    behind.chain(groups.range(..=served)).map(|(id, _)| *id).collect()
}

/// A snapshot that was written here.
#[derive(Debug)]
pub struct Prepared {
    pub manifest: Manifest,
}

/// A snapshot that a leader has offered, whose files are being fetched.
#[derive(Debug)]
pub struct Offered {
    pub from: PeerId,
    pub message: Box<Message>,
    pub manifest: Manifest,
    pub number: u64,
}

/// A group's history, as its driver knows it.
#[derive(Debug, Default)]
pub struct History {
    /// Segments that are waited for, by seal, the oldest first.
    pub lacking: VecDeque<Lacking>,
    /// Index up to which the last applied seal seals.
    pub sealed: u64,
    /// Index up to which all segments of seals are here.
    pub here: u64,
    /// The applied index that is on disk for certain.
    pub flushed: u64,
    /// What is under way.
    pub work: Option<Work>,
    /// Files of a seal that was proposed here, and has not come to anything yet.
    pub proposed: Option<Vec<Segment>>,
    /// Seals in a row that were not taken.
    pub refused: u32,
    /// When a snapshot was asked for last that could not be begun.
    pub wanted: Option<Instant>,
    /// The snapshot that is handed out.
    pub prepared: Option<Prepared>,
    /// The snapshot that is fetched.
    pub offered: Option<Offered>,
    /// The snapshot that was not fetched to its end, and when it was given up.
    pub part: Option<(Manifest, Instant)>,
    /// The snapshot that is taken over, with what its record names.
    pub installing: Option<(Install, Manifest)>,
    /// Segments are being fetched; the number of the task.
    pub fetching: Option<u64>,
    /// Rows may be there that nobody needs any more.
    pub leftovers: bool,
    /// Numbers given to what is waited for.
    pub numbers: u64,
    /// When work that failed may begin again.
    pub not_before: BTreeMap<u8, Instant>,
}

impl History {
    /// How far the log may be cut now, if at all: seals whose files are all here, state that is flushed, and nothing
    /// that is being read to make files.
    pub fn cut(&self) -> Option<u64> {
        let index = self.here.min(self.flushed);
        #[cfg(feature = "mutants")]
        let index = if crate::mutants::is(crate::mutants::Mutant::CutsUnflushed) { self.here } else { index };
        if self.lacking.iter().any(|lacking| lacking.through.is_none()) {
            return None;
        }
        let still = matches!(self.work, None | Some(Work::Forget)) && self.installing.is_none();
        (still && index > 0).then_some(index)
    }

    /// A seal was applied; these are its segments.
    pub fn sealed(&mut self, through: u64, segments: Vec<Segment>) {
        self.sealed = self.sealed.max(through);
        self.leftovers = true;
        // one without segments counts once those before it are here
        let number = self.number();
        self.lacking.push_back(Lacking { number, through: Some(through), segments, ..Lacking::default() });
        self.advance();
    }

    /// All segments that were waited for under this number are here, but for these. `superseded`: or a later seal's have
    /// taken the place of some, which were not made.
    pub fn made(&mut self, number: u64, lacking: Vec<Segment>, superseded: bool) {
        if let Some(first) = self.lacking.iter_mut().find(|waiting| waiting.number == number) {
            first.fetch = !lacking.is_empty();
            first.segments = lacking;
            first.superseded |= superseded;
        }
        self.advance();
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A file that was here is not any more. The log is not cut before it is back.
    pub fn lost(&mut self, segment: Segment) {
        // what is under way for others may end before this is looked at, so it stands for itself
        let number = self.number();
        self.lacking.push_front(Lacking { number, segments: vec![segment], ..Lacking::default() });
    }

    /// Files are damaged. Says whether the snapshot that is handed out names one of them: nobody can take it over any more,
    /// and it is not handed out from now on.
    pub fn damaged(&mut self, files: &[ContentHash]) -> bool {
        let is_damaged = |piece: &Piece| files.iter().any(|hash| hash.0[..] == piece.hash[..]);
        let spoilt =
            |prepared: &mut Prepared| prepared.manifest.rows.iter().chain(&prepared.manifest.segments).any(is_damaged);
        self.prepared.take_if(spoilt).is_some()
    }

    fn advance(&mut self) {
        while let Some(first) = self.lacking.pop_front_if(|first| first.segments.is_empty()) {
            if let Some(through) = first.through.filter(|_| !first.superseded) {
                self.here = self.here.max(through);
            }
        }
    }

    /// The seal whose segments are to be made, or fetched, next.
    pub fn next_lacking(&self, fetch: bool) -> Option<&Lacking> {
        self.lacking.front().filter(|first| first.fetch == fetch)
    }

    /// The seal whose segments are to be asked for now.
    pub fn to_fetch(&self, now: Instant) -> Option<&Lacking> {
        let busy = self.fetching.is_some() || self.offered.is_some() || self.installing.is_some();
        self.next_lacking(true).filter(|_| !busy && self.rested(Work::Make, now))
    }

    /// Begins what somebody waits for.
    pub fn begin_urgent(&mut self, now: Instant) -> Option<Urgent> {
        if self.work.is_some() {
            return None;
        }
        if let Some((_, manifest)) = &self.installing {
            self.work = Some(Work::Install);
            return Some(Urgent::Install(manifest.clone()));
        }
        let lacking = self.next_lacking(false).filter(|_| self.rested(Work::Make, now))?;
        let (number, segments) = (lacking.number, lacking.segments.clone());
        self.work = Some(Work::Make);
        Some(Urgent::Make { number, segments })
    }

    /// Whether a seal could be made now, if one is due.
    pub fn may_seal(&self, now: Instant) -> bool {
        self.work.is_none()
            && self.proposed.is_none()
            && self.lacking.is_empty()
            && !self.wants(now)
            && self.rested(Work::Seal, now)
    }

    /// Begins to make a seal, up to this index.
    pub fn begin_seal(&mut self, status: &Status) -> u64 {
        self.work = Some(Work::Seal);
        let sealed = self.sealed.max(status.first.saturating_sub(1));
        sealing::reach(sealed, status.applied, unsealed(status, self.sealed))
    }

    /// A seal that is being made, or was proposed, goes on from where the topics stood when it was begun: until it stands, no
    /// event behind that may go.
    pub fn is_sealing(&self) -> bool {
        self.work == Some(Work::Seal) || self.proposed.is_some()
    }

    /// A seal that was proposed has come to something. Says how often in a row none was taken, at each of some numbers that
    /// somebody should know of.
    pub fn seal_ended(&mut self, taken: bool) -> Option<u32> {
        self.proposed = None;
        self.refused = if taken { 0 } else { self.refused.saturating_add(1) };
        (self.refused >= TELL_REFUSED && self.refused.is_power_of_two()).then_some(self.refused)
    }

    /// A snapshot could not be fetched to its end. What there is of it is kept for the next one, which mostly names the same
    /// files.
    pub fn interrupted(&mut self, offered: Offered, now: Instant) {
        self.part = Some((offered.manifest, now));
    }

    /// Whether files of a snapshot that nobody has offered again for long need not be kept any more.
    pub fn let_go_of_part(&mut self, now: Instant) -> bool {
        self.part.take_if(|(_, since)| now.saturating_duration_since(*since) >= KEEP_PART).is_some()
    }

    /// Begins to remove rows that nobody needs any more, of events up to this index.
    pub fn begin_to_forget(&mut self, hollow: bool, now: Instant) -> Option<u64> {
        let free = self.work.is_none() && self.installing.is_none();
        if !(free && self.leftovers && !hollow && self.rested(Work::Forget, now)) {
            return None;
        }
        self.leftovers = false;
        self.work = Some(Work::Forget);
        Some(self.here)
    }

    /// A task of segments to be fetched has ended; false when it was none of these. Whatever came of it, what the rows name
    /// now is looked at again before anything else is asked for: a later seal may have taken the place of a segment that
    /// nobody has any more.
    pub fn fetched(&mut self, number: u64, all: bool, now: Instant) -> bool {
        if self.fetching != Some(number) {
            return false;
        }
        self.fetching = None;
        if let Some(first) = self.lacking.front_mut() {
            first.fetch = false;
        }
        if !all {
            self.rest(Work::Make, now);
        }
        true
    }

    /// Whether a snapshot is waited for. It is asked for again and again while a follower needs it.
    pub fn wants(&self, now: Instant) -> bool {
        self.wanted.is_some_and(|asked| now < asked + STILL_WANTED)
    }

    /// Whether this work may begin, after an earlier failure of it.
    pub fn rested(&self, work: Work, now: Instant) -> bool {
        self.not_before.get(&(work as u8)).is_none_or(|until| now >= *until)
    }

    /// Work has failed, and is tried again later.
    pub fn rest(&mut self, work: Work, now: Instant) {
        self.not_before.insert(work as u8, now + AFTER_FAILURE);
    }

    /// Files that are needed although no row names them, or none may yet.
    pub fn holds(&self) -> impl Iterator<Item = ContentHash> + '_ {
        let manifests = [
            self.prepared.as_ref().map(|prepared| &prepared.manifest),
            self.offered.as_ref().map(|offered| &offered.manifest),
            self.part.as_ref().map(|(manifest, _)| manifest),
            self.installing.as_ref().map(|(_, manifest)| manifest),
        ];
        let pieces =
            manifests.into_iter().flatten().flat_map(|manifest| manifest.rows.iter().chain(&manifest.segments));
        let lacking = self.lacking.iter().flat_map(|lacking| &lacking.segments);
        let segments = self.proposed.iter().flatten().chain(lacking);
        let hashes = pieces.map(|piece| &piece.hash).chain(segments.map(|segment| &segment.hash));
        hashes.filter_map(|hash| ContentHash::from_slice(hash).ok())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn segment(n: u8) -> Segment {
        Segment { topic: 1, first: n.into(), count: 1, hash: vec![n; 32].into(), ..Segment::default() }
    }

    #[test]
    fn the_log_is_cut_only_where_files_and_flushed_state_are() {
        let mut history = History::default();
        assert_eq!(history.cut(), None);
        history.sealed(10, vec![segment(1)]);
        history.sealed(20, Vec::new());
        history.sealed(30, vec![segment(2), segment(3)]);
        history.flushed = 25;
        assert_eq!(history.cut(), None);
        history.made(9, Vec::new(), false);
        assert_eq!(history.here, 0, "nobody waits for that");
        history.made(1, Vec::new(), false);
        assert_eq!((history.here, history.cut()), (20, Some(20)));
        history.made(3, Vec::new(), false);
        assert_eq!((history.here, history.cut()), (30, Some(25)));
        history.flushed = 90;
        for reads in [Work::Dump, Work::Make, Work::Seal, Work::Install] {
            history.work = Some(reads);
            assert_eq!(history.cut(), None, "{reads:?}");
        }
        history.work = Some(Work::Forget);
        assert_eq!(history.cut(), Some(30));
    }

    #[test]
    fn a_file_that_is_lost_keeps_the_log() {
        let mut history = History { flushed: 100, ..History::default() };
        history.sealed(10, Vec::new());
        history.sealed(20, vec![segment(2)]);
        assert_eq!(history.cut(), Some(10));
        history.lost(segment(1));
        history.lost(segment(0));
        assert_eq!(history.cut(), None);
        assert_eq!(history.next_lacking(false).unwrap().segments, [segment(0)]);
        // what was made meanwhile does not stand in for what was lost
        history.made(2, Vec::new(), false);
        history.made(3, Vec::new(), false);
        assert_eq!(history.cut(), None);
        history.made(4, vec![segment(0)], false);
        assert_eq!(history.cut(), None);
        history.made(4, Vec::new(), false);
        assert_eq!(history.cut(), Some(20));
    }

    #[test]
    fn what_a_later_segment_takes_over_is_here_when_that_one_is() {
        let mut history = History { flushed: 100, ..History::default() };
        history.sealed(10, vec![segment(1)]);
        history.made(1, Vec::new(), false);
        history.sealed(20, vec![segment(2), segment(3)]);
        history.sealed(30, vec![segment(4)]);
        history.sealed(40, Vec::new());
        // the third is to be fetched, and the fourth has taken the place of the second before it was made
        history.made(2, vec![segment(3)], true);
        assert_eq!(history.next_lacking(true).map(|lacking| lacking.segments.len()), Some(1));
        history.made(2, Vec::new(), false);
        assert_eq!(history.cut(), Some(10));
        history.made(3, Vec::new(), false);
        assert_eq!(history.cut(), Some(40));
    }

    #[test]
    fn files_are_held_while_something_is_made_of_them() {
        let mut history = History::default();
        history.sealed(10, vec![segment(1)]);
        history.proposed = Some(vec![segment(2)]);
        let piece = |n: u8| canal_proto::peer::Piece { hash: vec![n; 32].into(), size: 1 };
        let manifest = Manifest { rows: vec![piece(3)], segments: vec![piece(4)], ..Manifest::default() };
        history.prepared = Some(Prepared { manifest });
        let held: Vec<u8> = history.holds().map(|hash| hash.0[0]).collect();
        assert_eq!(held, [3, 4, 2, 1]);
        history.prepared = None;
        history.made(1, Vec::new(), false);
        history.proposed = None;
        assert_eq!(history.holds().count(), 0);
    }

    #[test]
    fn what_was_fetched_of_a_snapshot_is_kept_for_a_while() {
        let mut history = History::default();
        let now = Instant::now();
        let manifest = Manifest { rows: vec![Piece { hash: vec![3; 32].into(), size: 1 }], ..Manifest::default() };
        let offered = Offered { from: PeerId::from_public_key([1; 32]), message: Box::default(), manifest, number: 1 };
        history.interrupted(offered, now);
        assert_eq!(history.holds().map(|hash| hash.0[0]).collect::<Vec<_>>(), [3]);
        assert!(!history.let_go_of_part(now + KEEP_PART / 2));
        assert!(history.let_go_of_part(now + KEEP_PART) && history.holds().count() == 0);
        assert!(!history.let_go_of_part(now + KEEP_PART));
    }

    #[test]
    fn seals_that_are_refused_again_and_again_are_told() {
        let mut history = History { proposed: Some(Vec::new()), ..History::default() };
        assert!(history.is_sealing());
        let told: Vec<u32> = (0..20).filter_map(|_| history.seal_ended(false)).collect();
        assert_eq!(told, [4, 8, 16]);
        assert!(!history.is_sealing());
        assert_eq!(history.seal_ended(true), None);
        assert_eq!((0..3).filter_map(|_| history.seal_ended(false)).count(), 0);
    }

    #[test]
    fn a_snapshot_with_a_damaged_piece_is_not_handed_out() {
        let piece = |n: u8| Piece { hash: vec![n; 32].into(), size: 1 };
        let manifest = Manifest { rows: vec![piece(3)], segments: vec![piece(4)], ..Manifest::default() };
        for n in [3, 4] {
            let mut history = History { prepared: Some(Prepared { manifest: manifest.clone() }), ..History::default() };
            assert!(!history.damaged(&[ContentHash([5; 32])]) && history.prepared.is_some());
            assert!(history.damaged(&[ContentHash([5; 32]), ContentHash([n; 32])]) && history.prepared.is_none());
            assert!(!history.damaged(&[ContentHash([n; 32])]), "there is none any more");
        }
    }

    #[test]
    fn a_segment_that_nobody_gives_is_looked_for_in_the_rows_again() {
        let mut history = History { flushed: 100, ..History::default() };
        let now = Instant::now();
        history.sealed(10, vec![segment(1)]);
        history.made(1, vec![segment(1)], false);
        assert!(history.next_lacking(true).is_some());
        history.fetching = Some(7);
        assert!(!history.fetched(6, false, now), "another task");
        assert!(history.fetched(7, false, now));
        assert!(history.next_lacking(true).is_none() && history.next_lacking(false).is_some());
        assert!(!history.rested(Work::Make, now));
        // a later seal's has taken its place
        history.sealed(20, vec![segment(2)]);
        history.made(1, Vec::new(), true);
        history.made(2, Vec::new(), false);
        assert_eq!(history.cut(), Some(20));
    }

    #[test]
    fn work_that_failed_rests_and_other_work_goes_on() {
        let mut history = History::default();
        let now = Instant::now();
        history.rest(Work::Seal, now);
        assert!(!history.rested(Work::Seal, now));
        assert!(history.rested(Work::Make, now));
        assert!(history.rested(Work::Seal, now + AFTER_FAILURE));
    }
}
