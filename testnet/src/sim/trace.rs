//! What a run comes to in 64 bits, and its story for people.

use std::io::Write as _;

/// Hashes what happens, in its order: the same seed has to come to the same number. It is no cryptographic hash; it has to
/// tell runs apart, quickly.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    hash: u64,
    told: bool,
}

/// From FxHash: an odd number whose bits are well mixed.
const FACTOR: u64 = 0x517c_c1b7_2722_0a95;

impl Trace {
    /// Nothing has happened yet. `told`: the story goes to the standard output.
    pub fn new(told: bool) -> Self {
        Self { hash: 0, told }
    }

    /// Takes numbers in.
    pub fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(FACTOR);
        }
    }

    /// Takes bytes in.
    pub fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut number = [0; 8];
            number.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.note(&[u64::from_le_bytes(number)]);
        }
        self.note(&[bytes.len() as u64]);
    }

    /// What it comes to so far.
    pub fn hash(&self) -> u64 {
        self.hash ^ (self.hash >> 32)
    }

    /// Whether a story is told.
    pub fn is_told(&self) -> bool {
        self.told
    }

    /// Tells a line of it.
    pub fn tell(&self, at: u64, text: impl FnOnce() -> String) {
        if self.told {
            let (seconds, micros) = (at / 1_000_000, at % 1_000_000);
            // whoever closed the pipe does not want the rest
            let _ = writeln!(std::io::stdout().lock(), "{seconds:>4}.{micros:06}  {}", text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_length_count() {
        let of = |parts: &[&[u8]]| {
            let mut trace = Trace::default();
            parts.iter().for_each(|part| trace.bytes(part));
            trace.hash()
        };
        assert_eq!(of(&[b"abc"]), of(&[b"abc"]));
        assert_ne!(of(&[b"abc"]), of(&[b"acb"]));
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"a"]), of(&[b"a\0"]));
    }
}
