//! The indexes of segments, as many in memory as there is room for.

use std::collections::BTreeMap;
use std::sync::Arc;

use canal_proto::ContentHash;

/// Blocks whose places are kept in memory at most, 16 bytes each: 8 MiB, the places of 16 GiB of events.
const MAX_BLOCKS: usize = 512 << 10;

/// Where a segment's blocks begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// Offset of the first event and place in the file, of each block.
    pub blocks: Vec<(u64, u64)>,
    /// Offset behind the last event.
    pub end: u64,
    /// Place behind the last block.
    pub behind: u64,
}

/// The indexes that were used last.
#[derive(Default)]
pub(super) struct Cache {
    indexes: BTreeMap<ContentHash, (u64, Arc<Index>)>,
    /// By when they were used.
    order: BTreeMap<u64, ContentHash>,
    uses: u64,
    blocks: usize,
}

impl Cache {
    pub fn get(&mut self, hash: &ContentHash) -> Option<Arc<Index>> {
        let (used, index) = self.indexes.get_mut(hash)?;
        self.order.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.order.insert(self.uses, *hash);
        Some(index.clone())
    }

    pub fn put(&mut self, hash: ContentHash, index: Arc<Index>) {
        self.forget(&hash);
        self.uses += 1;
        self.blocks += index.blocks.len();
        self.indexes.insert(hash, (self.uses, index));
        self.order.insert(self.uses, hash);
        while self.blocks > MAX_BLOCKS
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.forget(&oldest);
        }
    }

    pub fn forget(&mut self, hash: &ContentHash) {
        if let Some((used, index)) = self.indexes.remove(hash) {
            self.order.remove(&used);
            self.blocks -= index.blocks.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ones_used_last_stay() {
        let mut cache = Cache::default();
        let hash = |n: u8| ContentHash([n; 32]);
        let half = || Arc::new(Index { blocks: vec![(0, 0); MAX_BLOCKS / 2], end: 1, behind: 1 });
        cache.put(hash(1), half());
        cache.put(hash(2), half());
        assert!(cache.get(&hash(1)).is_some());
        cache.put(hash(3), half());
        assert!(cache.get(&hash(1)).is_some() && cache.get(&hash(2)).is_none() && cache.get(&hash(3)).is_some());
        cache.put(hash(3), half());
        assert_eq!(cache.blocks, MAX_BLOCKS / 2 * 2);
        cache.forget(&hash(1));
        cache.forget(&hash(3));
        assert!(cache.blocks == 0 && cache.order.is_empty() && cache.indexes.is_empty());
    }
}
