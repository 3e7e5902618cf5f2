//! Identifiers: of peers, meshes, groups, topics, triggers, producers and content.

use std::fmt;
use std::str::FromStr;

/// Why an identifier could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {what}: `{text}`")]
pub struct ParseIdError {
    what: &'static str,
    text: String,
}

impl ParseIdError {
    fn new(what: &'static str, text: impl Into<String>) -> Self {
        Self { what, text: text.into() }
    }
}

/// A peer's ed25519 public key. It prints as the libp2p peer id that the key makes (`12D3KooW…`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

/// Identity multihash (code 0, 36 bytes) of the protobuf `PublicKey { type: Ed25519, data: 32 bytes }`.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl PeerId {
    /// The peer with this ed25519 public key.
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The ed25519 public key, 32 bytes.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 38 bytes of the libp2p peer id.
    pub fn to_multihash(&self) -> Vec<u8> {
        [PEER_ID_PREFIX.as_slice(), self.0.as_slice()].concat()
    }

    /// Reads the 38 bytes of a libp2p peer id made from an ed25519 key.
    pub fn from_multihash(bytes: &[u8]) -> Result<Self, ParseIdError> {
        bytes
            .strip_prefix(&PEER_ID_PREFIX)
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .map(Self)
            .ok_or_else(|| ParseIdError::new("peer id", format!("{} bytes", bytes.len())))
    }

    /// Reads the 32 bytes of the public key, as wire messages carry them.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ParseIdError> {
        <[u8; 32]>::try_from(bytes)
            .map(Self)
            .map_err(|_| ParseIdError::new("peer id", format!("{} bytes", bytes.len())))
    }

    /// The public key as wire messages carry it.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = bs58::decode(text).into_vec().map_err(|_| ParseIdError::new("peer id", text))?;
        Self::from_multihash(&bytes).map_err(|_| ParseIdError::new("peer id", text))
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u64::from_str_radix(text, 16).map(Self).map_err(|_| ParseIdError::new($what, text))
            }
        }
    };
}

number_id! {
    /// A Raft group. It prints as 16 hexadecimal digits.
    GroupId, "group id"
}
number_id! {
    /// A topic: the index of the catalog entry that created it, so a topic created again under the same name
    /// has another, larger id.
    TopicId, "topic id"
}
number_id! {
    /// A trigger: the index of the catalog entry that created it.
    TriggerId, "trigger id"
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Reads the raw bytes, as wire messages carry them.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, ParseIdError> {
                <[u8; $len]>::try_from(bytes)
                    .map(Self)
                    .map_err(|_| ParseIdError::new($what, format!("{} bytes", bytes.len())))
            }

            /// The raw bytes, as wire messages carry them.
            pub fn to_vec(&self) -> Vec<u8> {
                self.0.to_vec()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut out = [0u8; $len];
                let digits = text.as_bytes();
                if digits.len() != 2 * $len {
                    return Err(ParseIdError::new($what, text));
                }
                for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
                    *byte = std::str::from_utf8(pair)
                        .ok()
                        .filter(|pair| !pair.starts_with('+'))
                        .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                        .ok_or_else(|| ParseIdError::new($what, text))?;
                }
                Ok(Self(out))
            }
        }
    };
}

bytes_id! {
    /// A mesh: drawn at random by the peer that founds it. Two meshes of one name never mix.
    MeshId, 16, "mesh id"
}
bytes_id! {
    /// A publisher: drawn at random when it starts, kept by it as long as it may retry.
    ProducerId, 16, "producer id"
}
bytes_id! {
    /// BLAKE3 of some content, 32 bytes.
    ContentHash, 32, "content hash"
}

impl ContentHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl ProducerId {
    /// The producer under which `group` delivers its outbox to topics of other groups.
    pub fn of_outbox(group: GroupId) -> Self {
        let hash = blake3::derive_key("canal 2026 outbox producer", &group.0.to_be_bytes());
        let mut id = [0u8; 16];
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Self(id)
    }
}

impl GroupId {
    fn derive(mesh: MeshId, what: &str, tail: &[u8]) -> Self {
        let hash = blake3::derive_key(what, &[mesh.0.as_slice(), tail].concat());
        let mut id = [0u8; 8];
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Self(u64::from_be_bytes(id))
    }

    /// The group that holds the catalog of a namespace.
    pub fn of_catalog(mesh: MeshId, namespace: &str) -> Self {
        Self::derive(mesh, "canal 2026 catalog group", namespace.as_bytes())
    }

    /// The group that the catalog entry at `index` created in `namespace`.
    pub fn of_entry(mesh: MeshId, namespace: &str, index: u64) -> Self {
        Self::derive(mesh, "canal 2026 group", &[&index.to_be_bytes(), namespace.as_bytes()].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_id_prints_as_libp2p_does() {
        let id = PeerId::from_public_key([0; 32]);
        let text = id.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse::<PeerId>(), Ok(id));
        assert!("12D3KooW".parse::<PeerId>().is_err());
    }

    #[test]
    fn derived_ids_are_pinned() {
        let mesh = MeshId([7; 16]);
        assert_eq!(GroupId::of_catalog(mesh, "default").to_string(), "1ed6d200d92bbe16");
        assert_eq!(GroupId::of_entry(mesh, "default", 9).to_string(), "8e15f8db6ae6745e");
        assert_eq!(ProducerId::of_outbox(GroupId(1)).to_string(), "b4bc7994352f6e457a5e0a7794d96b58");
    }

    #[test]
    fn hexadecimal_ids_round_trip_and_refuse_other_text() {
        let hash = ContentHash::of(b"canal");
        assert_eq!(hash.to_string().parse::<ContentHash>(), Ok(hash));
        assert!("+f".repeat(32).parse::<ContentHash>().is_err());
        assert!("zz".repeat(16).parse::<MeshId>().is_err());
        assert_eq!("00000000000000ff".parse::<GroupId>(), Ok(GroupId(255)));
    }
}
