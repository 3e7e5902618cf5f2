//! Frames and what is in them: requests, answers, deliveries, greetings, batches of Raft messages.

use bytes::{Bytes, BytesMut};
use canal_consensus::convert;
use canal_proto::frame;
use canal_proto::limits::MAX_FRAME;
use canal_proto::peer::{RaftBatch, RaftHello, RaftVerdict};
use canal_proto::request::{Ask, Delivery, Hello, Peers, Request, Response, Subscribe, SubscriberFrame, Welcome};
use prost::Message;

/// Pieces in which a stream of frames arrives, in bytes.
const CHUNKS: [usize; 3] = [1, 7, 4096];

/// Reads a message, and writes and reads it again: the second time nothing changes any more. (The bytes are compared, since
/// a description's coordinate may hold a number that is not equal to itself.)
pub(super) fn message<M: Message + Default + std::fmt::Debug>(data: &[u8]) -> Option<M> {
    let first = frame::read::<M>(Bytes::copy_from_slice(data), 16);
    match (&first, M::decode(data)) {
        (Err(frame::Error::TooManyParts(_)), _) | (Ok(_), Ok(_)) | (Err(_), Err(_)) => {}
        (first, plain) => broken(&format!("one reader takes it, the other does not: {first:?} {plain:?}")),
    }
    let first = first.ok()?;
    let bytes = first.encode_to_vec();
    assert_eq!(bytes.len(), first.encoded_len());
    match M::decode(bytes.as_slice()) {
        Ok(second) => {
            assert!(second.encode_to_vec() == bytes, "what was written reads as something else: {bytes:02x?}")
        }
        Err(error) => broken(&format!("what was written can't be read: {error}: {bytes:02x?}")),
    }
    Some(first)
}

/// A law does not hold: that is what a fuzzer looks for.
#[expect(clippy::panic, reason = "this is how a fuzzer is told")]
fn broken(what: &str) {
    panic!("{what}")
}

/// Splits a stream into frames: the same ones, and the same end, in whatever pieces it arrives.
fn frames(data: &[u8]) -> (Vec<Bytes>, Option<frame::Error>) {
    let mut all: Option<(Vec<Bytes>, Option<frame::Error>)> = None;
    for chunk in CHUNKS {
        let (mut buffer, mut found, mut error) = (BytesMut::new(), Vec::new(), None);
        // one byte at a time is slow for long streams, and proves nothing more
        let cut = if data.len() > 16 << 10 { chunk.max(1024) } else { chunk };
        'stream: for chunk in data.chunks(cut) {
            buffer.extend_from_slice(chunk);
            loop {
                match frame::split(&mut buffer) {
                    Ok(Some(frame)) => {
                        assert!(frame.len() <= MAX_FRAME);
                        found.push(frame);
                    }
                    Ok(None) => break,
                    Err(refused) => {
                        error = Some(refused);
                        break 'stream;
                    }
                }
            }
        }
        match &all {
            Some(first) => assert!(*first == (found, error), "frames depend on how they arrive"),
            None => all = Some((found, error)),
        }
    }
    all.unwrap_or_default()
}

/// Whether a stream consists of messages, each in a frame of its own.
fn stream<M: Message + Default + std::fmt::Debug>(data: &[u8]) -> bool {
    let (frames, error) = frames(data);
    let read = frames.iter().filter(|frame| message::<M>(frame).is_some()).count();
    error.is_none() && !frames.is_empty() && read == frames.len()
}

/// Requests of clients and peers: frames on a stream.
pub fn requests(data: &[u8]) -> bool {
    let taken = stream::<Request>(data);
    for frame in frames(data).0 {
        let Some(Request { ask: Some(ask), .. }) = message::<Request>(&frame) else { continue };
        match ask {
            Ask::Publish(publish) => publish.events.iter().for_each(|event| {
                // whatever it is, it is judged
                if event.check().is_ok() {
                    assert!(event.payload.len() <= canal_proto::limits::MAX_PAYLOAD);
                    assert!(event.key.len() <= canal_proto::limits::MAX_KEY);
                }
            }),
            Ask::Gossip(Peers { peers, .. }) => peers.iter().for_each(|info| {
                if canal_topology::known::check(info).is_ok() {
                    let mut text: usize = info.addresses.iter().map(String::len).sum();
                    text += info.labels.iter().map(|label| label.key.len() + label.value.len()).sum::<usize>();
                    assert!(text <= canal_topology::known::MAX_TEXT);
                }
            }),
            _ => {}
        }
    }
    taken
}

/// Answers of peers: frames on a stream.
pub fn answers(data: &[u8]) -> bool {
    stream::<Response>(data)
}

/// A subscription in both directions: what is asked for, what a subscriber says, what it is sent.
pub fn deliveries(data: &[u8]) -> bool {
    // a stream is of one kind, and must not be taken for another by accident: each is read on its own
    let delivered = stream::<Delivery>(data);
    let said = stream::<SubscriberFrame>(data);
    let asked = stream::<Subscribe>(data);
    delivered || said || asked
}

/// What streams begin with.
pub fn greetings(data: &[u8]) -> bool {
    let (client, peer) = (message::<Hello>(data).is_some(), message::<Welcome>(data).is_some());
    let raft = (message::<RaftHello>(data).is_some(), message::<RaftVerdict>(data).is_some());
    client || peer || raft.0 || raft.1
}

/// Raft messages of another peer: what can be one comes back the same from what raft-rs makes of it.
pub fn raft_batches(data: &[u8]) -> bool {
    let Some(batch) = message::<RaftBatch>(data) else { return false };
    let mut taken = !batch.messages.is_empty();
    for envelope in batch.messages {
        let Ok(message) = convert::from_wire(envelope.message) else {
            taken = false;
            continue;
        };
        for entry in &message.entries {
            if let Ok(change) = convert::conf_change(entry.data.clone()) {
                assert!(change.changes.len() <= entry.data.len());
            }
        }
        let again = convert::from_wire(convert::to_wire(message.clone()));
        assert!(again == Ok(message), "a raft message changes on its way");
    }
    taken
}
