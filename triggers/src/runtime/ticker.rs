//! The clock of interruption: a thread that advances the engine's epoch while functions run.
//!
//! While none runs it sleeps, so that an idle peer costs no wake-ups. It is stopped and joined when its owner is
//! dropped; before it ends it goes on ticking until the last run has left, since a run without ticks could spin
//! for ever.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use wasmtime::Engine;

/// Time between two ticks, and so the slice after which a run lets others on: fine enough for limits in
/// milliseconds, coarse enough to cost next to nothing.
const TICK: Duration = Duration::from_millis(1);

#[derive(Default)]
struct State {
    running: usize,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Owns the thread.
pub struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the thread. `stop` is called on it once the ticker is dropped, before it waits for the last run.
    pub fn start(engine: Engine, stop: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mine = shared.clone();
        let thread = std::thread::Builder::new().name("canal-fn-tick".into()).spawn(move || {
            while mine.wait() {
                std::thread::sleep(TICK);
                engine.increment_epoch();
            }
            stop();
            while mine.state.lock().running > 0 {
                std::thread::sleep(TICK);
                engine.increment_epoch();
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What a run holds as long as it needs ticks.
    pub fn ticks(&self) -> Ticks {
        Ticks(self.shared.clone())
    }
}

impl Shared {
    /// Waits until a run needs a tick; false once the ticker is to stop.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while state.running == 0 && !state.closing {
            self.changed.wait(&mut state);
        }
        !state.closing
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that interrupts functions had died");
        }
    }
}

/// The right to ask for ticks.
#[derive(Clone)]
pub struct Ticks(Arc<Shared>);

impl Ticks {
    /// Ticks come until what this returns is dropped.
    pub fn need(&self) -> Needed {
        self.0.state.lock().running += 1;
        self.0.changed.notify_one();
        Needed(self.0.clone())
    }

    /// Whether runs are to end at once because the runtime closes.
    pub fn closing(&self) -> bool {
        self.0.state.lock().closing
    }
}

/// A run that needs ticks.
pub struct Needed(Arc<Shared>);

impl Drop for Needed {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running = state.running.saturating_sub(1);
    }
}
