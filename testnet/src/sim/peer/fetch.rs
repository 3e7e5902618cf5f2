//! Files that a peer gets from others: piece by piece, each checked against its hash before it counts, from the next source
//! when one has not got it or is silent.

use std::collections::VecDeque;

use bytes::Bytes;
use canal_proto::peer::Piece;
use canal_proto::{ContentHash, GroupId};

use super::Inbound;
use super::history::Report;
use crate::sim::around::Machine;
use crate::sim::faults::Kind;
use crate::sim::queue::Micros;
use crate::sim::world::{Event, World};

/// How long a piece is waited for.
const PATIENCE: Micros = 1_000_000;

/// Files to be fetched.
pub struct Task {
    pub(in crate::sim) group: GroupId,
    pieces: VecDeque<Piece>,
    sources: Vec<Machine>,
    source: usize,
    /// Number of the question that is waited for.
    asked: u64,
}

impl World {
    /// Begins to fetch. What becomes of it is reported under the number.
    pub(in crate::sim) fn begin_fetch(
        &mut self,
        peer: Machine,
        group: GroupId,
        number: u64,
        pieces: Vec<Piece>,
        sources: Vec<Machine>,
    ) {
        let Some(live) = self.peers[peer].live.as_mut() else { return };
        // one task a group: a later one takes the place of an earlier
        live.fetches.retain(|_, task| task.group != group);
        live.fetches.insert(number, Task { group, pieces: pieces.into(), sources, source: 0, asked: 0 });
        self.fetch_next(peer, number);
    }

    fn fetch_next(&mut self, peer: Machine, number: u64) {
        let start = self.peers[peer].start;
        let held = &mut self.peers[peer];
        let Some(live) = held.live.as_mut() else { return };
        let Some(task) = live.fetches.get_mut(&number) else { return };
        let here =
            |piece: &Piece| ContentHash::from_slice(&piece.hash).is_ok_and(|hash| held.disk.files.contains(&hash));
        while task.pieces.pop_front_if(|piece| here(piece)).is_some() {}
        let Some(hash) = task.pieces.front().map(|piece| ContentHash::from_slice(&piece.hash)) else {
            return self.fetched(peer, number, true);
        };
        let (Ok(hash), Some(source)) = (hash, task.sources.get(task.source).copied()) else {
            return self.fetched(peer, number, false);
        };
        task.asked += 1;
        let asked = task.asked;
        let event = Event::Fetch { from: peer, start, to: source, number, asked, hash };
        if let [Some(at), _] = self.network.send(peer, source, self.now) {
            self.queue.push(at, event);
        }
        self.queue.push(self.now + PATIENCE, Event::Fetched { to: peer, start, number, asked, bytes: None });
    }

    fn fetched(&mut self, peer: Machine, number: u64, all: bool) {
        let Some(live) = self.peers[peer].live.as_mut() else { return };
        let Some(task) = live.fetches.remove(&number) else { return };
        live.inbox.push_back(Inbound::Report(Report::Fetched { group: task.group, number, all }));
    }

    /// A peer is asked for a file.
    pub(in crate::sim) fn fetch_asked(
        &mut self,
        from: Machine,
        start: u64,
        to: Machine,
        number: u64,
        asked: u64,
        hash: ContentHash,
    ) {
        if self.peers[to].live.is_none() {
            return;
        }
        let strength = self.setup.faults.strength(Kind::FailedFetch);
        if self.faulty && strength > 0 && self.disk_rng.chance(strength) {
            self.tally.fault(Kind::FailedFetch);
            return;
        }
        // what is damaged is found when it is read, as by any reader
        let bytes = self.peers[to].disk.files.read(&hash).ok();
        let found = bytes.unwrap_or_default();
        if let [Some(at), _] = self.network.send(to, from, self.now) {
            let event = Event::Fetched { to: from, start, number, asked, bytes: Some(found) };
            self.queue.push(at, event);
        }
    }

    /// A file has come, or nothing has come in time.
    pub(in crate::sim) fn fetch_answered(&mut self, peer: Machine, number: u64, asked: u64, bytes: Option<Bytes>) {
        let held = &mut self.peers[peer];
        let Some(live) = held.live.as_mut() else { return };
        let Some(task) = live.fetches.get_mut(&number).filter(|task| task.asked == asked) else { return };
        let wanted = task.pieces.front().and_then(|piece| ContentHash::from_slice(&piece.hash).ok());
        match bytes.filter(|bytes| Some(ContentHash::of(bytes)) == wanted) {
            Some(bytes) => {
                held.disk.files.put(bytes);
            }
            None => task.source += 1,
        }
        self.fetch_next(peer, number);
        self.turn(peer);
    }
}
