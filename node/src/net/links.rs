//! Raft messages to other peers: one stream and one task a peer, however many groups the two share.
//!
//! A message that can't be sent now is dropped: Raft repairs it, and what is old by the time a peer is back would only
//! be in the way. The sender is told that the replica could not be reached.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use canal_consensus::Outgoing;
use canal_proto::limits::MAX_FRAME;
use canal_proto::peer::{RaftBatch, RaftEnvelope, Replica};
use canal_proto::request::{self, Welcome};
use canal_proto::{GroupId, PeerId, frame};
use canal_sdk::{BoxStream, Transport};
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Messages that wait for one peer: some turns of many groups, and little enough memory with entries in them.
const MAX_QUEUE: usize = 1024;
/// Bytes of messages in one frame: what has arrived is sent together, but never more than fits.
const BATCH_BYTES: usize = MAX_FRAME / 2;
/// How long the other side may take to take a frame.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// Wait after a peer could not be reached; doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(800);

/// Is told that a replica could not be reached.
pub trait Unreachable: Send + Sync {
    /// The replica of this group could not be reached.
    fn unreachable(&self, group: GroupId, replica: u64);
}

/// Sends Raft messages.
pub struct Links {
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    transport: Option<Weak<dyn Transport>>,
    mesh: String,
    told: Option<Weak<dyn Unreachable>>,
    peers: HashMap<PeerId, Link>,
}

struct Link {
    queue: mpsc::Sender<RaftEnvelope>,
    addresses: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Links {
    /// No links yet; messages are dropped until [`Self::connect`].
    pub fn new() -> Arc<Self> {
        Arc::new(Self { runtime: tokio::runtime::Handle::current(), state: Mutex::default() })
    }

    /// From now on, streams are opened through this.
    pub fn connect(&self, transport: &Arc<dyn Transport>, mesh: &str, told: &Arc<dyn Unreachable>) {
        let mut state = self.state.lock();
        state.transport = Some(Arc::downgrade(transport));
        state.mesh = request::protocol(mesh, "raft");
        state.told = Some(Arc::downgrade(told));
    }

    /// Ends all links.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.transport = None;
        state.peers.clear();
    }
}

impl Outgoing for Links {
    fn send(&self, to: &Replica, envelope: RaftEnvelope) {
        let Ok(peer) = to.peer_id() else { return };
        let mut state = self.state.lock();
        if !state.peers.contains_key(&peer) {
            let (Some(transport), Some(told)) = (state.transport.clone(), state.told.clone()) else { return };
            let (queue, receiver) = mpsc::channel(MAX_QUEUE);
            let addresses = Arc::new(Mutex::new(to.addresses.clone()));
            let sender = Sender {
                peer,
                protocol: state.mesh.clone(),
                transport,
                told,
                queue: receiver,
                addresses: addresses.clone(),
            };
            let task = AbortOnDropHandle::new(self.runtime.spawn(sender.run()));
            state.peers.insert(peer, Link { queue, addresses, _task: task });
        }
        let Some(link) = state.peers.get(&peer) else { return };
        let mut addresses = link.addresses.lock();
        if *addresses != to.addresses {
            addresses.clone_from(&to.addresses);
        }
        drop(addresses);
        // full: the peer is slower than the group; Raft sends again what it needs
        let _ = link.queue.try_send(envelope);
    }
}

struct Sender {
    peer: PeerId,
    protocol: String,
    transport: Weak<dyn Transport>,
    told: Weak<dyn Unreachable>,
    queue: mpsc::Receiver<RaftEnvelope>,
    addresses: Arc<Mutex<Vec<String>>>,
}

impl Sender {
    async fn run(mut self) {
        let mut wait = FIRST_WAIT;
        while let Some(first) = self.queue.recv().await {
            match self.open().await {
                Some(stream) => {
                    wait = FIRST_WAIT;
                    self.stream(stream, first).await;
                }
                None => {
                    self.give_up(first);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
            while let Ok(stale) = self.queue.try_recv() {
                self.give_up(stale);
            }
        }
    }

    fn give_up(&self, envelope: RaftEnvelope) {
        if let Some(told) = self.told.upgrade() {
            told.unreachable(GroupId(envelope.group), envelope.message.to);
        }
    }

    async fn open(&self) -> Option<BoxStream> {
        let transport = self.transport.upgrade()?;
        let addresses = self.addresses.lock().clone();
        let (_, mut stream) = transport.open(Some(self.peer), &addresses, &self.protocol).await.ok()?;
        // the other side greets, so that a stream which it dropped is not taken for one that stands
        let greeting = timeout(WRITE_TIMEOUT, read_frame::<Welcome>(&mut stream)).await.ok()?;
        greeting.map(|_| stream)
    }

    async fn stream(&mut self, mut stream: BoxStream, first: RaftEnvelope) {
        let mut next = Some(first);
        let mut bytes = BytesMut::new();
        while let Some(envelope) = match next.take() {
            Some(envelope) => Some(envelope),
            None => self.queue.recv().await,
        } {
            let mut size = envelope.encoded_len();
            let mut batch = RaftBatch { messages: vec![envelope] };
            while size < BATCH_BYTES {
                let Ok(more) = self.queue.try_recv() else { break };
                let more_size = more.encoded_len();
                if size + more_size > BATCH_BYTES {
                    next = Some(more);
                    break;
                }
                size += more_size;
                batch.messages.push(more);
            }
            bytes.clear();
            if frame::encode(&batch, &mut bytes).is_err() {
                tracing::error!(peer = %self.peer, "a raft message does not fit a frame; this is a bug");
                continue;
            }
            let write = async {
                stream.write_all(&bytes).await?;
                stream.flush().await
            };
            if !matches!(timeout(WRITE_TIMEOUT, write).await, Ok(Ok(()))) {
                batch.messages.into_iter().for_each(|envelope| self.give_up(envelope));
                return;
            }
        }
    }
}

/// Reads one frame; `None` when the stream ends, or carries something else.
pub async fn read_frame<M: Message + Default>(stream: &mut BoxStream) -> Option<M> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.ok()?;
    let len = u32::from_le_bytes(head) as usize;
    if len > MAX_FRAME {
        return None;
    }
    let mut bytes = BytesMut::new();
    let mut rest = stream.take(len as u64);
    while bytes.len() < len {
        if rest.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    M::decode(bytes.freeze()).ok()
}
