//! One stream to a peer that serves a subscription.

use std::time::Duration;

use bytes::BytesMut;
use canal_proto::frame;
use canal_proto::request::{Content, Delivery, Say, Subscribe, SubscriberFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout};

use crate::Error;
use crate::transport::BoxStream;

/// Room made for each read.
const READ_CHUNK: usize = 64 << 10;
/// For a peer to take a few bytes: it always reads, whatever it may send.
const SAY_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct Line {
    read: ReadHalf<BoxStream>,
    write: WriteHalf<BoxStream>,
    buffer: BytesMut,
    /// When bytes came last.
    pub(super) heard: Instant,
    /// Whether bytes came at all.
    pub(super) spoke: bool,
}

impl Line {
    pub(super) async fn open(stream: BoxStream, subscribe: &Subscribe) -> Result<Self, Error> {
        let (read, write) = tokio::io::split(stream);
        let mut line = Self { read, write, buffer: BytesMut::new(), heard: Instant::now(), spoke: false };
        let mut bytes = BytesMut::new();
        frame::encode(subscribe, &mut bytes)?;
        line.put(&bytes).await?;
        Ok(line)
    }

    /// What the peer sends next. May be dropped and called again.
    pub(super) async fn content(&mut self) -> Result<Content, Error> {
        loop {
            let delivery = frame::decode::<Delivery>(&mut self.buffer);
            match delivery.map_err(|error| Error::malformed(error.to_string()))? {
                Some(Delivery { content: Some(content) }) => return Ok(content),
                Some(_) => return Err(Error::malformed("a delivery that this version does not know")),
                None => {}
            }
            self.buffer.reserve(READ_CHUNK);
            match self.read.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Error::unreachable("the peer ended the subscription")),
                Ok(_) => (self.heard, self.spoke) = (Instant::now(), true),
                Err(error) => return Err(broke(&error)),
            }
        }
    }

    pub(super) async fn say(&mut self, say: Say) -> Result<(), Error> {
        let mut bytes = BytesMut::new();
        frame::encode(&SubscriberFrame { say: Some(say) }, &mut bytes)?;
        self.put(&bytes).await
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let write = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        match timeout(SAY_TIMEOUT, write).await {
            Ok(written) => written.map_err(|error| broke(&error)),
            Err(_) => Err(Error::unreachable("the peer takes no bytes")),
        }
    }
}

fn broke(error: &std::io::Error) -> Error {
    Error::unreachable(format!("the subscription broke: {error}"))
}
