//! Wakings: the world wakes an actor once for each time it asked, for no matter what.

use crate::sim::around::Around;

/// How far a machine's clock is off at the most when it measures a time: one in so many.
const DRIFT: u64 = 100;

/// Asks to be woken at a time, and not twice for the same.
#[derive(Debug, Default)]
pub struct Timer {
    /// The next waking that was asked for, by the clock that never jumps, and when it may come already: that clock may run
    /// slower than the world's.
    asked: Option<(u64, u64)>,
}

impl Timer {
    /// Asks to be woken `at`, unless a waking comes before that; call it again then.
    pub fn wake_at(&mut self, at: u64, around: &mut dyn Around) {
        let now = around.mono_ms();
        if self.asked.is_some_and(|(asked, early)| early > now && asked <= at) {
            return;
        }
        // at least a millisecond on, or it would be woken for ever at the same moment
        let wait = at.saturating_sub(now).max(1);
        self.asked = Some((now + wait, now + wait - wait.div_ceil(DRIFT)));
        around.wake_in(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rooms::testing::World;

    #[test]
    fn a_waking_is_asked_for_once_and_again_when_it_came_early() {
        let mut world = World::new();
        let begin = world.mono;
        let mut timer = Timer::default();
        timer.wake_at(begin + 1000, &mut world);
        timer.wake_at(begin + 1000, &mut world);
        timer.wake_at(begin + 2000, &mut world);
        assert_eq!(world.wakes, [begin + 1000]);
        timer.wake_at(begin + 500, &mut world);
        assert_eq!(world.wakes, [begin + 1000, begin + 500]);
        // by this clock it comes a little early
        world.pass(499);
        timer.wake_at(begin + 500, &mut world);
        assert_eq!(world.wakes, [begin + 1000, begin + 500, begin + 500]);
        world.pass(1);
        timer.wake_at(begin + 400, &mut world);
        assert_eq!(world.wakes.last(), Some(&(begin + 501)));
    }
}
