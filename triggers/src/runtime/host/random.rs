//! `random-u64`: numbers that are the event's, so that a run repeats itself.

use canal_proto::event::Stored;

/// Names the use of BLAKE3's key derivation, and with it the version of the stream.
const CONTEXT: &str = "canal 2026 function random";

/// A stream of numbers: BLAKE3's extendable output, keyed by the event's place and origin.
pub struct Random(blake3::OutputReader);

impl Random {
    /// The stream of this event. It is the same for every function, peer and attempt.
    pub fn new(topic: u64, event: &Stored) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        for number in [topic, event.offset, event.sequence, event.event.time_ms] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&event.producer);
        Self(hasher.finalize_xof())
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(topic: u64, offset: u64) -> [u64; 3] {
        let event = Stored { offset, sequence: 4, producer: vec![7; 16].into(), ..Stored::default() };
        let mut random = Random::new(topic, &event);
        [random.next(), random.next(), random.next()]
    }

    #[test]
    fn a_stream_is_its_events() {
        assert_eq!(stream(1, 2), stream(1, 2));
        assert_ne!(stream(1, 2), stream(1, 3));
        assert_ne!(stream(1, 2), stream(2, 2));
        let [a, b, c] = stream(1, 2);
        assert!(a != b && b != c);
    }

    #[test]
    fn the_stream_is_pinned() {
        // a later version that drew other numbers could not repeat a run of this one
        assert_eq!(stream(1, 2), [15_221_352_573_550_144_973, 13_135_247_799_771_725_890, 33_335_787_039_032_928]);
    }
}
