//! Network coordinates: where a peer stands in the space of round trips, found from the round trips that it meets.
//!
//! Vivaldi with heights: Dabek, Cox, Kaashoek, Morris, "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM
//! 2004; the adaptive timestep is section 3.4, the height vector section 5.4. The plane holds the distances in the core of
//! the network; the height is the way from a peer into it, which every round trip of the peer pays.
//!
//! Coordinates are told by others, so what is no number, or no distance on this planet, is ignored.

use canal_proto::peer::Coordinate;

/// How fast a coordinate moves (the paper's c_c: a quarter converges fast and does not oscillate).
const MOVE: f64 = 0.25;
/// How fast an error estimate moves (the paper's c_e).
const LEARN: f64 = 0.25;
/// A peer's own height is at least this, in milliseconds: the way through a machine is never free.
const MIN_HEIGHT: f64 = 0.01;
/// A peer's own error is at least this: two peers that are sure of themselves must be able to move.
const MIN_ERROR: f64 = 0.01;
/// The largest error: it says "knows nothing".
const MAX_ERROR: f64 = 1.0;
/// A round trip that is longer, in milliseconds, says something of a queue and nothing of a place.
const MAX_ROUND_TRIP: f64 = 60_000.0;
/// Coordinates farther out than this are not believed.
const MAX_EXTENT: f64 = MAX_ROUND_TRIP;

/// The distance of two coordinates: the estimate of their round trip, in milliseconds.
pub fn distance(a: &Coordinate, b: &Coordinate) -> f64 {
    (a.x - b.x).hypot(a.y - b.y) + a.height + b.height
}

/// A peer's own coordinate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vivaldi {
    at: Coordinate,
}

impl Default for Vivaldi {
    fn default() -> Self {
        Self { at: Coordinate { x: 0.0, y: 0.0, height: MIN_HEIGHT, error: MAX_ERROR } }
    }
}

impl Vivaldi {
    /// Where the peer stands.
    pub fn coordinate(&self) -> Coordinate {
        self.at
    }

    /// Takes in a round trip of so many milliseconds to a peer with this coordinate. `direction` is any number: it
    /// decides where to go from a peer that stands on the same spot.
    pub fn observe(&mut self, round_trip: f64, other: &Coordinate, direction: u64) {
        if !(round_trip > 0.0 && round_trip <= MAX_ROUND_TRIP && is_sane(other)) {
            return;
        }
        let (mine, theirs) = (self.at.error, other.error.clamp(MIN_ERROR, MAX_ERROR));
        let weight = mine / (mine + theirs);
        let estimate = distance(&self.at, other);
        let sample_error = (estimate - round_trip).abs() / round_trip;
        let learn = LEARN * weight;
        self.at.error = (sample_error * learn + mine * (1.0 - learn)).clamp(MIN_ERROR, MAX_ERROR);
        let force = MOVE * weight * (round_trip - estimate);
        let (x, y, height) = unit(&self.at, other, direction);
        self.at.x = (self.at.x + force * x).clamp(-MAX_EXTENT, MAX_EXTENT);
        self.at.y = (self.at.y + force * y).clamp(-MAX_EXTENT, MAX_EXTENT);
        self.at.height = (self.at.height + force * height).clamp(MIN_HEIGHT, MAX_EXTENT);
    }
}

fn is_sane(at: &Coordinate) -> bool {
    let within = |value: f64| value.abs() <= MAX_EXTENT;
    within(at.x) && within(at.y) && within(at.height) && at.height >= 0.0 && at.error >= 0.0
}

/// The direction from `b` to `a`: a vector of length 1 in the sense of [`distance`].
fn unit(a: &Coordinate, b: &Coordinate, direction: u64) -> (f64, f64, f64) {
    let (x, y, height) = (a.x - b.x, a.y - b.y, a.height + b.height);
    let plane = x.hypot(y);
    if plane > f64::EPSILON {
        let length = plane + height;
        return (x / length, y / length, height / length);
    }
    // a thousandth of a turn is as fine as it needs to be
    let angle = f64::from(u32::try_from(direction % 1000).unwrap_or(0)) / 1000.0 * std::f64::consts::TAU;
    (angle.cos(), angle.sin(), 0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use proptest::prelude::*;

    use super::*;

    /// A number made from a number, so that a test replays (splitmix64).
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(state: &mut u64, bound: u64) -> f64 {
        (next(state) % (bound * 1000)) as f64 / 1000.0
    }

    /// The median of the relative errors of all pairs.
    fn median_error(peers: &[Vivaldi], truth: &[Coordinate]) -> f64 {
        let mut errors = Vec::new();
        for a in 0..peers.len() {
            for b in 0..a {
                let real = distance(&truth[a], &truth[b]);
                errors.push((distance(&peers[a].at, &peers[b].at) - real).abs() / real);
            }
        }
        errors.sort_by(f64::total_cmp);
        errors[errors.len() / 2]
    }

    /// Each peer measures one peer it knows a round, as peers do: 16 neighbours each.
    fn run(truth: &[Coordinate], rounds: usize, jitter: f64, seed: u64) -> Vec<Vivaldi> {
        let mut state = seed;
        let count = truth.len();
        let neighbours: Vec<Vec<usize>> =
            (0..count).map(|_| (0..16).map(|_| usize::try_from(next(&mut state)).unwrap() % count).collect()).collect();
        let mut peers = vec![Vivaldi::default(); count];
        for round in 0..rounds {
            for a in 0..count {
                let b = neighbours[a][round % 16];
                if a != b {
                    let noise = 1.0 + jitter * below(&mut state, 1);
                    let other = peers[b].coordinate();
                    peers[a].observe(distance(&truth[a], &truth[b]) * noise, &other, next(&mut state));
                }
            }
        }
        peers
    }

    #[test]
    fn estimates_come_near_the_round_trips() {
        let mut state = 7;
        let truth: Vec<Coordinate> = (0..60)
            .map(|_| Coordinate {
                x: below(&mut state, 100),
                y: below(&mut state, 100),
                height: 1.0 + below(&mut state, 20),
                error: 0.0,
            })
            .collect();
        let peers = run(&truth, 400, 0.0, 3);
        assert!(median_error(&peers, &truth) < 0.1, "{}", median_error(&peers, &truth));
        let sure = peers.iter().filter(|peer| peer.at.error < 0.2).count();
        assert!(sure > 50, "only {sure} of 60 know that they are right");
        // round trips that are up to a fifth longer than they need to be shift the estimates by about a tenth
        let noisy = run(&truth, 400, 0.2, 3);
        assert!(median_error(&noisy, &truth) < 0.2, "{}", median_error(&noisy, &truth));
    }

    #[test]
    fn sites_are_told_from_each_other() {
        // two sites 80 ms apart, half a millisecond inside; nobody begins anywhere but at the origin
        let site =
            |n: usize| Coordinate { x: if n.is_multiple_of(2) { 0.0 } else { 80.0 }, y: 0.0, height: 0.25, error: 0.0 };
        let truth: Vec<Coordinate> = (0..20).map(site).collect();
        let peers = run(&truth, 400, 0.1, 1);
        for a in 0..20 {
            for b in 0..a {
                let estimate = distance(&peers[a].at, &peers[b].at);
                let near = a % 2 == b % 2;
                assert!(if near { estimate < 20.0 } else { estimate > 60.0 }, "{a} to {b}: {estimate}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_told_breaks_a_coordinate(
            told in prop::collection::vec((any::<f64>(), any::<f64>(), any::<f64>(), any::<f64>(), any::<f64>()), 0..50),
            direction: u64,
        ) {
            let mut peer = Vivaldi::default();
            for (round_trip, x, y, height, error) in told {
                peer.observe(round_trip, &Coordinate { x, y, height, error }, direction);
                let at = peer.coordinate();
                prop_assert!(is_sane(&at) && at.error <= MAX_ERROR && at.height >= MIN_HEIGHT, "{at:?}");
            }
        }

        #[test]
        fn an_observation_brings_the_estimate_nearer(
            round_trip in 1.0f64..1000.0, x in -500.0f64..500.0, y in -500.0f64..500.0, height in 0.01f64..100.0,
        ) {
            let mut peer = Vivaldi::default();
            let other = Coordinate { x, y, height, error: 0.3 };
            let before = (distance(&peer.coordinate(), &other) - round_trip).abs();
            peer.observe(round_trip, &other, 1);
            let after = (distance(&peer.coordinate(), &other) - round_trip).abs();
            prop_assert!(after <= before + 1e-9, "{before} to {after}");
        }
    }
}
