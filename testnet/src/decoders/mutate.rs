//! Inputs that are nearly right: changes of what a decoder takes. A seed decides all of them.

/// Numbers that a seed decides: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next_u64() % (bound.max(1) as u64)).unwrap_or(0)
    }
}

/// Lengths and numbers at which readers go wrong, as the wire has them: little-endian, and as varints.
const NUMBERS: [u64; 9] = [0, 1, 0x7f, 0xff, 0xffff, u32::MAX as u64, 1 << 32, i64::MAX as u64, u64::MAX];

/// Bytes that an input never exceeds by mutation: what a frame takes, about.
const MAX: usize = 4 << 20;

/// A change of one input of a corpus: some bits, a cut, another length, a part of another input, a part many times.
pub fn mutate(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = pick(corpus, rng).to_vec();
    for _ in 0..=rng.below(4) {
        change(&mut bytes, corpus, rng);
        bytes.truncate(MAX);
    }
    bytes
}

fn pick<'a>(corpus: &'a [Vec<u8>], rng: &mut Rng) -> &'a [u8] {
    corpus.get(rng.below(corpus.len())).map(Vec::as_slice).unwrap_or_default()
}

fn change(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.below(bytes.len() + 1);
    match rng.below(9) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = u8::try_from(rng.below(256)).unwrap_or_default();
            }
        }
        3 => bytes.truncate(at),
        4 => overwrite(bytes, at, &number(rng)),
        5 => insert(bytes, at, &number(rng)),
        6 => {
            let other = pick(corpus, rng);
            let from = rng.below(other.len());
            let to = (from + 1 + rng.below(64)).min(other.len());
            insert(bytes, at, other.get(from..to).unwrap_or_default());
        }
        7 => {
            let end = (at + 1 + rng.below(32)).min(bytes.len());
            bytes.drain(at..end.max(at));
        }
        _ => {
            let end = (at + 1 + rng.below(16)).min(bytes.len());
            let part = bytes.get(at..end).unwrap_or_default().repeat(1 << rng.below(8));
            insert(bytes, at, &part);
        }
    }
}

fn number(rng: &mut Rng) -> Vec<u8> {
    let number = NUMBERS.get(rng.below(NUMBERS.len())).copied().unwrap_or_default();
    match rng.below(3) {
        0 => u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes().to_vec(),
        1 => number.to_le_bytes().to_vec(),
        _ => {
            let mut varint = Vec::new();
            prost::encoding::encode_varint(number, &mut varint);
            varint
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes.iter_mut().skip(at).zip(with).for_each(|(to, from)| *to = *from);
}

fn insert(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    let at = at.min(bytes.len());
    bytes.splice(at..at, what.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_and_most_inputs_are_changed() {
        let corpus = vec![b"one input of some length".to_vec(), b"and another".to_vec()];
        let run = |seed: u64| (0..200).map(move |n| Rng::new(seed + n));
        let inputs = |seed: u64| run(seed).map(|mut rng| mutate(&corpus, &mut rng)).collect::<Vec<_>>();
        assert_eq!(inputs(7), inputs(7));
        let same = inputs(7).iter().filter(|input| corpus.contains(input)).count();
        assert!(same < 40, "{same} of 200 are unchanged");
    }
}
