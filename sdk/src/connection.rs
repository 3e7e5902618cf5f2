//! A conversation with one peer: many requests at a time over one stream.
//!
//! Requests are written in the order in which they were begun; answers may come in any order. [`Connection::open`]
//! returns once the peer has said who it is, that it speaks this version, and that it belongs to the wanted mesh.
//! What can't be answered any more fails at once when the stream ends. A frame that can't be read ends the stream.
//! The number of requests in flight and their bytes are bounded: past that, [`Connection::begin`] waits and
//! [`Connection::try_begin`] answers `WouldBlock`.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use canal_proto::request::{self, Answer, Ask, Hello, Request, VERSION, Welcome};
use canal_proto::{Code, MeshId, PeerId, frame};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use self::wire::{Frame, Shared};
use crate::Error;
use crate::transport::Transport;

mod wire;

/// Requests in flight on one connection: a few publishers' pipelines and everything that people do beside them.
pub const MAX_IN_FLIGHT: usize = 1024;
/// Bytes of requests that wait to be written: two of the largest frames, so that one can be written while another
/// is made ready.
pub const MAX_OUTBOUND: usize = 2 * (canal_proto::limits::MAX_FRAME + 4);

/// With what a conversation begins.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Name of the mesh.
    pub mesh: String,
    /// Which protocol: `client` or `peer`.
    pub protocol: &'static str,
    /// What is said first.
    pub hello: Hello,
}

impl Opening {
    /// How a client begins.
    pub fn client(mesh: impl Into<String>, namespace: impl Into<String>) -> Self {
        let hello = Hello { version: VERSION, namespace: namespace.into(), ..Hello::default() };
        Self { mesh: mesh.into(), protocol: "client", hello }
    }

    /// How a peer begins with another: it says its mesh (none when it has yet to join) and where it can be reached.
    pub fn peer(
        mesh: impl Into<String>,
        namespace: impl Into<String>,
        id: Option<MeshId>,
        addresses: Vec<String>,
    ) -> Self {
        let Self { mesh, hello, .. } = Self::client(mesh, namespace);
        let hello = Hello { mesh: id.map(|id| id.to_vec()).unwrap_or_default().into(), addresses, ..hello };
        Self { mesh, protocol: "peer", hello }
    }
}

/// A conversation with one peer. Clones share it; it ends with the last of them and of its [`Reply`]s.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    peer: PeerId,
    welcome: Welcome,
    channel: Channel,
}

/// What it takes to ask; the welcome is asked for with it as well.
struct Channel {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    /// Opens a stream to `peer` (or whoever answers) at one of these addresses, and exchanges greetings.
    ///
    /// # Errors
    /// Those of [`Transport::open`]; `Incompatible` for another version or mesh, `Unreachable` when the peer hangs
    /// up or stays silent until the deadline.
    pub async fn open(
        transport: &dyn Transport,
        peer: Option<PeerId>,
        addresses: &[String],
        opening: &Opening,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let end = Instant::now() + deadline;
        let protocol = request::protocol(&opening.mesh, opening.protocol);
        let silent = |_| Error::unreachable(format!("nobody answers at {}", addresses.join(", ")));
        let (peer, stream) = timeout_at(end, transport.open(peer, addresses, &protocol)).await.map_err(silent)??;
        let (shared, frames) = Shared::new();
        let task = tokio::spawn(wire::drive(stream, frames, Arc::clone(&shared)));
        let channel = Channel { shared, _task: AbortOnDropHandle::new(task) };
        let silent = |_| Error::unreachable(format!("peer {peer} does not answer"));
        let asked = channel.begin(Ask::Hello(opening.hello.clone()), deadline);
        let (_, answer) = timeout_at(end, asked).await.map_err(silent)??;
        let answer = timeout_at(end, answer).await.map_err(silent)?;
        let welcome = match answer.map_err(|_| Error::unreachable(format!("peer {peer} hung up")))?? {
            Answer::Welcome(welcome) => welcome,
            Answer::Error(error) => return Err(error.into()),
            _ => return Err(Error::unexpected("the greeting")),
        };
        check(&welcome, peer, opening)?;
        Ok(Self(Arc::new(Inner { peer, welcome, channel })))
    }

    /// The peer.
    pub fn peer(&self) -> PeerId {
        self.0.peer
    }

    /// What the peer said of itself.
    pub fn welcome(&self) -> &Welcome {
        &self.0.welcome
    }

    /// Whether the stream has ended.
    pub fn is_closed(&self) -> bool {
        self.0.channel.shared.ended().is_some()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// What the peer answers; `NoQuorum` when the deadline passes without an answer, `Unreachable` when the stream
    /// ends, `Malformed` when it carries what can't be read: after these three, the request may or may not have
    /// taken effect.
    pub async fn request(&self, ask: Ask, deadline: Duration) -> Result<Answer, Error> {
        let end = Instant::now() + deadline;
        let reply = timeout_at(end, self.begin(ask, deadline)).await.map_err(|_| self.late())??;
        match reply.answer().await? {
            Answer::Error(error) => Err(error.into()),
            answer => Ok(answer),
        }
    }

    /// Asks, and returns as soon as the request has its place in the order of requests. Waits while too many are in
    /// flight.
    ///
    /// # Errors
    /// `TooLarge` when it fits no frame, `Unreachable` when the stream has ended.
    pub async fn begin(&self, ask: Ask, deadline: Duration) -> Result<Reply, Error> {
        let end = Instant::now() + deadline;
        let (id, receiver) = self.0.channel.begin(ask, deadline).await?;
        Ok(Reply { id, receiver, end, connection: self.clone() })
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when too many requests are in flight; those of [`Connection::begin`].
    pub fn try_begin(&self, ask: Ask, deadline: Duration) -> Result<Reply, Error> {
        let end = Instant::now() + deadline;
        let (id, receiver) = self.0.channel.try_begin(ask, deadline)?;
        Ok(Reply { id, receiver, end, connection: self.clone() })
    }

    fn late(&self) -> Error {
        Error::new(Code::NoQuorum, format!("peer {} has not answered within the deadline", self.0.peer))
    }
}

/// An answer to come. Dropped, nobody waits for it any more; the request may take effect all the same.
pub struct Reply {
    id: u64,
    receiver: oneshot::Receiver<Result<Answer, Error>>,
    end: Instant,
    connection: Connection,
}

impl Reply {
    /// Waits for the answer; an error that the peer answered is an [`Answer::Error`].
    ///
    /// # Errors
    /// As [`Connection::request`] for what did not come from the peer.
    pub async fn answer(mut self) -> Result<Answer, Error> {
        match timeout_at(self.end, &mut self.receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                Err(Error::unreachable(format!("the conversation with peer {} ended", self.connection.peer())))
            }
            Err(_) => Err(self.connection.late()),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.connection.0.channel.shared.forget(self.id);
    }
}

type Begun = (u64, oneshot::Receiver<Result<Answer, Error>>);

impl Channel {
    async fn begin(&self, ask: Ask, deadline: Duration) -> Result<Begun, Error> {
        let (id, bytes) = self.encode(ask, deadline)?;
        let place = Arc::clone(&self.shared.in_flight).acquire_owned().await;
        let room = Arc::clone(&self.shared.outbound).acquire_many_owned(weight(&bytes)).await;
        match (place, room) {
            (Ok(place), Ok(room)) => self.enqueue(id, bytes, place, room),
            _ => Err(self.shared.ended().unwrap_or_else(|| Error::unreachable("the conversation ended"))),
        }
    }

    fn try_begin(&self, ask: Ask, deadline: Duration) -> Result<Begun, Error> {
        let full = |_| Error::new(Code::WouldBlock, "too many requests are in flight: wait and try again");
        let place = Arc::clone(&self.shared.in_flight).try_acquire_owned().map_err(full)?;
        let (id, bytes) = self.encode(ask, deadline)?;
        let room = Arc::clone(&self.shared.outbound).try_acquire_many_owned(weight(&bytes)).map_err(full)?;
        self.enqueue(id, bytes, place, room)
    }

    fn encode(&self, ask: Ask, deadline: Duration) -> Result<(u64, BytesMut), Error> {
        let id = self.shared.next_id();
        // zero would mean the peer's default
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX).max(1);
        let mut bytes = BytesMut::new();
        frame::encode(&Request { id, deadline_ms, ask: Some(ask) }, &mut bytes)?;
        Ok((id, bytes))
    }

    fn enqueue(
        &self,
        id: u64,
        bytes: BytesMut,
        place: OwnedSemaphorePermit,
        room: OwnedSemaphorePermit,
    ) -> Result<Begun, Error> {
        let (reply, receiver) = oneshot::channel();
        self.shared.enqueue(id, reply, place, Frame { bytes, _room: room })?;
        Ok((id, receiver))
    }
}

fn weight(bytes: &BytesMut) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn check(welcome: &Welcome, peer: PeerId, opening: &Opening) -> Result<(), Error> {
    let incompatible = |why: String| Err(Error::new(Code::Incompatible, format!("peer {peer} {why}")));
    if welcome.version != VERSION {
        return incompatible(format!("speaks version {}, this client speaks {VERSION}", welcome.version));
    }
    if welcome.peer.as_ref() != peer.public_key() {
        return incompatible("says that it is another one: is something between you and it?".into());
    }
    if !welcome.mesh_name.is_empty() && welcome.mesh_name != opening.mesh {
        return incompatible(format!("belongs to mesh `{}`, not `{}`", welcome.mesh_name, opening.mesh));
    }
    let (ours, theirs) = (&opening.hello.mesh, &welcome.mesh);
    if !ours.is_empty() && !theirs.is_empty() && ours != theirs {
        return incompatible(format!("belongs to another mesh that is called `{}` too", opening.mesh));
    }
    Ok(())
}
