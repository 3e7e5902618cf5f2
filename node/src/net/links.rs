//! Raft messages to other peers: one stream and one task a peer, however many groups the two share.
//!
//! A message that can't be sent now is dropped: Raft repairs it, and what is old by the time a peer is back would only
//! be in the way. The sender is told that the replica could not be reached.
//!
//! Before the first message both sides say their start ([`crate::starts`]); neither an older disk nor one that is known
//! here to be older than its peer's promises takes part.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use canal_consensus::Outgoing;
use canal_proto::limits::MAX_FRAME;
use canal_proto::peer::{RaftBatch, RaftEnvelope, RaftHello, RaftVerdict, Replica};
use canal_proto::request::{self, VERSION, Welcome};
use canal_proto::{Code, GroupId, PeerId, frame};
use canal_sdk::{BoxStream, Transport};
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::starts::{Start, Starts};

/// Messages that wait for one peer: some turns of many groups, and little enough memory with entries in them.
const MAX_QUEUE: usize = 1024;
/// Messages in one frame: heartbeats of as many groups, and a bound on what a receiver has to make room for.
pub const MAX_MESSAGES: usize = 16 << 10;
/// Bytes of messages in one frame: what has arrived is sent together, but never more than fits.
const BATCH_BYTES: usize = MAX_FRAME / 2;
/// How long the other side may take to take a frame.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// For greetings in both directions, with a synced write on each side.
pub const GREETING: Duration = Duration::from_secs(5);
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
    starts: Arc<Starts>,
    sent: Arc<Sent>,
    state: Mutex<State>,
}

/// What has left for other peers, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Raft messages.
    pub messages: u64,
    /// Frames that they travelled in.
    pub frames: u64,
    /// Bytes of these.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Sent {
    messages: AtomicU64,
    frames: AtomicU64,
    bytes: AtomicU64,
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
    pub fn new(starts: Arc<Starts>) -> Arc<Self> {
        let (sent, state) = (Arc::default(), Mutex::default());
        Arc::new(Self { runtime: tokio::runtime::Handle::current(), starts, sent, state })
    }

    /// What has been sent since the start.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            messages: self.sent.messages.load(Ordering::Relaxed),
            frames: self.sent.frames.load(Ordering::Relaxed),
            bytes: self.sent.bytes.load(Ordering::Relaxed),
        }
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
        if self.starts.is_forgotten() {
            return;
        }
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
                starts: self.starts.clone(),
                sent: self.sent.clone(),
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
    starts: Arc<Starts>,
    sent: Arc<Sent>,
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
        match timeout(GREETING, self.agree(&mut stream)).await {
            Ok(Some(())) => Some(stream),
            _ => None,
        }
    }

    /// Both sides say their start, and agree that messages may pass.
    async fn agree(&self, stream: &mut BoxStream) -> Option<()> {
        // the other side greets first, so that a stream which it dropped is not taken for one that stands
        let welcome = read_frame::<Welcome>(stream).await?;
        let own = self.starts.own();
        let mut hello = RaftHello { version: VERSION, boot: own.boot, nonce: own.nonce, ..RaftHello::default() };
        let theirs = Start { boot: welcome.boot, nonce: welcome.nonce };
        if theirs.boot == 0 {
            tracing::warn!(peer = %self.peer, "it does not say which start of it this is; it gets no raft messages");
            return None;
        }
        match self.starts.admit(self.peer, theirs).await {
            Ok(()) => {}
            Err(None) => return None,
            Err(Some(seen)) => {
                tracing::warn!(
                    peer = %self.peer, says = theirs.boot, seen = seen.boot,
                    "its disk is older than what was seen of it; it gets no messages until it has begun anew"
                );
                (hello.seen_boot, hello.seen_nonce) = (seen.boot, seen.nonce);
                write_frame(stream, &hello).await?;
                // it hangs up when it has read that
                let _ = read_frame::<RaftVerdict>(stream).await;
                return None;
            }
        }
        write_frame(stream, &hello).await?;
        let verdict = read_frame::<RaftVerdict>(stream).await?;
        let Some(refused) = verdict.refused else { return Some(()) };
        if refused.code == i32::from(Code::Forgotten) {
            self.starts.told(self.peer, Start { boot: verdict.boot, nonce: verdict.nonce });
        } else {
            tracing::warn!(peer = %self.peer, error = %refused, "it takes no raft messages");
        }
        None
    }

    async fn stream(&mut self, mut stream: BoxStream, first: RaftEnvelope) {
        let mut next = Some(first);
        let mut bytes = BytesMut::new();
        while let Some(envelope) = match next.take() {
            Some(envelope) => Some(envelope),
            None => self.queue.recv().await,
        } {
            if self.starts.is_forgotten() {
                return;
            }
            let mut size = envelope.encoded_len();
            let mut batch = RaftBatch { messages: vec![envelope] };
            while size < BATCH_BYTES && batch.messages.len() < MAX_MESSAGES {
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
            self.sent.messages.fetch_add(batch.messages.len() as u64, Ordering::Relaxed);
            self.sent.frames.fetch_add(1, Ordering::Relaxed);
            self.sent.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Writes one frame; `None` when the stream has ended.
pub async fn write_frame<M: Message>(stream: &mut BoxStream, message: &M) -> Option<()> {
    let mut bytes = BytesMut::new();
    frame::encode(message, &mut bytes).ok()?;
    stream.write_all(&bytes).await.ok()?;
    stream.flush().await.ok()
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
