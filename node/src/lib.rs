//! The Canal peer.
