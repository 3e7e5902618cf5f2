//! Numbers that a seed decides.

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Rng {
    seed: u64,
    state: u64,
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        let seed = mix(seed.wrapping_mul(STEP));
        Self { seed, state: seed }
    }

    /// Numbers of their own, for the part with this name. They do not depend on what was drawn here so far, so a part that
    /// draws more than before does not shift the others.
    pub fn fork(&self, name: u64) -> Self {
        Self::new(self.seed ^ mix(name.wrapping_add(STEP)))
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and nobody iterates over it")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or_default()
    }

    /// An index below `bound`; 0 when that is 0.
    pub fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap_or_default()
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True this often in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.index(of.len())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_does_not_depend_on_what_was_drawn() {
        let (mut one, two) = (Rng::new(7), Rng::new(7));
        one.next();
        assert_eq!(one.fork(3).next(), two.fork(3).next());
        assert_ne!(one.fork(3).next(), one.fork(4).next());
        assert_ne!(Rng::new(7).next(), Rng::new(8).next());
        assert_eq!(one.below(0), 0);
        assert!((0..100).all(|_| (5..=7).contains(&one.between(5, 7))));
    }
}
