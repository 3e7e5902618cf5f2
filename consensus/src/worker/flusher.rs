//! Makes applied state durable, and clears the log's oldest files, on a thread of its own: both may wait for the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use canal_proto::GroupId;
use crossbeam_channel::Sender;

use super::{Report, Request};
use crate::handle::{Error, Inner};

/// The thread; dropping it waits for what it does at the moment.
pub(super) struct Flusher {
    orders: Option<Sender<BTreeMap<GroupId, (u64, u64)>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start(inner: &Arc<Inner>) -> std::io::Result<Self> {
        // one at a time: the worker waits for the report
        let (orders, queue) = crossbeam_channel::bounded(1);
        let inner = inner.clone();
        let thread = std::thread::Builder::new().name("flush".into()).spawn(move || {
            for applied in queue {
                let flushed = inner.kv.flush().map_err(Error::from);
                let result = flushed.and_then(|()| inner.log.purge().map_err(Error::from));
                // fails only when the worker is gone, and nobody wants to know any more
                let _ = inner.inbox.send(Request::Report(Report::Flushed { applied, result }));
            }
        })?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Flushes. The state is written up to these indexes, of these replicas; they are reported when they are durable.
    pub(super) fn flush(&self, applied: BTreeMap<GroupId, (u64, u64)>) {
        if let Some(orders) = &self.orders {
            let _ = orders.try_send(applied);
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
