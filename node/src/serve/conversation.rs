//! Requests over one stream: many at a time, answered as they are done.
//!
//! Publishes are put before their group in the order in which they came, so that a publisher may pipeline. Everything
//! else runs beside. When too much is under way, the stream is not read: the client feels it as back-pressure.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use canal_proto::request::{Answer, Ask, Hello, Request, Response, VERSION, Welcome};
use canal_proto::{Code, MeshId, PeerId, WireError, frame};
use canal_sdk::BoxStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{answers, publish};
use crate::net::Protocol;
use crate::node::{NAMESPACE, Node};

/// Requests of one conversation under way.
const MAX_REQUESTS: usize = 1024;
/// Answers that wait to be written: a client that does not read holds no more than this.
const MAX_ANSWERS: usize = 64;
/// How long a client has for its greeting.
const GREETING: Duration = Duration::from_secs(10);
/// How long a client may take to take an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of a request that names none.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest deadline.
const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes read at a time.
const READ: usize = 64 << 10;

/// Serves one conversation to its end.
pub async fn serve(node: Arc<Node>, protocol: Protocol, peer: PeerId, stream: BoxStream) {
    let (read, write) = tokio::io::split(stream);
    let (answers, outbox) = mpsc::channel(MAX_ANSWERS);
    let mut tasks = JoinSet::new();
    let writer = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(write_answers(write, outbox)));
    let mut reader = Reader { stream: read, bytes: BytesMut::new() };
    let mut conversation = Conversation { node, protocol, peer, answers, room: Arc::new(Semaphore::new(MAX_REQUESTS)) };
    if let Err(error) = conversation.run(&mut reader, &mut tasks).await {
        let answer = Response { id: 0, answer: Some(Answer::Error(error)) };
        let _ = conversation.answers.send(answer).await;
    }
    // nobody is left to answer, unless the client only closed its own side
    while tasks.join_next().await.is_some() {}
    drop(conversation);
    let _ = writer.await;
}

struct Reader {
    stream: ReadHalf<BoxStream>,
    bytes: BytesMut,
}

impl Reader {
    /// The next request; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<Request>, WireError> {
        loop {
            match frame::decode::<Request>(&mut self.bytes) {
                Ok(Some(request)) => return Ok(Some(request)),
                Ok(None) => {}
                Err(error) => return Err(WireError::new(Code::Malformed, error.to_string())),
            }
            self.bytes.reserve(READ);
            match self.stream.read_buf(&mut self.bytes).await {
                Ok(0) | Err(_) if self.bytes.is_empty() => return Ok(None),
                Ok(0) => return Err(WireError::new(Code::Malformed, "the stream ended within a frame")),
                Ok(_) => {}
                Err(_) => return Ok(None),
            }
        }
    }
}

async fn write_answers(mut stream: WriteHalf<BoxStream>, mut outbox: mpsc::Receiver<Response>) {
    let mut bytes = BytesMut::new();
    while let Some(first) = outbox.recv().await {
        bytes.clear();
        put(&first, &mut bytes);
        while let Ok(more) = outbox.try_recv() {
            put(&more, &mut bytes);
        }
        let write = async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        };
        if !matches!(timeout(WRITE_TIMEOUT, write).await, Ok(Ok(()))) {
            return;
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
    answers: mpsc::Sender<Response>,
    room: Arc<Semaphore>,
}

impl Conversation {
    async fn run(&mut self, reader: &mut Reader, tasks: &mut JoinSet<()>) -> Result<(), WireError> {
        let silent = |_| WireError::new(Code::Malformed, "no greeting came");
        let Some(first) = timeout(GREETING, reader.next()).await.map_err(silent)?? else { return Ok(()) };
        let Some(Ask::Hello(hello)) = first.ask else {
            return Err(WireError::new(Code::Malformed, "a conversation begins with a greeting"));
        };
        let answer = match self.greet(&hello).await {
            Ok(welcome) => Answer::Welcome(welcome),
            Err(error) => Answer::Error(error),
        };
        let refused = matches!(answer, Answer::Error(_));
        let _ = self.answers.send(Response { id: first.id, answer: Some(answer) }).await;
        if refused {
            return Ok(());
        }
        while let Some(request) = reader.next().await? {
            while tasks.try_join_next().is_some() {}
            let Ok(permit) = self.room.clone().acquire_owned().await else { return Ok(()) };
            let deadline = match request.deadline_ms {
                0 => DEADLINE,
                ms => Duration::from_millis(ms.into()).min(MAX_DEADLINE),
            };
            let (answers, id) = (self.answers.clone(), request.id);
            let answer = self.begin(request.ask);
            tasks.spawn(async move {
                let answer = match timeout(deadline, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => Answer::Error(error),
                    Err(_) => Answer::Error(WireError::new(
                        Code::NoQuorum,
                        format!("no majority answered within {} ms; it may still take effect", deadline.as_millis()),
                    )),
                };
                let _ = answers.send(Response { id, answer: Some(answer) }).await;
                drop(permit);
            });
        }
        Ok(())
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
