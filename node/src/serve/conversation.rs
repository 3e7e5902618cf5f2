//! Requests over one stream: many at a time, answered as they are done.
//!
//! Publishes are put before their group in the order in which they came, so that a publisher may pipeline. Everything
//! else runs beside. When too much is under way, the stream is not read: the client feels it as back-pressure. What all
//! of it may take is said in [`super::room`]; a frame that was begun has to be whole in time, and so have answers to be
//! taken.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use canal_proto::limits::MAX_FRAME;
use canal_proto::request::{Answer, Ask, Hello, Request, Response, VERSION, Welcome};
use canal_proto::{Code, MeshId, PeerId, WireError, frame};
use canal_sdk::BoxStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::room::{Held, Room, Share, answer_bytes};
use super::{answers, publish};
use crate::net::Protocol;
use crate::net::refused::{Reason, Refused};
use crate::node::{NAMESPACE, Node};

/// Requests of one conversation under way.
const MAX_REQUESTS: usize = 1024;
/// Answers that wait to be written: a client that does not read holds no more than this.
const MAX_ANSWERS: usize = 64;
/// How long a client has for its greeting.
const GREETING: Duration = Duration::from_secs(10);
/// How long a frame may take from its first bytes to its last: the largest, over a link of a megabit a second.
const FRAME_TIME: Duration = Duration::from_secs(40);
/// How long a client may take to take an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of a request that names none.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest deadline.
const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes read at a time, at most, and of a frame that is not whole before it needs room of its own.
const READ: usize = 64 << 10;
/// Bytes read at a time from who sends little: most conversations are idle, and what is read into is memory.
const LITTLE: usize = 4 << 10;
/// Answers that have arrived are written together up to about this size.
const WRITE_BATCH: usize = 256 << 10;
/// What a step of reading a request stands for at least; see [`frame::read`].
const BYTES_A_STEP: usize = 16;

/// Serves one conversation to its end.
pub async fn serve(node: Arc<Node>, room: Room, protocol: Protocol, peer: PeerId, stream: BoxStream) {
    let (read, write) = tokio::io::split(stream);
    let (answers, outbox) = mpsc::channel(MAX_ANSWERS);
    let mut tasks = JoinSet::new();
    let writing = write_answers(write, outbox, node.clone());
    let writer = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(writing));
    let mut reader = Reader { stream: read, bytes: BytesMut::new(), chunk: LITTLE, room: room.clone(), held: None };
    let share = room.share();
    let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
    let mut conversation = Conversation { node, protocol, peer, answers, requests, share };
    let taken = conversation.answers.clone();
    let gone = taken.closed();
    let ended = tokio::select! {
        biased;
        // nobody takes answers any more
        () = gone => Ok(()),
        ended = conversation.run(&mut reader, &mut tasks) => ended,
    };
    drop(taken);
    drop(reader);
    if let Err((reason, error)) = ended {
        conversation.node.net.refused().count(reason);
        let answer = Response { id: 0, answer: Some(Answer::Error(*error)) };
        let _ = conversation.answers.send((answer, Share::none())).await;
    }
    if conversation.answers.is_closed() {
        tasks.abort_all();
    }
    // nobody is left to answer, unless the client only closed its own side
    while tasks.join_next().await.is_some() {}
    drop(conversation);
    let _ = writer.await;
}

/// Why a conversation ends, and how that is counted.
type Ended = (Reason, Box<WireError>);

fn malformed(message: impl Into<String>) -> Ended {
    (Reason::Malformed, Box::new(WireError::new(Code::Malformed, message)))
}

struct Reader {
    stream: ReadHalf<BoxStream>,
    bytes: BytesMut,
    /// Bytes to read next: what comes says how much comes at a time.
    chunk: usize,
    room: Room,
    /// Room for the frame that is being received.
    held: Option<(usize, Held)>,
}

impl Reader {
    /// The next request, and the bytes of its frame; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<(Request, usize)>, Ended> {
        loop {
            match frame::split(&mut self.bytes) {
                Ok(Some(frame)) => {
                    self.held = None;
                    let length = frame.len();
                    let request = frame::read(frame, BYTES_A_STEP).map_err(|e| malformed(e.to_string()))?;
                    return Ok(Some((request, length)));
                }
                Ok(None) => {}
                Err(error) => return Err(malformed(error.to_string())),
            }
            if self.bytes.is_empty() {
                // as long as it likes: it has nothing to say
                if !self.more().await? {
                    return Ok(None);
                }
                continue;
            }
            let whole = async {
                while !self.is_whole() {
                    self.make_room()?;
                    if !self.more().await? {
                        return Err(malformed("the stream ended within a frame"));
                    }
                }
                Ok(())
            };
            let late = || malformed(format!("a frame was begun and not ended in {FRAME_TIME:?}")).1;
            timeout(FRAME_TIME, whole).await.map_err(|_| (Reason::Late, late()))??;
        }
    }

    /// Whether there is something to decide on: a frame, or a length that is refused.
    fn is_whole(&self) -> bool {
        let length = self.bytes.first_chunk::<4>().map(|head| u32::from_le_bytes(*head) as usize);
        length.is_some_and(|length| length > MAX_FRAME || self.bytes.len() >= 4 + length)
    }

    /// A frame that fills the buffer needs room among those of all conversations.
    fn make_room(&mut self) -> Result<(), Ended> {
        let needed = self.bytes.len() + self.chunk;
        if needed <= 2 * READ || self.held.as_ref().is_some_and(|(held, _)| *held >= needed) {
            return Ok(());
        }
        self.held = None;
        let full =
            || WireError::new(Code::WouldBlock, "this peer receives as many large requests as it may; try again");
        let held = self.room.receive(2 * needed).ok_or_else(|| (Reason::Busy, Box::new(full())))?;
        self.held = Some((2 * needed, held));
        Ok(())
    }

    /// Reads what there is; false at the end.
    async fn more(&mut self) -> Result<bool, Ended> {
        self.bytes.reserve(self.chunk);
        let count = match (&mut self.stream).take(self.chunk as u64).read_buf(&mut self.bytes).await {
            // a stream that broke has nobody to be told
            Ok(0) | Err(_) => return Ok(false),
            Ok(count) => count,
        };
        if count >= self.chunk {
            self.chunk = (2 * self.chunk).min(READ);
        } else if count < self.chunk / 4 {
            self.chunk = (self.chunk / 2).max(LITTLE);
        }
        Ok(true)
    }
}

async fn write_answers(
    mut stream: WriteHalf<BoxStream>,
    mut outbox: mpsc::Receiver<(Response, Held)>,
    node: Arc<Node>,
) {
    let mut bytes = BytesMut::new();
    while let Some((first, room)) = outbox.recv().await {
        let mut held = vec![room];
        put(&first, &mut bytes);
        drop(first);
        while bytes.len() < WRITE_BATCH {
            let Ok((more, room)) = outbox.try_recv() else { break };
            put(&more, &mut bytes);
            held.push(room);
        }
        let write = async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                node.net.refused().count(Reason::Unread);
                return;
            }
        }
        bytes.clear();
        if bytes.capacity() > 2 * WRITE_BATCH {
            bytes = BytesMut::new();
        }
    }
    let _ = stream.shutdown().await;
}

fn put(response: &Response, bytes: &mut BytesMut) {
    if let Err(error) = frame::encode(response, bytes) {
        let error = WireError::new(Code::TooLarge, format!("the answer does not fit: {error}; ask for less"));
        let answer = Response { id: response.id, answer: Some(Answer::Error(error)) };
        // an error text always fits a frame
        let _ = frame::encode(&answer, bytes);
    }
}

struct Conversation {
    node: Arc<Node>,
    protocol: Protocol,
    peer: PeerId,
    answers: mpsc::Sender<(Response, Held)>,
    requests: Arc<Semaphore>,
    share: Share,
}

impl Conversation {
    async fn run(&mut self, reader: &mut Reader, tasks: &mut JoinSet<()>) -> Result<(), Ended> {
        let silent = |_| (Reason::Late, malformed("no greeting came").1);
        let Some((first, _)) = timeout(GREETING, reader.next()).await.map_err(silent)?? else { return Ok(()) };
        let Some(Ask::Hello(hello)) = first.ask else {
            return Err(malformed("a conversation begins with a greeting"));
        };
        let answer = match self.greet(&hello).await {
            Ok(welcome) => Answer::Welcome(welcome),
            Err(error) => {
                self.refused().count(Reason::Incompatible);
                Answer::Error(error)
            }
        };
        let refused = matches!(answer, Answer::Error(_));
        let _ = self.answers.send((Response { id: first.id, answer: Some(answer) }, Share::none())).await;
        if refused {
            return Ok(());
        }
        while let Some((Request { id, deadline_ms, ask }, length)) = reader.next().await? {
            while tasks.try_join_next().is_some() {}
            let Ok(permit) = self.requests.clone().acquire_owned().await else { return Ok(()) };
            let Some(held) = self.share.hold(length + answer_bytes(ask.as_ref())).await else {
                self.refused().count(Reason::Busy);
                let error = WireError::new(Code::WouldBlock, "this peer has too much under way; try again");
                let answer = Response { id, answer: Some(Answer::Error(error)) };
                let _ = self.answers.send((answer, Share::none())).await;
                continue;
            };
            let deadline = match deadline_ms {
                0 => DEADLINE,
                ms => Duration::from_millis(ms.into()).min(MAX_DEADLINE),
            };
            let answers = self.answers.clone();
            let answer = self.begin(ask);
            tasks.spawn(async move {
                let answer = match timeout(deadline, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => Answer::Error(error),
                    Err(_) => Answer::Error(WireError::new(
                        Code::NoQuorum,
                        format!("no majority answered within {} ms; it may still take effect", deadline.as_millis()),
                    )),
                };
                let _ = answers.send((Response { id, answer: Some(answer) }, held)).await;
                drop(permit);
            });
        }
        Ok(())
    }

    fn refused(&self) -> &Refused {
        self.node.net.refused()
    }

    async fn greet(&self, hello: &Hello) -> Result<Welcome, WireError> {
        if hello.version != VERSION {
            let message =
                format!("you speak version {} of the protocol, this peer {VERSION}; update the older", hello.version);
            return Err(WireError::new(Code::Incompatible, message));
        }
        if hello.namespace != NAMESPACE {
            let message = format!("no namespace `{}`; this mesh has only `{NAMESPACE}`", hello.namespace);
            return Err(WireError::new(Code::InvalidArgument, message));
        }
        if let Ok(mesh) = MeshId::from_slice(&hello.mesh)
            && mesh != self.node.mesh
        {
            let message = format!("you belong to mesh {mesh}, this peer to {}, of the same name", self.node.mesh);
            return Err(WireError::new(Code::Incompatible, message));
        }
        if self.protocol == Protocol::Peer && self.peer != self.node.id {
            self.node.net.know(self.peer, &hello.addresses).await;
        }
        Ok(Welcome {
            version: VERSION,
            peer: Bytes::from(self.node.id.to_vec()),
            mesh: Bytes::from(self.node.mesh.to_vec()),
            mesh_name: self.node.net.mesh().to_owned(),
            addresses: self.node.net.addresses(),
            ..Welcome::default()
        })
    }

    /// Begins a request; what depends on the order is done when this returns.
    fn begin(&self, ask: Option<Ask>) -> impl Future<Output = Result<Answer, WireError>> + Send + 'static {
        let node = self.node.clone();
        let (between_peers, peer) = (self.protocol == Protocol::Peer, self.peer);
        let begun = match ask {
            Some(Ask::Publish(ask)) => Err(publish::begin(&node, ask, between_peers)),
            other => Ok(other),
        };
        async move {
            match begun {
                Err(publish) => publish::finish(&node, publish).await,
                Ok(Some(ask)) => answers::answer(&node, peer, between_peers, ask).await,
                Ok(None) => Err(WireError::new(
                    Code::InvalidArgument,
                    "a request that this version does not know; update the peer",
                )),
            }
        }
    }
}
