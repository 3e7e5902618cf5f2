//! Files named by their content: synced before they have a name, so a crash takes none of them. A bit that flips is found by
//! the hash, or by a block's sum, when the file is read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use canal_proto::ContentHash;

use crate::sim::rng::Rng;

/// The files of a peer.
#[derive(Debug, Default)]
pub struct Files {
    held: RefCell<BTreeMap<ContentHash, Bytes>>,
    flipped: BTreeSet<ContentHash>,
    found: RefCell<BTreeSet<ContentHash>>,
}

/// Why a file can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not here.
    Missing,
    /// It is damaged; it was noted.
    Damaged,
}

impl Files {
    /// Stores a file.
    pub fn put(&self, bytes: Bytes) -> ContentHash {
        let hash = ContentHash::of(&bytes);
        self.held.borrow_mut().entry(hash).or_insert(bytes);
        hash
    }

    /// Whether a file is here, damaged or not.
    pub fn contains(&self, hash: &ContentHash) -> bool {
        self.held.borrow().contains_key(hash)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it is not here or damaged.
    pub fn read(&self, hash: &ContentHash) -> Result<Bytes, Unreadable> {
        let held = self.held.borrow();
        let bytes = held.get(hash).ok_or(Unreadable::Missing)?;
        if self.flipped.contains(hash) {
            self.found.borrow_mut().insert(*hash);
            return Err(Unreadable::Damaged);
        }
        Ok(bytes.clone())
    }

    /// Removes a file.
    pub fn remove(&mut self, hash: &ContentHash) {
        self.held.borrow_mut().remove(hash);
        self.flipped.remove(hash);
        self.found.borrow_mut().remove(hash);
    }

    /// The files that were found damaged since the last call.
    pub fn take_damaged(&self) -> BTreeSet<ContentHash> {
        std::mem::take(&mut self.found.borrow_mut())
    }

    /// One of the files. `None`: there is none.
    pub fn any(&self, rng: &mut Rng) -> Option<ContentHash> {
        let held = self.held.borrow();
        held.keys().nth(rng.index(held.len())).copied()
    }

    /// Flips a bit in a file.
    pub fn flip(&mut self, hash: ContentHash) {
        self.flipped.insert(hash);
    }

    /// Whether a file is here and whole.
    pub fn is_whole(&self, hash: &ContentHash) -> bool {
        self.contains(hash) && !self.flipped.contains(hash)
    }

    /// Finds all damage, as if every file were read.
    pub fn find_flipped(&self) {
        self.found.borrow_mut().extend(&self.flipped);
    }

    /// Whether a file is damaged, found or not.
    pub fn is_damaged(&self) -> bool {
        !self.flipped.is_empty()
    }

    /// The names of all files.
    pub fn names(&self) -> BTreeSet<ContentHash> {
        self.held.borrow().keys().copied().collect()
    }
}
