//! The stream's side of a conversation: one task that writes what has arrived and hands out what is answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use canal_proto::frame;
use canal_proto::request::{Answer, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{MAX_IN_FLIGHT, MAX_OUTBOUND};
use crate::Error;
use crate::transport::BoxStream;

/// Frames that have arrived are written together up to about this size: a few of QUIC's windows of packets.
const WRITE_BATCH: usize = 256 << 10;
/// Room made for each read.
const READ_CHUNK: usize = 64 << 10;

/// An encoded request with the room that it takes until it is written.
pub(super) struct Frame {
    pub(super) bytes: BytesMut,
    pub(super) _room: OwnedSemaphorePermit,
}

/// What callers and the task share.
pub(super) struct Shared {
    pub(super) in_flight: Arc<Semaphore>,
    pub(super) outbound: Arc<Semaphore>,
    frames: mpsc::UnboundedSender<Frame>,
    ids: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pending: HashMap<u64, Waiting>,
    ended: Option<Error>,
}

struct Waiting {
    reply: oneshot::Sender<Result<Answer, Error>>,
    _place: OwnedSemaphorePermit,
}

impl Shared {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Frame>) {
        // bounded by `outbound`: a frame is only made with the room that it takes
        let (frames, receiver) = mpsc::unbounded_channel();
        let shared = Self {
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            outbound: Arc::new(Semaphore::new(MAX_OUTBOUND)),
            frames,
            ids: AtomicU64::new(1),
            state: Mutex::default(),
        };
        (Arc::new(shared), receiver)
    }

    pub(super) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn ended(&self) -> Option<Error> {
        self.state.lock().ended.clone()
    }

    pub(super) fn enqueue(
        &self,
        id: u64,
        reply: oneshot::Sender<Result<Answer, Error>>,
        place: OwnedSemaphorePermit,
        frame: Frame,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        state.pending.insert(id, Waiting { reply, _place: place });
        if self.frames.send(frame).is_err() {
            state.pending.remove(&id);
            return Err(Error::unreachable("the conversation ended"));
        }
        Ok(())
    }

    pub(super) fn forget(&self, id: u64) {
        self.state.lock().pending.remove(&id);
    }

    fn settle(&self, response: Response) -> Result<(), Error> {
        let Response { id, answer } = response;
        // said of the whole conversation, which ends with it
        if let (0, Some(Answer::Error(error))) = (id, &answer) {
            return Err(error.clone().into());
        }
        if id == 0 || id >= self.ids.load(Ordering::Relaxed) {
            return Err(Error::malformed(format!("the peer answered request {id}, which was never made")));
        }
        // no entry: nobody waits for it any more
        if let Some(waiting) = self.state.lock().pending.remove(&id) {
            let answer = answer.ok_or_else(|| Error::malformed("an answer that this version does not know"));
            drop(waiting.reply.send(answer));
        }
        Ok(())
    }

    fn end(&self, error: Error) {
        let pending = {
            let mut state = self.state.lock();
            state.ended.get_or_insert_with(|| error.clone());
            std::mem::take(&mut state.pending)
        };
        self.in_flight.close();
        self.outbound.close();
        for waiting in pending.into_values() {
            drop(waiting.reply.send(Err(error.clone())));
        }
    }
}

/// Ends the conversation for everybody, however the task ends.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end(Error::unreachable("the conversation ended"));
    }
}

pub(super) async fn drive(stream: BoxStream, frames: mpsc::UnboundedReceiver<Frame>, shared: Arc<Shared>) {
    let end = End(shared);
    let (reader, writer) = tokio::io::split(stream);
    let error = tokio::select! {
        error = read(reader, &end.0) => error,
        error = write(writer, frames) => error,
    };
    tracing::debug!(%error, "conversation ended");
    end.0.end(error);
}

async fn read(mut reader: ReadHalf<BoxStream>, shared: &Shared) -> Error {
    let mut buffer = BytesMut::new();
    loop {
        loop {
            match frame::decode::<Response>(&mut buffer) {
                Ok(Some(response)) => {
                    if let Err(error) = shared.settle(response) {
                        return error;
                    }
                }
                Ok(None) => break,
                Err(error) => return Error::malformed(error.to_string()),
            }
        }
        buffer.reserve(READ_CHUNK);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return Error::unreachable("the peer ended the conversation"),
            Ok(_) => {}
            Err(error) => return Error::unreachable(format!("the conversation broke: {error}")),
        }
    }
}

async fn write(mut writer: WriteHalf<BoxStream>, mut frames: mpsc::UnboundedReceiver<Frame>) -> Error {
    while let Some(Frame { mut bytes, mut _room }) = frames.recv().await {
        while bytes.len() < WRITE_BATCH {
            let Ok(more) = frames.try_recv() else { break };
            bytes.extend_from_slice(&more.bytes);
            _room.merge(more._room);
        }
        let written = match writer.write_all(&bytes).await {
            Ok(()) => writer.flush().await,
            error => error,
        };
        if let Err(error) = written {
            return Error::unreachable(format!("the conversation broke: {error}"));
        }
    }
    Error::unreachable("the conversation was closed")
}
