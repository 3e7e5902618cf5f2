//! Between the mesh's peer ids and libp2p's: the same ed25519 key, written two ways.

use canal_proto::PeerId;

/// A peer id that libp2p or the mesh does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The libp2p peer id is not made from an ed25519 key.
    #[error("the libp2p peer id is not made from an ed25519 key; give the peer an ed25519 identity")]
    NotEd25519,
    /// libp2p does not take the key.
    #[error("libp2p does not take the public key; check where it comes from")]
    Unfit,
}

/// The libp2p peer id of a peer.
pub fn to_libp2p(peer: PeerId) -> Result<libp2p::PeerId, Error> {
    libp2p::PeerId::from_bytes(&peer.to_multihash()).map_err(|_| Error::Unfit)
}

/// The peer with this libp2p peer id.
pub fn from_libp2p(peer: &libp2p::PeerId) -> Result<PeerId, Error> {
    PeerId::from_multihash(&peer.to_bytes()).map_err(|_| Error::NotEd25519)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use libp2p::identity::Keypair;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_peer_prints_alike_on_both_sides() {
        let keys = Keypair::ed25519_from_bytes([7; 32]).unwrap();
        let theirs = keys.public().to_peer_id();
        let ours = from_libp2p(&theirs).unwrap();
        assert_eq!(ours.public_key(), &keys.public().try_into_ed25519().unwrap().to_bytes());
        assert_eq!(ours.to_string(), theirs.to_string());
        // an id that is the hash of a longer key names no key
        let hashed = libp2p::PeerId::from_bytes(&[[0x12, 0x20].as_slice(), &[9; 32]].concat()).unwrap();
        assert_eq!(from_libp2p(&hashed), Err(Error::NotEd25519));
    }

    proptest! {
        #[test]
        fn ids_survive_the_way_there_and_back(key: [u8; 32]) {
            let peer = PeerId::from_public_key(key);
            prop_assert_eq!(from_libp2p(&to_libp2p(peer).unwrap()), Ok(peer));
        }
    }
}
