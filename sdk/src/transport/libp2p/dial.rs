//! From addresses to a stream, over whatever swarm dials: a client's own, or a peer's.

use std::time::Duration;

use canal_proto::{Code, PeerId};
use libp2p::core::transport::TransportError;
use libp2p::swarm::DialError;
use libp2p::{Multiaddr, StreamProtocol};
use libp2p_stream::{Control, OpenStreamError};
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::address::{self, Endpoint};
use crate::Error;
use crate::transport::BoxStream;

/// For the protocol's negotiation: one round trip on a connection that stands.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(3);

/// A swarm that connects to others.
pub trait Dial: Sync {
    /// Connects to a peer at any of these addresses, or, with no peer given, to whoever answers at the first of
    /// them. A connection that stands is used.
    fn dial(
        &self,
        peer: Option<libp2p::PeerId>,
        addresses: Vec<Multiaddr>,
    ) -> impl Future<Output = Result<libp2p::PeerId, Error>> + Send;
}

/// Opens a stream, as [`crate::Transport::open`] promises.
///
/// # Errors
/// Those of [`crate::Transport::open`].
pub async fn open(
    swarm: &impl Dial,
    mut control: Control,
    peer: Option<PeerId>,
    addresses: &[String],
    protocol: &str,
) -> Result<(PeerId, BoxStream), Error> {
    let name = StreamProtocol::try_from_owned(protocol.to_owned())
        .map_err(|e| Error::new(Code::InvalidArgument, e.to_string()))?;
    let remote = reach(swarm, peer, addresses).await?;
    let id = PeerId::from_multihash(&remote.to_bytes())
        .map_err(|_| Error::new(Code::Incompatible, format!("{remote} has no ed25519 key")))?;
    match timeout(NEGOTIATION_TIMEOUT, control.open_stream(remote, name)).await {
        Ok(Ok(stream)) => Ok((id, Box::new(stream.compat()) as BoxStream)),
        Ok(Err(OpenStreamError::UnsupportedProtocol(_))) => Err(Error::new(
            Code::Incompatible,
            format!("peer {id} does not speak {protocol}: it belongs to another mesh or has another version"),
        )),
        Ok(Err(error)) => Err(Error::unreachable(format!("no stream to peer {id}: {error}"))),
        Err(_) => Err(Error::unreachable(format!("peer {id} does not answer"))),
    }
}

/// Connects to the peer, or to the first address at which anybody answers.
async fn reach(swarm: &impl Dial, peer: Option<PeerId>, addresses: &[String]) -> Result<libp2p::PeerId, Error> {
    let mut problem = Error::new(Code::InvalidArgument, "no address was given: write host:port or a multiaddress");
    let mut endpoints = Vec::new();
    for text in addresses {
        match address::resolve(text).await {
            Ok(found) => endpoints.extend(found),
            Err(error) => problem = error,
        }
    }
    if let Some(peer) = peer {
        let peer = libp2p::PeerId::from_bytes(&peer.to_multihash())
            .map_err(|e| Error::new(Code::InvalidArgument, format!("not a peer id: {e}")))?;
        // an empty list is tried as well: the connection may stand already
        return swarm.dial(Some(peer), endpoints.into_iter().map(|endpoint| endpoint.address).collect()).await;
    }
    for Endpoint { peer, address } in endpoints {
        match swarm.dial(peer, vec![address]).await {
            Ok(peer) => return Ok(peer),
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

/// Why a dial failed, for people: each address with the innermost cause, without the layers around it.
pub fn reason(error: &DialError) -> String {
    match error {
        DialError::Transport(tried) if !tried.is_empty() => {
            let one = |(address, error): &(Multiaddr, TransportError<std::io::Error>)| match error {
                TransportError::MultiaddrNotSupported(_) => format!("{address}: only QUIC over UDP is spoken"),
                TransportError::Other(error) => format!("{address}: {}", innermost(error)),
            };
            tried.iter().map(one).collect::<Vec<_>>().join("; ")
        }
        DialError::NoAddresses => "no address is known".to_owned(),
        DialError::WrongPeerId { obtained, .. } => format!("another peer answers there: {obtained}"),
        error => error.to_string(),
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    // some layers print what they wrap behind a colon, and have no source
    cause.to_string().rsplit(": ").next().unwrap_or_default().trim_end_matches(['.', ')', ']']).to_owned()
}
