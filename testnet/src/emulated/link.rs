//! One direction of a link: what becomes of a packet. Pure: time and random numbers are passed in.
//!
//! The model is that of a sender's queue before a wire: a packet waits until those before it are sent at the link's
//! rate, is lost when the queue is full or by chance, and arrives after the delay and a jitter. Jitter does not reorder
//! unless it is larger than the packets' spacing, as on real networks.

use serde::{Deserialize, Serialize};

/// Bytes that wait for a link with a rate; beyond it packets are dropped, as routers do.
const QUEUE: u64 = 256 << 10;
/// Parts in a loss of one.
const PARTS: f64 = 1_000_000.0;

/// How a link behaves, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quality {
    /// Time on the wire, in milliseconds.
    pub delay_ms: f64,
    /// Up to so much more, evenly, in milliseconds.
    pub jitter_ms: f64,
    /// Share of packets that are lost, from 0 to 1.
    pub loss: f64,
    /// Bandwidth in kilobits a second; 0: unbounded.
    pub rate_kbit: u64,
    /// Nothing passes.
    pub cut: bool,
}

impl Quality {
    /// Refuses what no link can be, and says what to change.
    pub fn check(&self) -> Result<(), String> {
        let times = [("delay_ms", self.delay_ms), ("jitter_ms", self.jitter_ms)];
        if let Some((name, value)) = times.into_iter().find(|(_, ms)| !(0.0..=60_000.0).contains(ms)) {
            return Err(format!("{name} = {value}; use 0 to 60000"));
        }
        if !(0.0..=1.0).contains(&self.loss) {
            return Err(format!("loss = {}; use a share from 0 to 1", self.loss));
        }
        Ok(())
    }
}

/// One direction of a link.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// How it behaves.
    pub quality: Quality,
    /// When the last packet is sent, in microseconds.
    sent_at: u64,
    /// Packets that passed.
    pub passed: u64,
    /// Packets that were lost.
    pub lost: u64,
}

impl Link {
    /// When a packet of `size` bytes that is given to the link at `now` arrives, in microseconds; `None` when it is lost.
    /// `draws` are two random numbers: for loss and for jitter.
    pub fn give(&mut self, size: usize, now: u64, draws: [u32; 2]) -> Option<u64> {
        let quality = self.quality;
        let chance = f64::from(draws[0] % 1_000_000);
        if quality.cut || chance < quality.loss * PARTS {
            self.lost += 1;
            return None;
        }
        let begins = self.sent_at.max(now);
        if quality.rate_kbit > 0 {
            let waiting = (begins - now).saturating_mul(quality.rate_kbit) / 8000;
            if waiting > QUEUE {
                self.lost += 1;
                return None;
            }
            self.sent_at = begins + (size as u64).saturating_mul(8000) / quality.rate_kbit;
        } else {
            self.sent_at = begins;
        }
        self.passed += 1;
        let jitter = quality.jitter_ms * f64::from(draws[1] % 1_000_000) / PARTS;
        Some(self.sent_at + micros(quality.delay_ms + jitter))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: 0 to 2 minutes")]
fn micros(ms: f64) -> u64 {
    (ms * 1000.0) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn link(quality: Quality) -> Link {
        Link { quality, ..Link::default() }
    }

    #[test]
    fn delay_and_jitter_add_up_and_a_cut_link_passes_nothing() {
        let mut link = link(Quality { delay_ms: 20.0, jitter_ms: 10.0, ..Quality::default() });
        assert_eq!(link.give(100, 1_000, [0, 0]), Some(21_000));
        assert_eq!(link.give(100, 1_000, [0, 500_000]), Some(26_000));
        link.quality.cut = true;
        assert_eq!(link.give(100, 1_000, [0, 0]), None);
        assert_eq!((link.passed, link.lost), (2, 1));
    }

    #[test]
    fn loss_is_a_share_of_the_draws() {
        let mut link = link(Quality { loss: 0.25, ..Quality::default() });
        let passed = (0..1_000_000).step_by(1000).filter(|draw| link.give(1, 0, [*draw, 0]).is_some()).count();
        assert_eq!(passed, 750);
    }

    #[test]
    fn a_rate_spaces_packets_and_a_full_queue_drops() {
        // 8000 kbit/s: a byte a microsecond
        let mut link = link(Quality { rate_kbit: 8000, ..Quality::default() });
        assert_eq!(link.give(1000, 0, [0, 0]), Some(1000));
        assert_eq!(link.give(1000, 0, [0, 0]), Some(2000));
        assert_eq!(link.give(1000, 10_000, [0, 0]), Some(11_000));
        let taken = (0..10_000).filter(|_| link.give(1000, 20_000, [0, 0]).is_some()).count();
        assert_eq!(taken, 263, "256 KiB wait, and one more is begun");
        assert!(link.give(1000, 1_000_000, [0, 0]).is_some());
    }

    #[test]
    fn what_no_link_can_be_is_refused() {
        assert!(Quality { loss: 1.5, ..Quality::default() }.check().is_err());
        assert!(Quality { delay_ms: -1.0, ..Quality::default() }.check().is_err());
        assert!(Quality { jitter_ms: f64::NAN, ..Quality::default() }.check().is_err());
        assert!(Quality::default().check().is_ok());
    }
}
