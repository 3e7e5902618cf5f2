//! Addresses as people and peers write them: `host:port`, `ip:port`, or a multiaddress with or without `/p2p/PEER`.

use std::net::{IpAddr, SocketAddr};

use canal_proto::Code;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use crate::Error;

/// Addresses of one name that are tried at most.
const MAX_RESOLVED: usize = 8;

/// An address that can be dialled, and the peer that is expected there if it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer.
    pub peer: Option<PeerId>,
    /// Where it is; without the peer.
    pub address: Multiaddr,
}

/// Reads an address, and asks the name service where a name stands in it.
///
/// # Errors
/// `InvalidArgument` when it is no address, `Unreachable` when its name is unknown.
pub async fn resolve(text: &str) -> Result<Vec<Endpoint>, Error> {
    if !text.starts_with('/') {
        return Ok(look_up(text).await?.map(|socket| Endpoint { peer: None, address: quic(socket) }).collect());
    }
    let mut address: Multiaddr = text.parse().map_err(|e| invalid(text, &format!("{e}")))?;
    let mut peer = None;
    if let Some(Protocol::P2p(id)) = address.iter().last() {
        peer = Some(id);
        address.pop();
    }
    let mut parts = address.iter();
    let name = match (parts.next(), parts.next()) {
        (Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)), Some(Protocol::Udp(port))) => {
            format!("{name}:{port}")
        }
        _ => return Ok(vec![Endpoint { peer, address }]),
    };
    Ok(look_up(&name).await?.map(|socket| Endpoint { peer, address: quic(socket) }).collect())
}

async fn look_up(text: &str) -> Result<impl Iterator<Item = SocketAddr>, Error> {
    if !text.contains(':') {
        return Err(invalid(text, "the port is missing"));
    }
    let found = tokio::net::lookup_host(text)
        .await
        .map_err(|e| Error::unreachable(format!("`{text}` can't be resolved: {e}; write host:port")))?;
    Ok(found.take(MAX_RESOLVED).collect::<Vec<_>>().into_iter())
}

fn quic(socket: SocketAddr) -> Multiaddr {
    let ip = match socket.ip() {
        IpAddr::V4(ip) => Multiaddr::from(ip),
        IpAddr::V6(ip) => Multiaddr::from(ip),
    };
    ip.with(Protocol::Udp(socket.port())).with(Protocol::QuicV1)
}

fn invalid(text: &str, why: &str) -> Error {
    Error::new(Code::InvalidArgument, format!("`{text}` is not an address: {why}; write host:port or a multiaddress"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[tokio::test]
    async fn people_and_peers_write_the_same_address() {
        let plain = resolve("127.0.0.1:4040").await.unwrap();
        let address: Multiaddr = "/ip4/127.0.0.1/udp/4040/quic-v1".parse().unwrap();
        assert_eq!(plain, vec![Endpoint { peer: None, address: address.clone() }]);
        assert_eq!(resolve("/ip4/127.0.0.1/udp/4040/quic-v1").await.unwrap(), plain);
        let with_peer = resolve(&format!("/ip4/127.0.0.1/udp/4040/quic-v1/p2p/{PEER}")).await.unwrap();
        assert_eq!(with_peer, vec![Endpoint { peer: Some(PEER.parse().unwrap()), address }]);
        let six = resolve("[::1]:7").await.unwrap();
        assert_eq!(six[0].address.to_string(), "/ip6/::1/udp/7/quic-v1");
        assert!(!resolve("/dns/localhost/udp/7/quic-v1").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused() {
        assert_eq!(resolve("localhost").await.unwrap_err().code, Code::InvalidArgument);
        assert_eq!(resolve("/ip4/127.0.0.1/nonsense").await.unwrap_err().code, Code::InvalidArgument);
    }
}
