//! Runs functions: WebAssembly components of the world `canal:function/function`, in wasmtime.
//!
//! Promises: a function reaches nothing but its event, its rows and the topics it names; its outcome is the same
//! whenever and wherever it runs on the same input; one that loops, traps or eats memory hurts nobody else. Runs
//! have threads of their own and share them by time slices, so a slow one delays the others by its share and no
//! more; memory is reserved before a run starts; one component gets a quarter of the room at most.
//!
//! Refuses: components that import anything but `canal:function`, that are too large or not well-formed, and bytes
//! that are not those which their hash names. It never loads machine code that was compiled elsewhere.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use canal_proto::ContentHash;
use canal_proto::event::{Event, Stored};
use canal_proto::log::{FunctionLimits, ReadCheck, ScanCheck, StateOp, Status, Target};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

mod bindings;
mod cache;
mod engine;
mod host;
mod limiter;
mod run;
mod ticker;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use bindings::FunctionPre;
use cache::Cache;
use engine::{Border, MAX_RUNNING};
use host::Capabilities;
use ticker::Ticker;

/// Unit in which memory is reserved: 1 MiB.
const MEMORY_UNIT: u64 = 1 << 20;
/// Fraction of the room that runs of one component may take together.
const SHARE: u32 = 4;
/// Below this, not even one run with the largest memory limit could start.
const MIN_MEMORY: u64 = 256 << 20;

/// What a runtime may use.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Threads that run functions.
    pub threads: usize,
    /// Memory limits of all running functions together, in bytes; at least 256 MiB.
    pub memory: u64,
    /// Compiled components kept; a small one takes some hundred KiB.
    pub cached: usize,
}

impl Default for Options {
    /// A thread for every two cores, 1 GiB, 64 components.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads: (cores / 2).max(2), memory: 1 << 30, cached: 64 }
    }
}

/// Why the runtime refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It can't be started on this machine.
    #[error("functions can't run on this peer: {reason}")]
    Start {
        /// Why.
        reason: String,
    },
    /// The component can't be run, here or elsewhere.
    #[error("not a component that can run: {reason}")]
    BadComponent {
        /// Why.
        reason: String,
    },
    /// The bytes are not those that the hash names.
    #[error("the bytes have the hash {found}, not {wanted}; fetch them again")]
    WrongHash {
        /// Hash that was asked for.
        wanted: ContentHash,
        /// Hash of the bytes.
        found: ContentHash,
    },
}

/// The rows that a run reads: a snapshot, or what becomes one by the checks of its reads.
pub trait StateView: Send + Sync {
    /// The value of a row.
    fn get(&self, key: &str) -> Result<Option<Bytes>, String>;
    /// The first `limit` rows under a prefix, in the order of their keys. `limit` can be above
    /// [`canal_proto::limits::MAX_SCAN`] by the number of rows that the run has deleted.
    fn scan(&self, prefix: &str, limit: u32) -> Result<Vec<(String, Bytes)>, String>;
}

/// The topics that a run can publish to.
pub trait Topics: Send + Sync {
    /// Where a topic is; none if there is no such topic.
    fn resolve(&self, name: &str) -> Result<Option<Target>, String>;
}

/// One run to do.
#[derive(Clone)]
pub struct Job {
    /// The function's component; it has to be loaded.
    pub component: ContentHash,
    /// The event.
    pub event: Stored,
    /// Name of the event's topic.
    pub topic: String,
    /// Id of the event's topic.
    pub topic_id: u64,
    /// What the run may use.
    pub limits: FunctionLimits,
    /// 1 for the first run of the event. The function does not learn it.
    pub attempt: u32,
    /// The function's rows.
    pub state: Arc<dyn StateView>,
    /// The topics it can publish to.
    pub topics: Arc<dyn Topics>,
}

/// What a run came to. All but `duration_us` is the same whenever the run is repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// How it ended.
    pub status: Status,
    /// What went wrong, for people; at most a KiB.
    pub error: String,
    /// The run failed by this peer's fault and says nothing about the function: run it again, without counting it
    /// as an attempt. The status is then `NotRun`, and there is nothing to check.
    pub host_fault: bool,
    /// Rows that were read, in the order of their keys. A failed run has them too: it may have failed of them.
    pub reads: Vec<ReadCheck>,
    /// Ranges that were read. Their `limit` has to be taken as it is, even above `MAX_SCAN`.
    pub scans: Vec<ScanCheck>,
    /// Writes, in the order of their keys, one a key. Empty unless `Ok`.
    pub writes: Vec<StateOp>,
    /// Emitted events, in order. Empty unless `Ok`.
    pub emits: Vec<(Target, Event)>,
    /// Its log lines, `level: text` each; a failed run's too.
    pub log: Vec<String>,
    /// How long it ran, in microseconds.
    pub duration_us: u64,
}

/// Handle to a runtime, cheap to clone. The threads end when the last one is dropped.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    border: Border,
    cache: Mutex<Cache<Arc<Loaded>>>,
    /// Memory that runs may still reserve, in units.
    room: Arc<Semaphore>,
    /// All of it.
    units: u32,
    threads: tokio::runtime::Handle,
    ticker: Ticker,
}

/// A component that is ready to run.
struct Loaded {
    pre: FunctionPre<Capabilities>,
    /// What its runs may still reserve together.
    share: Semaphore,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

impl Runtime {
    /// Starts the threads. Works in and outside of an async context.
    pub fn start(options: Options) -> Result<Self, Error> {
        let broken = |error: std::io::Error| Error::Start { reason: error.to_string() };
        let border = Border::new()?;
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .thread_name("canal-fn")
            .build()
            .map_err(broken)?;
        let handle = threads.handle().clone();
        let ticker = Ticker::start(border.engine.clone(), move || threads.shutdown_background()).map_err(broken)?;
        let units = u32::try_from(options.memory.max(MIN_MEMORY) / MEMORY_UNIT).unwrap_or(u32::MAX).min(1 << 24);
        Ok(Self {
            inner: Arc::new(Inner {
                border,
                cache: Mutex::new(Cache::new(options.cached)),
                room: Arc::new(Semaphore::new(units as usize)),
                units,
                threads: handle,
                ticker,
            }),
        })
    }

    /// Refuses what could not run. It compiles the component, which takes up to seconds for the largest ones: call
    /// it where blocking is fine.
    pub fn check(&self, bytes: &[u8]) -> Result<(), Error> {
        self.inner.border.compile(bytes).map(drop)
    }

    /// Checks the bytes against their hash, compiles and keeps them. Takes as long as [`Self::check`] does.
    pub fn load(&self, hash: ContentHash, bytes: &[u8]) -> Result<(), Error> {
        let found = ContentHash::of(bytes);
        if found != hash {
            return Err(Error::WrongHash { wanted: hash, found });
        }
        if self.inner.cache.lock().get(&hash).is_some() {
            return Ok(());
        }
        let pre = self.inner.border.compile(bytes)?;
        let share = Semaphore::new((self.inner.units / SHARE) as usize);
        self.inner.cache.lock().insert(hash, Arc::new(Loaded { pre, share }));
        Ok(())
    }

    /// Whether a run of this component could start now. What is loaded can leave again when others come.
    pub fn is_loaded(&self, hash: &ContentHash) -> bool {
        self.inner.cache.lock().contains(hash)
    }

    /// Runs a function, as soon as there is room. Never fails: what goes wrong is in the result. If the returned
    /// future is dropped, the run is stopped.
    pub async fn run(&self, job: Job) -> Run {
        let inner = &self.inner;
        let Some(loaded) = inner.cache.lock().get(&job.component) else {
            return Run::not_run(format!("component {} is not loaded; load it first", job.component));
        };
        let units = inner.units_of(&job.limits);
        let share = units.min(inner.units / SHARE);
        let (Ok(_share), Ok(_room)) = (loaded.share.acquire_many(share).await, inner.room.acquire_many(units).await)
        else {
            return Run::not_run("this peer is shutting down".into());
        };
        let ticks = inner.ticker.ticks();
        let engine = inner.border.engine.clone();
        let mut tasks = JoinSet::new();
        let pre = loaded.pre.clone();
        tasks.spawn_on(async move { run::execute(&engine, &pre, &ticks, job).await }, &inner.threads);
        match tasks.join_next().await {
            Some(Ok(run)) => run,
            Some(Err(error)) => Run::not_run(format!("the run was lost: {error}")),
            None => Run::not_run("the run was lost".into()),
        }
    }
}

impl Inner {
    /// What a run reserves: its memory limit, and at least so much that no more than [`MAX_RUNNING`] are running.
    fn units_of(&self, limits: &FunctionLimits) -> u32 {
        let memory = u32::try_from(limits.memory_bytes().div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX);
        memory.max(self.units.div_ceil(MAX_RUNNING)).min(self.units)
    }
}

impl Run {
    fn not_run(error: String) -> Self {
        Self {
            status: Status::NotRun,
            error,
            host_fault: true,
            reads: Vec::new(),
            scans: Vec::new(),
            writes: Vec::new(),
            emits: Vec::new(),
            log: Vec::new(),
            duration_us: 0,
        }
    }
}
