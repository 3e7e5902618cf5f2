//! Wakings of a client: the world wakes it once for each time that it asked, and does not say for what.

use crate::sim::around::Around;

/// Longest sleep of a client: it notices within this time that it was told to go on.
pub const IDLE_MS: u64 = 1000;

/// Wakings that were asked for and have not come.
///
/// They are counted, and not only reckoned: the clock of a client may run slower than the world, so a waking may come
/// before its time by that clock, and one that was taken for another would never be asked for again.
#[derive(Debug, Default)]
pub struct Alarm {
    due: Vec<u64>,
}

impl Alarm {
    /// A waking came: the one that was due first.
    pub fn rang(&mut self) {
        let first = self.due.iter().enumerate().min_by_key(|(_, due)| **due).map(|(at, _)| at);
        if let Some(first) = first {
            self.due.swap_remove(first);
        }
    }

    /// Wants to be woken at this moment of [`Around::mono_ms`], or after [`IDLE_MS`].
    pub fn set(&mut self, at: Option<u64>, around: &mut dyn Around) {
        let now = around.mono_ms();
        let at = at.map_or(now + IDLE_MS, |at| at.clamp(now + 1, now + IDLE_MS));
        if self.due.iter().all(|due| *due > at) {
            self.due.push(at);
            around.wake_in(at - now);
        }
    }
}
