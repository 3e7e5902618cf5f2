//! Starts of peers: how a disk that is older than what was seen of its peer is noticed.
//!
//! A peer counts its starts on its disk before it does anything, and draws a random number for each. Both sides of a
//! stream of Raft messages say theirs before the first message; each remembers, synced, the highest it has seen of the
//! other *before* a message of that start passes. Who comes with a lower count, or with the same and another random number,
//! runs on an older disk: it may have forgotten votes and entries, so no message passes in either direction, and it is told.
//!
//! Who is told can check it: the start that was seen is none of its own. From then on it sends nothing, and begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use canal_proto::PeerId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::data::Data;

/// Peers whose starts are remembered: those that this peer shares groups with are far fewer. (The file is rewritten when
/// one of them starts.)
const MAX_SEEN: usize = 4096;

/// A start of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Its number, from 1.
    pub boot: u64,
    /// A random number.
    pub nonce: u64,
}

/// What a start means, after another was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    /// It is the one that was seen.
    Same,
    /// It is to be remembered.
    Newer,
    /// It is of an older disk.
    Older,
}

fn judge(seen: Option<Start>, comes: Start) -> Judgement {
    match seen {
        Some(seen) if seen == comes => Judgement::Same,
        Some(seen) if seen.boot >= comes.boot => Judgement::Older,
        _ => Judgement::Newer,
    }
}

/// This peer's start, and those that were seen of others.
pub struct Starts {
    own: Start,
    data: Arc<Data>,
    seen: Mutex<BTreeMap<PeerId, Start>>,
    /// One write of the file at a time.
    writing: tokio::sync::Mutex<()>,
    /// Who shares groups with this peer, as last told: the last to make room.
    shared: Mutex<BTreeSet<PeerId>>,
    forgotten: watch::Sender<Option<Start>>,
}

impl Starts {
    /// Counts this start, synced, and reads what was seen of others.
    ///
    /// # Errors
    /// When the disk can't be read or written, or the system has no random numbers.
    pub fn count(data: Arc<Data>) -> Result<Arc<Self>> {
        let boot = data.count_boot()?;
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|e| anyhow!("the system gives no random numbers: {e}"))?;
        // zero is "none" on the wire
        let own = Start { boot, nonce: u64::from_le_bytes(nonce).max(1) };
        let seen = Mutex::new(data.seen_starts()?);
        let (writing, shared, forgotten) = Default::default();
        Ok(Arc::new(Self { own, data, seen, writing, shared, forgotten }))
    }

    /// This start.
    pub fn own(&self) -> Start {
        self.own
    }

    /// Says which peers share groups with this one.
    pub fn share(&self, peers: BTreeSet<PeerId>) {
        *self.shared.lock() = peers;
    }

    /// Whether messages of this start of a peer may pass. What is new is on disk when this returns.
    ///
    /// # Errors
    /// The newer start that was seen, or `None` when this start could not be written down: no message may pass.
    pub async fn admit(self: &Arc<Self>, peer: PeerId, comes: Start) -> Result<(), Option<Start>> {
        loop {
            let seen = self.seen.lock().get(&peer).copied();
            match judge(seen, comes) {
                Judgement::Same => return Ok(()),
                Judgement::Older => return Err(seen),
                Judgement::Newer => {}
            }
            let _writing = self.writing.lock().await;
            let mut all = self.seen.lock().clone();
            if all.get(&peer).copied() != seen {
                continue;
            }
            all.insert(peer, comes);
            self.make_room(&mut all, peer);
            let (data, write) = (self.data.clone(), all.clone());
            let written = tokio::task::spawn_blocking(move || data.set_seen_starts(&write)).await;
            if let Err(error) = written.map_err(anyhow::Error::from).and_then(|written| written) {
                tracing::error!(%peer, %error, "a start of a peer can't be written down; it is not talked to");
                return Err(None);
            }
            *self.seen.lock() = all;
            return Ok(());
        }
    }

    fn make_room(&self, all: &mut BTreeMap<PeerId, Start>, keep: PeerId) {
        if all.len() > MAX_SEEN {
            let shared = self.shared.lock();
            all.retain(|peer, _| *peer == keep || shared.contains(peer));
        }
        while all.len() > MAX_SEEN
            && let Some(other) = all.keys().find(|peer| **peer != keep).copied()
        {
            tracing::warn!(peer = %other, "its starts are no longer remembered: there are too many peers");
            all.remove(&other);
        }
    }

    /// Another peer says that it has seen this start of this peer, and that the disk here is older. Believed if it can be:
    /// when the start is neither this one nor one before it.
    pub fn told(&self, by: PeerId, seen: Start) {
        if judge(Some(seen), self.own) != Judgement::Older || seen.boot == 0 {
            tracing::warn!(%by, seen = seen.boot, own = self.own.boot, "it takes this disk for older than it is; ignored");
            return;
        }
        tracing::error!(
            %by, seen = seen.boot, own = self.own.boot,
            "this peer has started more often than its disk says: the disk is older, and what it holds may contradict what \
             this peer has promised; it is moved aside, and this peer begins anew"
        );
        self.give_up(seen);
    }

    /// A description of this peer names this start of it: one that this disk does not know of, or one before this.
    pub fn heard_of(&self, by: PeerId, seen: Start) {
        if judge(Some(seen), self.own) == Judgement::Older {
            self.told(by, seen);
        }
    }

    /// What this peer holds can't be trusted: it sends nothing from now on, and begins anew.
    pub fn give_up(&self, seen: Start) {
        self.forgotten.send_if_modified(|forgotten| {
            let first = forgotten.is_none();
            let higher = forgotten.is_none_or(|known| known.boot < seen.boot);
            if higher {
                *forgotten = Some(seen);
            }
            first
        });
    }

    /// Whether what this peer holds can't be trusted.
    pub fn is_forgotten(&self) -> bool {
        self.forgotten.borrow().is_some()
    }

    /// Returns when what this peer holds can't be trusted, with the highest start seen of it.
    pub async fn forgotten(&self) -> Start {
        let mut forgotten = self.forgotten.subscribe();
        match forgotten.wait_for(Option::is_some).await {
            Ok(seen) => seen.unwrap_or(self.own),
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn start(boot: u64, nonce: u64) -> Start {
        Start { boot, nonce }
    }

    fn id(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    #[test]
    fn a_lower_count_is_older_and_so_is_the_same_with_another_number() {
        let cases = [
            (None, start(1, 1), Judgement::Newer),
            (Some(start(3, 9)), start(3, 9), Judgement::Same),
            (Some(start(3, 9)), start(4, 1), Judgement::Newer),
            (Some(start(3, 9)), start(3, 8), Judgement::Older),
            (Some(start(3, 9)), start(2, 9), Judgement::Older),
        ];
        for (seen, comes, expected) in cases {
            assert_eq!(judge(seen, comes), expected, "{seen:?} {comes:?}");
        }
    }

    #[tokio::test]
    async fn what_was_seen_outlives_a_restart_and_what_is_older_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let starts = Starts::count(Arc::new(Data::open(dir.path()).unwrap())).unwrap();
        assert_eq!(starts.own().boot, 1);
        assert_eq!(starts.admit(id(1), start(5, 50)).await, Ok(()));
        assert_eq!(starts.admit(id(1), start(5, 50)).await, Ok(()));
        assert_eq!(starts.admit(id(1), start(5, 51)).await, Err(Some(start(5, 50))));
        drop(starts);
        let starts = Starts::count(Arc::new(Data::open(dir.path()).unwrap())).unwrap();
        assert_eq!(starts.own().boot, 2);
        assert_eq!(starts.admit(id(1), start(4, 1)).await, Err(Some(start(5, 50))));
        assert_eq!(starts.admit(id(1), start(6, 1)).await, Ok(()));
    }

    #[tokio::test]
    async fn a_peer_believes_only_what_it_can_check() {
        let dir = tempfile::tempdir().unwrap();
        let starts = Starts::count(Arc::new(Data::open(dir.path()).unwrap())).unwrap();
        let own = starts.own();
        for seen in [own, start(0, 7), start(0, 0)] {
            starts.told(id(1), seen);
            assert!(!starts.is_forgotten(), "{seen:?}");
        }
        starts.told(id(1), start(own.boot, own.nonce ^ 1));
        starts.told(id(2), start(9, 3));
        starts.told(id(3), start(4, 3));
        assert_eq!(starts.forgotten().await, start(9, 3));
    }

    #[tokio::test]
    async fn the_memory_is_bounded_and_keeps_those_that_share_groups() {
        let dir = tempfile::tempdir().unwrap();
        let starts = Starts::count(Arc::new(Data::open(dir.path()).unwrap())).unwrap();
        let peer = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(n as u64).to_le_bytes());
            PeerId::from_public_key(key)
        };
        *starts.seen.lock() = (0..MAX_SEEN).map(|n| (peer(n), start(1, 1))).collect();
        starts.share([peer(7)].into());
        assert_eq!(starts.admit(peer(MAX_SEEN), start(1, 1)).await, Ok(()));
        let kept: Vec<PeerId> = starts.seen.lock().keys().copied().collect();
        assert_eq!(kept, BTreeSet::from([peer(7), peer(MAX_SEEN)]).into_iter().collect::<Vec<_>>());
    }
}
