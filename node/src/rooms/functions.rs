//! Functions: the driver of the scheduling core on the leader of a group.
//!
//! The core decides; this reads events, fetches and runs components, proposes outcomes, and reports back. What it knows
//! is lost with leadership and rebuilt from the cursors. A component is fetched by its hash from the catalog, checked,
//! compiled here, and kept in a file under its hash for the next start.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use canal_consensus::{GroupHandle, Reply, View};
use canal_proto::log::{Kind, Outcomes, Status, Target};
use canal_proto::request::{Answer, Ask, BlobAsk};
use canal_proto::{ContentHash, TopicId};
use canal_sdk::Target as To;
use canal_triggers::core::{self, Hosted, Input, Output, Overlay, RunResult, Scheduler};
use canal_triggers::runtime::{Job, StateView, Topics};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::node::{Node, internal, now_ms};

/// How long the place of a topic is believed without asking the catalog again. A topic that was removed or moved in
/// the meantime is caught when the effect is applied or delivered.
const RESOLVED_FOR: Duration = Duration::from_secs(5);
/// Topics whose places are remembered a group.
const MAX_RESOLVED: usize = 4096;
/// Bytes of events loaded at a time.
const LOAD_BYTES: usize = 2 << 20;
/// How long a run may wait for the catalog to say where a topic is.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Fires the group's functions for as long as it is led here.
pub async fn run(node: Arc<Node>, group: GroupHandle, term: u64) {
    let mut watch = group.watch();
    let mut room = Room {
        scheduler: Scheduler::new(node.id, term),
        places: Arc::new(Places {
            node: node.clone(),
            runtime: tokio::runtime::Handle::current(),
            known: Mutex::default(),
        }),
        node,
        group,
        tasks: JoinSet::new(),
        heads: HashMap::new(),
        spec: None,
        wake: None,
        clock: Clock::begin(),
    };
    loop {
        watch.now();
        if let Err(error) = room.look() {
            tracing::error!(group = %room.group.seed().name, %error, "the group's functions can't go on");
            return;
        }
        let until = room.wake.map(|at| Duration::from_millis(at.saturating_sub(room.clock.now_ms())));
        tokio::select! {
            biased;
            Some(input) = room.tasks.join_next(), if !room.tasks.is_empty() => {
                // a task that panicked has answered nothing: its lane stands still until the next leader, and says so
                match input {
                    Ok(input) => room.handle(input),
                    Err(error) => tracing::error!(%error, "a step of a function's run was lost; this is a bug"),
                }
                while let Some(Ok(input)) = room.tasks.try_join_next() {
                    room.handle(input);
                }
            }
            more = watch.changed() => {
                if !more {
                    return;
                }
            }
            () = async { match until { Some(until) => sleep(until).await, None => std::future::pending().await } } => {
                room.wake = None;
                room.handle(Input::Tick);
            }
        }
    }
}

struct Room {
    node: Arc<Node>,
    group: GroupHandle,
    scheduler: Scheduler,
    tasks: JoinSet<Input>,
    places: Arc<Places>,
    heads: HashMap<u64, u64>,
    spec: Option<u64>,
    wake: Option<u64>,
    clock: Clock,
}

/// A clock that says what the machine's said when the room began, and the time since then. The machine's may be set back
/// or ahead, and what the core waits for would wait as long.
struct Clock {
    began_ms: u64,
    began: Instant,
}

impl Clock {
    fn begin() -> Self {
        Self { began_ms: now_ms(), began: Instant::now() }
    }

    fn now_ms(&self) -> u64 {
        self.began_ms.saturating_add(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

impl Room {
    /// Tells the core what has changed.
    fn look(&mut self) -> anyhow::Result<()> {
        let status = self.group.status();
        if self.spec != Some(status.spec.version) {
            let first = self.spec.is_none();
            self.spec = Some(status.spec.version);
            let topics = status.spec.topics.iter().map(|topic| {
                let next = self.group.head(TopicId(topic.id)).unwrap_or_default();
                (topic.clone(), next)
            });
            let topics: Vec<_> = topics.collect();
            self.heads = topics.iter().map(|(topic, next)| (topic.id, *next)).collect();
            let cursors = self.group.view().cursors()?;
            let hosted = Hosted { triggers: status.spec.triggers.clone(), topics, cursors };
            self.handle(if first { Input::Start(hosted) } else { Input::Spec(hosted) });
        }
        if status.spec.triggers.is_empty() {
            return Ok(());
        }
        for topic in &status.spec.topics {
            let next = self.group.head(TopicId(topic.id)).unwrap_or_default();
            if self.heads.insert(topic.id, next) != Some(next) {
                self.handle(Input::Head { topic: topic.id, next });
            }
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) {
        for output in self.scheduler.handle(input, self.clock.now_ms()) {
            match output {
                Output::Load { trigger, topic, from, max } => self.load(trigger, topic, from, max),
                Output::Run(run) => {
                    let (node, view, places) = (self.node.clone(), self.group.view(), self.places.clone());
                    self.tasks.spawn(async move {
                        let ticket = run.ticket;
                        Input::Ran { ticket, run: execute(&node, view, places, *run).await }
                    });
                }
                Output::Propose { batch, outcomes } => {
                    let group = self.group.clone();
                    self.tasks.spawn(async move {
                        match group.propose(Kind::Outcomes(Outcomes { outcomes })).await {
                            Ok(Reply::Outcomes(results, cursors)) => Input::Committed { batch, results, cursors },
                            Ok(_) => Input::ProposeFailed { batch },
                            Err(error) => {
                                tracing::debug!(%error, "outcomes were not taken");
                                Input::ProposeFailed { batch }
                            }
                        }
                    });
                }
                Output::WakeAt(at) => self.wake = Some(at),
            }
        }
    }

    fn load(&mut self, trigger: u64, topic: u64, from: u64, max: u64) {
        let view = self.group.view();
        self.tasks.spawn(async move {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            let read = tokio::task::spawn_blocking(move || view.events(TopicId(topic), from, max, LOAD_BYTES));
            let events = match read.await {
                Ok(Ok(events)) => events,
                Ok(Err(error)) => {
                    tracing::error!(%error, "events can't be read for a trigger");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            };
            Input::Loaded { trigger, topic, from, events }
        });
    }
}

async fn execute(node: &Node, view: View, places: Arc<Places>, run: core::Run) -> RunResult {
    let start_ms = now_ms();
    let nothing = |status, error: String, unavailable| RunResult {
        status,
        error,
        reads: Vec::new(),
        scans: Vec::new(),
        writes: Vec::new(),
        emits: Vec::new(),
        log: Vec::new(),
        duration_us: 0,
        start_ms,
        unavailable,
    };
    let component = match ContentHash::from_slice(&run.trigger.component) {
        Ok(component) => component,
        Err(error) => return nothing(Status::NotRun, error.to_string(), false),
    };
    match ready(node, component).await {
        Ok(()) => {}
        Err(Fetch::Later(error)) => {
            tracing::debug!(%component, %error, "a component is not here yet");
            return nothing(Status::NotRun, error, true);
        }
        Err(Fetch::Bad(error)) => return nothing(Status::NotRun, error, false),
    }
    let state = Arc::new(Rows { view, bucket: run.bucket, overlay: run.overlay });
    let job = Job {
        component,
        event: run.event,
        topic: run.topic.name,
        topic_id: run.topic.id,
        limits: run.trigger.limits,
        attempt: run.attempt,
        state,
        topics: places,
    };
    let done = node.runtime.run(job).await;
    RunResult {
        status: done.status,
        error: done.error,
        reads: done.reads,
        scans: done.scans,
        writes: done.writes,
        emits: done.emits,
        log: done.log,
        duration_us: done.duration_us,
        start_ms,
        unavailable: done.host_fault,
    }
}

enum Fetch {
    Later(String),
    Bad(String),
}

/// Makes a component ready to run: from this peer's files, or else from the catalog.
async fn ready(node: &Node, component: ContentHash) -> Result<(), Fetch> {
    if node.runtime.is_loaded(&component) {
        return Ok(());
    }
    let path: PathBuf = node.config.data.join("components").join(component.to_string());
    let kept = tokio::fs::read(&path).await.ok().filter(|bytes| ContentHash::of(bytes) == component);
    let (bytes, fetched) = match kept {
        Some(bytes) => (bytes, false),
        None => (fetch(node, component).await.map_err(|e| Fetch::Later(e.message))?, true),
    };
    let runtime = node.runtime.clone();
    let load = tokio::task::spawn_blocking(move || {
        let loaded = runtime.load(component, &bytes);
        if loaded.is_ok() && fetched {
            // only a copy: what does not get written is fetched again
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = std::fs::write(&path, &bytes);
        }
        loaded
    });
    match load.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error @ canal_triggers::runtime::Error::WrongHash { .. })) => Err(Fetch::Later(error.to_string())),
        Ok(Err(error)) => Err(Fetch::Bad(error.to_string())),
        Err(error) => Err(Fetch::Later(error.to_string())),
    }
}

async fn fetch(node: &Node, component: ContentHash) -> Result<Vec<u8>, canal_sdk::Error> {
    let mut bytes = Vec::new();
    for number in 0.. {
        let ask = Ask::Blob(BlobAsk { hash: component.to_vec().into(), number });
        let Answer::Blob(piece) = node.client.call(To::Catalog, ask).await? else {
            return Err(internal("a piece of a component was asked for, and something else came").into());
        };
        if piece.data.is_empty() || bytes.len() > canal_proto::limits::MAX_COMPONENT {
            break;
        }
        bytes.extend_from_slice(&piece.data);
    }
    Ok(bytes)
}

/// The rows that a run sees: what is applied, under what earlier runs of its lane wrote and is not applied yet.
struct Rows {
    view: View,
    bucket: String,
    overlay: Overlay,
}

impl StateView for Rows {
    fn get(&self, key: &str) -> Result<Option<Bytes>, String> {
        let below = || self.view.state(&self.bucket, key).map_err(|e| e.to_string());
        core::state::row(&self.overlay, key, below)
    }

    fn scan(&self, prefix: &str, limit: u32) -> Result<Vec<(String, Bytes)>, String> {
        let below = |limit: usize| {
            let rows = self.view.states(&self.bucket, prefix, limit).map_err(|e| e.to_string())?;
            Ok(rows.into_iter().filter_map(|op| op.value.map(|value| (op.key, value))).collect())
        };
        core::state::range(&self.overlay, prefix, limit as usize, below)
    }
}

/// Where topics are, for effects.
struct Places {
    node: Arc<Node>,
    runtime: tokio::runtime::Handle,
    known: Mutex<HashMap<String, (Target, Instant)>>,
}

impl Topics for Places {
    fn resolve(&self, name: &str) -> Result<Option<Target>, String> {
        if let Some((target, since)) = self.known.lock().get(name)
            && since.elapsed() < RESOLVED_FOR
        {
            return Ok(Some(target.clone()));
        }
        // this is a function's thread: it may wait, the runtime's threads may not
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let (node, topic) = (self.node.clone(), name.to_owned());
        self.runtime.spawn(async move {
            let _ = answer.send(node.catalog_topic(&topic).await);
        });
        let found = answered
            .recv_timeout(RESOLVE_TIMEOUT)
            .map_err(|_| format!("the catalog did not say in time where `{name}` is"))?
            .map_err(|e| e.message)?;
        let Some(info) = found else { return Ok(None) };
        let target = Target { topic: info.id, group: info.group, name: info.name };
        let mut known = self.known.lock();
        if known.len() >= MAX_RESOLVED {
            known.clear();
        }
        known.insert(name.to_owned(), (target.clone(), Instant::now()));
        Ok(Some(target))
    }
}
