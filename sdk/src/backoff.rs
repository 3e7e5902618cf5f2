//! How long to wait before the next round of tries: doubling, bounded, and never in step with other clients.

use std::time::Duration;

use canal_proto::Code;

use crate::Error;

/// The first wait: about what an election among near peers takes at least.
const FIRST: Duration = Duration::from_millis(20);
/// The longest wait: what a person hardly notices, and a peer that comes back can bear from many clients.
const LONGEST: Duration = Duration::from_millis(500);

/// Waits that double from 20 ms to 500 ms, each cut by up to a half at random.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(FIRST)
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST);
        // without random numbers there is no jitter; the waits still grow
        let [cut] = random().unwrap_or([0]);
        wait - (wait / 2) * u32::from(cut) / 256
    }

    pub(crate) fn reset(&mut self) {
        self.0 = FIRST;
    }
}

/// Bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(Code::Internal, format!("the system gives no random numbers: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_keep_at_least_half() {
        let mut backoff = Backoff::new();
        for full in [20, 40, 80, 160, 320, 500, 500] {
            let wait = backoff.next();
            assert!(wait <= Duration::from_millis(full) && wait >= Duration::from_millis(full / 2), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
