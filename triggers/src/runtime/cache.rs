//! Compiled components, by content hash: bounded, the least recently used one leaves first.

use std::collections::BTreeMap;

use canal_proto::ContentHash;

/// A bounded map that forgets what was not used for longest.
pub struct Cache<T> {
    entries: BTreeMap<ContentHash, (u64, T)>,
    capacity: usize,
    turn: u64,
}

impl<T: Clone> Cache<T> {
    /// Holds `capacity` entries, at least one.
    pub fn new(capacity: usize) -> Self {
        Self { entries: BTreeMap::new(), capacity: capacity.max(1), turn: 0 }
    }

    /// The entry, which is then the most recently used.
    pub fn get(&mut self, hash: &ContentHash) -> Option<T> {
        self.turn += 1;
        let (used, value) = self.entries.get_mut(hash)?;
        *used = self.turn;
        Some(value.clone())
    }

    /// Whether it is there; not a use.
    pub fn contains(&self, hash: &ContentHash) -> bool {
        self.entries.contains_key(hash)
    }

    /// Adds an entry, unless it stands already, and makes room for it. A run that goes on keeps what it uses.
    pub fn insert(&mut self, hash: ContentHash, value: T) {
        self.turn += 1;
        self.entries.entry(hash).or_insert((self.turn, value)).0 = self.turn;
        while self.entries.len() > self.capacity {
            let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used).map(|(hash, _)| *hash);
            let Some(oldest) = oldest else { return };
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_leaves() {
        let [a, b, c] = ["a", "b", "c"].map(|text| ContentHash::of(text.as_bytes()));
        let mut cache = Cache::new(2);
        cache.insert(a, 1);
        cache.insert(b, 2);
        assert_eq!(cache.get(&a), Some(1));
        cache.insert(c, 3);
        assert_eq!((cache.get(&a), cache.get(&b), cache.get(&c)), (Some(1), None, Some(3)));
        cache.insert(a, 9);
        assert_eq!(cache.get(&a), Some(1), "what stands is what the hash names");
    }
}
