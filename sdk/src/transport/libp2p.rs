//! Streams over libp2p's QUIC: a swarm that does nothing else.
//!
//! The identity is drawn anew for each transport: a client is nobody in particular. One task drives the swarm and
//! ends with the transport. A peer that stops answering is noticed after [`IDLE_TIMEOUT`]: its connection and every
//! stream on it fail then.

use std::collections::HashMap;
use std::time::Duration;

use canal_proto::{Code, PeerId};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder, identity};
use libp2p_stream::{Behaviour, Control};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::{BoxStream, Transport};
use crate::Error;

pub mod address;
pub mod dial;

/// A peer that was killed or cut off is noticed after this time: longer than the pauses of a busy machine, shorter
/// than a user's patience.
pub const IDLE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Well below [`IDLE_TIMEOUT`], so that a few lost packets do no harm.
pub const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Connections without a stream are kept for the next request.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(30);
/// Dials that wait for the swarm: more than a client has peers to talk to at a time.
const MAX_DIALS: usize = 64;

/// A transport over a swarm of its own.
pub struct Libp2p {
    dials: mpsc::Sender<Dial>,
    control: Control,
    _task: AbortOnDropHandle<()>,
}

type Connected = Result<libp2p::PeerId, Error>;

struct Dial {
    peer: Option<libp2p::PeerId>,
    addresses: Vec<Multiaddr>,
    reply: oneshot::Sender<Connected>,
}

impl Libp2p {
    /// Starts a swarm in the current tokio runtime.
    ///
    /// # Errors
    /// `Internal` when the swarm can't be built.
    pub fn new() -> Result<Self, Error> {
        let swarm = SwarmBuilder::with_existing_identity(identity::Keypair::generate_ed25519())
            .with_tokio()
            .with_quic_config(|mut config| {
                config.keep_alive_interval = KEEP_ALIVE;
                config.max_idle_timeout = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
                config.handshake_timeout = IDLE_TIMEOUT;
                config
            })
            .with_behaviour(|_| Behaviour::new())
            .map_err(|e| Error::new(Code::Internal, format!("the swarm could not be built: {e}")))?
            .with_swarm_config(|config| config.with_idle_connection_timeout(UNUSED_TIMEOUT))
            .build();
        let control = swarm.behaviour().new_control();
        let (dials, receiver) = mpsc::channel(MAX_DIALS);
        let task = tokio::spawn(Driver { swarm, waiting: HashMap::new(), dialing: HashMap::new() }.run(receiver));
        Ok(Self { dials, control, _task: AbortOnDropHandle::new(task) })
    }
}

impl dial::Dial for Libp2p {
    async fn dial(&self, peer: Option<libp2p::PeerId>, addresses: Vec<Multiaddr>) -> Connected {
        let (reply, connected) = oneshot::channel();
        let dial = Dial { peer, addresses, reply };
        self.dials.send(dial).await.map_err(|_| Error::unreachable("the transport has stopped"))?;
        connected.await.map_err(|_| Error::unreachable("the transport has stopped"))?
    }
}

impl Transport for Libp2p {
    fn open<'a>(
        &'a self,
        peer: Option<PeerId>,
        addresses: &'a [String],
        protocol: &'a str,
    ) -> BoxFuture<'a, Result<(PeerId, BoxStream), Error>> {
        dial::open(self, self.control.clone(), peer, addresses, protocol).boxed()
    }
}

/// Drives the swarm, and tells who waits for a connection what became of it.
struct Driver {
    swarm: Swarm<Behaviour>,
    waiting: HashMap<ConnectionId, Vec<oneshot::Sender<Connected>>>,
    dialing: HashMap<libp2p::PeerId, ConnectionId>,
}

impl Driver {
    async fn run(mut self, mut dials: mpsc::Receiver<Dial>) {
        loop {
            tokio::select! {
                biased;
                event = self.swarm.select_next_some() => self.on_event(event),
                dial = dials.recv(), if self.waiting.len() < MAX_DIALS => match dial {
                    Some(dial) => self.on_dial(dial),
                    None => return,
                },
            }
        }
    }

    fn on_dial(&mut self, dial: Dial) {
        let Dial { peer, mut addresses, reply } = dial;
        let options = match peer {
            Some(peer) if self.swarm.is_connected(&peer) => return answer(reply, Ok(peer)),
            Some(peer) => {
                let under_way = self.dialing.get(&peer).and_then(|id| self.waiting.get_mut(id));
                if let Some(others) = under_way {
                    others.push(reply);
                    return;
                }
                DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses).build()
            }
            None => match addresses.pop() {
                Some(address) => DialOpts::unknown_peer_id().address(address).build(),
                None => return answer(reply, Err(Error::unreachable("no address to dial"))),
            },
        };
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.waiting.insert(id, vec![reply]);
                if let Some(peer) = peer {
                    self.dialing.insert(peer, id);
                }
            }
            Err(error) => answer(reply, Err(Error::unreachable(dial::reason(&error)))),
        }
    }

    fn on_event(&mut self, event: SwarmEvent<()>) {
        let (id, result) = match event {
            SwarmEvent::ConnectionEstablished { connection_id, peer_id, .. } => (connection_id, Ok(peer_id)),
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                (connection_id, Err(Error::unreachable(format!("no connection: {}", dial::reason(&error)))))
            }
            SwarmEvent::ConnectionClosed { peer_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                return;
            }
            _ => return,
        };
        self.dialing.retain(|_, dialing| *dialing != id);
        for reply in self.waiting.remove(&id).unwrap_or_default() {
            answer(reply, result.clone());
        }
    }
}

fn answer(reply: oneshot::Sender<Connected>, result: Connected) {
    if reply.send(result).is_err() {
        tracing::trace!("nobody waits for this connection any more");
    }
}
