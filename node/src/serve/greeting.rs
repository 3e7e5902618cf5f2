//! The first frame of a stream: small, soon, and refused with a typed error when it is not.

use bytes::BytesMut;
use canal_proto::{Code, WireError, frame};
use canal_sdk::BoxStream;
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::net::refused::{Reason, Refused};

/// Bytes of a first frame: names, some addresses.
pub const MAX_FIRST: usize = 64 << 10;
/// See [`frame::read`].
const BYTES_A_STEP: usize = 16;
/// How long somebody who opens a stream has to say what for.
pub const GREETING: std::time::Duration = std::time::Duration::from_secs(10);

/// Reads the first frame; `None` when the stream ends before it.
///
/// # Errors
/// What to answer, counted already.
pub async fn first<M: Message + Default>(stream: &mut BoxStream, refused: &Refused) -> Result<Option<M>, WireError> {
    match timeout(GREETING, read(stream)).await {
        Ok(Ok(first)) => Ok(first),
        Ok(Err(error)) => {
            refused.count(Reason::Malformed);
            Err(error)
        }
        Err(_) => {
            refused.count(Reason::Late);
            Err(WireError::new(Code::Malformed, "no greeting came; say what the stream is for when you open it"))
        }
    }
}

async fn read<M: Message + Default>(stream: &mut BoxStream) -> Result<Option<M>, WireError> {
    let cut = || WireError::new(Code::Malformed, "the stream ended within a frame");
    let mut head = [0; 4];
    // not a byte more than the frame is taken: what comes behind it is somebody else's to read
    match stream.read(&mut head).await {
        Ok(0) | Err(_) => return Ok(None),
        Ok(count) => {
            let rest = head.get_mut(count..).unwrap_or_default();
            stream.read_exact(rest).await.map_err(|_| cut())?;
        }
    }
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_FIRST {
        let message = format!("a first frame of {length} bytes; at most {MAX_FIRST} are allowed");
        return Err(WireError::new(Code::TooLarge, message));
    }
    let mut bytes = BytesMut::new();
    let mut rest = stream.take(length as u64);
    while bytes.len() < length {
        if rest.read_buf(&mut bytes).await.map_err(|_| cut())? == 0 {
            return Err(cut());
        }
    }
    let first = frame::read(bytes.freeze(), BYTES_A_STEP);
    first.map(Some).map_err(|error| WireError::new(Code::Malformed, error.to_string()))
}
