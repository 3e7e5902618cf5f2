//! Looks at everything that is seldom read, so that damage is found while other replicas can still make it good.
//!
//! All entries of the logs and all files are read once after the start and then once a day, slowly. What is found is noted
//! where it is found, as by any other reader. (Rows are read by their store all the time, as it compacts them.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::handle::Inner;
use crate::log_store::CHECK_BYTES;

/// Time between two looks.
const REST: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes a second: a tenth or less of what any disk reads, and a processor hashes it in a few milliseconds.
const PACE: u64 = 16 << 20;
/// Bytes that a step counts at least: it seeks, and takes locks.
const STEP: u64 = 64 << 10;

/// The thread; dropping it stops it within a step.
pub(crate) struct Scrub {
    stop: Option<Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Scrub {
    pub(crate) fn start(inner: &Arc<Inner>) -> std::io::Result<Self> {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let inner = inner.clone();
        let thread = std::thread::Builder::new().name("scrub".into()).spawn(move || {
            let mut pace = Pace { stopped, next: Instant::now() };
            while look(&inner, &mut pace).is_some() && pace.rest(REST).is_some() {}
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Scrub {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Pace {
    stopped: Receiver<()>,
    next: Instant,
}

impl Pace {
    /// Waits as long as reading so much may take; `None`: it is over.
    fn after(&mut self, bytes: u64) -> Option<()> {
        let now = Instant::now();
        let due = self.next.max(now) + Duration::from_micros(bytes.max(STEP).saturating_mul(1_000_000) / PACE);
        self.next = due;
        self.rest(due.saturating_duration_since(now))
    }

    fn rest(&self, time: Duration) -> Option<()> {
        self.stopped.recv_timeout(time).err().filter(crossbeam_channel::RecvTimeoutError::is_timeout).map(drop)
    }
}

/// Looks at everything once; `None` when it is to stop.
fn look(inner: &Inner, pace: &mut Pace) -> Option<()> {
    for group in inner.log.groups().ok()? {
        let mut next = 1;
        // damage is noted by the log, and nothing can be said of what is behind it
        while let Ok(Some(index)) = inner.log.check(group, next) {
            next = index;
            pace.after(CHECK_BYTES)?;
        }
    }
    for (hash, size) in inner.files.list() {
        // as is damage of a file; one that is gone by now is no loss
        let _ = inner.files.check(&hash);
        pace.after(size)?;
    }
    Some(())
}
