//! How streams to peers come about.
//!
//! Everything above this trait only sees byte streams of a named protocol to a peer whose key was checked; it does
//! not know who carries them. [`libp2p::Libp2p`] is what clients use; a peer brings its own.

use canal_proto::PeerId;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;

pub mod libp2p;

/// Both directions of a stream.
pub trait AsyncReadWrite: AsyncRead + AsyncWrite {}

impl<S: AsyncRead + AsyncWrite> AsyncReadWrite for S {}

/// A stream to a peer.
pub type BoxStream = Box<dyn AsyncReadWrite + Send + Unpin>;

/// Opens streams.
pub trait Transport: Send + Sync + 'static {
    /// Opens a stream of `protocol` (a full name, as [`canal_proto::request::protocol`] makes it) to `peer`, which
    /// is at one of these addresses; with no peer given, to whoever answers there. Returns who it is, with its key
    /// checked.
    ///
    /// An address is a multiaddress, or `host:port` for people.
    ///
    /// # Errors
    /// `Unreachable` when nobody answers, `Incompatible` when the peer does not speak the protocol (another mesh or
    /// version), `InvalidArgument` when there is no address that can be read.
    fn open<'a>(
        &'a self,
        peer: Option<PeerId>,
        addresses: &'a [String],
        protocol: &'a str,
    ) -> BoxFuture<'a, Result<(PeerId, BoxStream), Error>>;
}
