//! One run: instantiate, call, time it, and say what it came to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use canal_proto::log::Status;
use wasmtime::{Engine, Store, Trap, UpdateDeadline};

use super::bindings::FunctionPre;
use super::bindings::canal::function::types;
use super::engine::one_line;
use super::host::{Capabilities, MAX_CALL, Traces};
use super::limiter::Stop;
use super::ticker::Ticks;
use super::{Job, Run};

/// An error's text in the activation's record.
const MAX_ERROR: usize = 1 << 10;

/// Runs the function to its end, on the thread that polls this.
pub async fn execute(engine: &Engine, pre: &FunctionPre<Capabilities>, ticks: &Ticks, job: Job) -> Run {
    let started = Instant::now();
    let _needed = ticks.need();
    let mut store = Store::new(engine, Capabilities::new(&job));
    store.limiter(|all| &mut all.limiter);
    store.set_hostcall_fuel(MAX_CALL);
    store.set_epoch_deadline(1);
    slice(&mut store, started, job.limits.time(), ticks.clone());

    let called = call(&mut store, pre, &job).await;
    let mut run = judge(called, store.into_data().finish());
    run.duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let Job { component, topic, attempt, event, .. } = job;
    tracing::debug!(%component, topic, offset = event.offset, attempt, status = ?run.status, "function ran");
    run
}

/// At every tick: others get their turn, and the time is up when it is. Only the time on the thread counts, so that
/// a function is not charged for its neighbours.
fn slice(store: &mut Store<Capabilities>, started: Instant, limit_ms: u32, ticks: Ticks) {
    let resumed = Arc::new(AtomicU64::new(0));
    let limit = u64::from(limit_ms).saturating_mul(1000);
    let mut used = 0u64;
    let now = move || u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    store.epoch_deadline_callback(move |_| {
        if ticks.closing() {
            return Err(Stop::Closing.into());
        }
        used = used.saturating_add(now().saturating_sub(resumed.load(Ordering::Relaxed)));
        if used >= limit {
            return Err(Stop::Time(limit_ms).into());
        }
        let resumed = resumed.clone();
        let turn = async move {
            tokio::task::yield_now().await;
            resumed.store(now(), Ordering::Relaxed);
        };
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(turn)))
    });
}

async fn call(
    store: &mut Store<Capabilities>,
    pre: &FunctionPre<Capabilities>,
    job: &Job,
) -> wasmtime::Result<Result<(), String>> {
    let headers = job.event.event.headers.iter();
    let event = types::Event {
        topic: job.topic.clone(),
        offset: job.event.offset,
        key: job.event.event.key.to_vec(),
        headers: headers.map(|h| types::Header { name: h.name.clone(), value: h.value.to_vec() }).collect(),
        payload: job.event.event.payload.to_vec(),
        time_ms: job.event.event.time_ms,
    };
    let function = pre.instantiate_async(&mut *store).await?;
    function.call_handle(store, &event).await
}

/// What the end of a call means. The host's fault comes first: whatever the guest made of it must not count. A
/// failure after a call was refused by a limit is put down to that limit.
fn judge(called: wasmtime::Result<Result<(), String>>, traces: Traces) -> Run {
    if let Some(fault) = traces.fault {
        return Run { log: traces.log, ..Run::not_run(bounded(fault)) };
    }
    let of_guest = |status| {
        if traces.limited { Status::Limit } else { status }
    };
    let (status, error) = match called {
        Ok(Ok(())) => (Status::Ok, String::new()),
        Ok(Err(text)) => (of_guest(Status::Error), text),
        Err(error) => match (error.downcast_ref::<Stop>(), error.downcast_ref::<Trap>()) {
            (Some(stop @ Stop::Closing), _) => return Run::not_run(stop.to_string()),
            (Some(stop @ Stop::Time(_)), _) => (Status::Timeout, stop.to_string()),
            (Some(stop), _) => (Status::Limit, stop.to_string()),
            (None, Some(trap)) => (of_guest(Status::Trap), trap.to_string()),
            (None, None) if error.is::<wasmtime::PoolConcurrencyLimitError>() => {
                return Run::not_run(bounded(one_line(&error)));
            }
            (None, None) => (of_guest(Status::Trap), one_line(&error)),
        },
    };
    let done = status == Status::Ok;
    Run {
        status,
        error: bounded(error),
        host_fault: false,
        reads: traces.reads,
        scans: traces.scans,
        writes: if done { traces.writes } else { Vec::new() },
        emits: if done { traces.emits } else { Vec::new() },
        log: traces.log,
        duration_us: 0,
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > MAX_ERROR {
        text.truncate(text.floor_char_boundary(MAX_ERROR - "…".len()));
        text.push('…');
    }
    text
}
