//! Segments: consecutive events of one topic in a file that never changes.
//!
//! The same events make the same bytes, everywhere. Numbers are little-endian; a sum is the first eight bytes of a
//! BLAKE3. `docs/format.md` has it byte by byte:
//!
//! ```text
//! header    magic (8) · version u32 · topic u64 · offset of the first event u64
//! block*    offset of its first event u64 · events u32 · bytes of its body u32 · sum of these 16 bytes and the body
//!           body: for each event its length (varint) and a `Stored` without an offset
//! index     for each block: offset of its first event u64 · its place in the file u64
//! trailer   place of the index u64 · blocks u32 · events u64 · bytes of payload u64 · latest time u64 ·
//!           sum of header, index and the trailer up to here
//! ```
//!
//! A block ends with the event that makes its body [`BLOCK`] bytes or more. So memory holds a block and the index while
//! a segment is written, and the index and the blocks asked for while it is read. Nothing of a block is given before
//! its sum is checked.

use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes};
use canal_proto::event::Stored;
use canal_proto::log::Segment;
use canal_proto::{ContentHash, TopicId};
use prost::Message as _;

use super::index::Index;
use super::{Error, Files, New, at};

const MAGIC: &[u8; 8] = b"canalseg";
const VERSION: u32 = 1;
const HEADER: usize = 28;
const BLOCK_HEADER: usize = 24;
const INDEX_ENTRY: usize = 16;
const TRAILER: usize = 44;
const SUM: usize = 8;

/// A block's body ends behind the event with which it reaches this. What is read to find one event, and hashed; the
/// index is a two-thousandth of the segment.
pub(super) const BLOCK: usize = 32 << 10;

/// An encoded event at most; one of the largest allowed has a little over 1 MiB.
const MAX_EVENT: usize = 2 << 20;

/// Blocks of a segment at most: its index stays below a MiB, and the segment below 2 GiB with full blocks.
const MAX_BLOCKS: usize = 64 << 10;

fn sum(parts: &[&[u8]]) -> [u8; SUM] {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    let mut sum = [0; SUM];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// Makes the bytes of a segment. Nothing is written here: [`Self::take`] gives what is to be written next.
pub struct Encoder {
    hasher: blake3::Hasher,
    topic: TopicId,
    header: Vec<u8>,
    first: u64,
    next: u64,
    place: u64,
    out: Vec<u8>,
    index: Vec<u8>,
    block: Vec<u8>,
    block_first: u64,
    payload: u64,
    last_ms: u64,
}

impl Encoder {
    /// A segment of a topic whose first event has the offset `first`.
    pub fn begin(topic: TopicId, first: u64) -> Self {
        let mut header = Vec::with_capacity(HEADER);
        header.put_slice(MAGIC);
        header.put_u32_le(VERSION);
        header.put_u64_le(topic.0);
        header.put_u64_le(first);
        let mut encoder = Self {
            hasher: blake3::Hasher::new(),
            topic,
            header: Vec::new(),
            first,
            next: first,
            place: 0,
            out: Vec::new(),
            index: Vec::new(),
            block: Vec::new(),
            block_first: first,
            payload: 0,
            last_ms: 0,
        };
        encoder.write(&header);
        encoder.header = header;
        encoder
    }

    fn write(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.hasher.update(bytes);
        self.place += bytes.len() as u64;
    }

    /// Offset of the event that comes next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Bytes that it has so far, about.
    pub fn size(&self) -> u64 {
        self.place + self.block.len() as u64
    }

    /// What was made since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Adds an event: the one with the next offset.
    ///
    /// # Errors
    /// When it is not that, or too large.
    pub fn push(&mut self, stored: &Stored) -> Result<(), Error> {
        if stored.offset != self.next {
            return Err(Error::Unfit("the events of a segment must have consecutive offsets"));
        }
        // its place says its offset
        let stored = Stored { offset: 0, ..stored.clone() };
        if stored.encoded_len() > MAX_EVENT || self.index.len() / INDEX_ENTRY >= MAX_BLOCKS {
            return Err(Error::Unfit("an event or a segment is larger than any should be"));
        }
        self.block.reserve(stored.encoded_len() + 4);
        stored.encode_length_delimited(&mut self.block).map_err(|_| Error::Unfit("an event can't be encoded"))?;
        self.next += 1;
        self.payload += stored.event.payload.len() as u64;
        self.last_ms = self.last_ms.max(stored.event.time_ms);
        if self.block.len() >= BLOCK { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<(), Error> {
        let fits = |n: u64| u32::try_from(n).map_err(|_| Error::Unfit("a block is larger than any should be"));
        let body = std::mem::take(&mut self.block);
        let mut head = Vec::with_capacity(BLOCK_HEADER);
        head.put_u64_le(self.block_first);
        head.put_u32_le(fits(self.next - self.block_first)?);
        head.put_u32_le(fits(body.len() as u64)?);
        let sum = sum(&[&head, &body]);
        head.put_slice(&sum);
        self.index.put_u64_le(self.block_first);
        self.index.put_u64_le(self.place);
        self.block_first = self.next;
        self.write(&head);
        self.write(&body);
        self.block = body;
        self.block.clear();
        Ok(())
    }

    /// Ends the segment, which must have an event, and says what it is. [`Self::take`] has the rest of it.
    ///
    /// # Errors
    /// When it has none.
    pub fn finish(&mut self) -> Result<Segment, Error> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        let count = self.next - self.first;
        if count == 0 {
            return Err(Error::Unfit("a segment has at least one event"));
        }
        let index = std::mem::take(&mut self.index);
        let mut trailer = Vec::with_capacity(TRAILER);
        trailer.put_u64_le(self.place);
        trailer.put_u32_le(u32::try_from(index.len() / INDEX_ENTRY).unwrap_or(u32::MAX));
        trailer.put_u64_le(count);
        trailer.put_u64_le(self.payload);
        trailer.put_u64_le(self.last_ms);
        let sum = sum(&[&self.header, &index, &trailer]);
        trailer.put_slice(&sum);
        self.write(&index);
        self.write(&trailer);
        Ok(Segment {
            topic: self.topic.0,
            first: self.first,
            count,
            hash: ContentHash(*self.hasher.finalize().as_bytes()).to_vec().into(),
            size: self.place,
            payload: self.payload,
            last_ms: self.last_ms,
            before: 0,
            appended_ms: 0,
        })
    }
}

/// Writes a segment. It has no name, and leaves nothing, before it is finished.
pub struct SegmentWriter {
    new: New,
    encoder: Encoder,
}

impl SegmentWriter {
    pub(super) fn begin(new: New, topic: TopicId, first: u64) -> Result<Self, Error> {
        let mut writer = Self { new, encoder: Encoder::begin(topic, first) };
        writer.write()?;
        Ok(writer)
    }

    fn write(&mut self) -> Result<(), Error> {
        let bytes = self.encoder.take();
        if bytes.is_empty() { Ok(()) } else { self.new.file.write_all(&bytes).map_err(at(&self.new.path)) }
    }

    /// Offset of the event that comes next.
    pub fn next(&self) -> u64 {
        self.encoder.next()
    }

    /// Bytes that it has so far, about.
    pub fn size(&self) -> u64 {
        self.encoder.size()
    }

    /// Adds an event: the one with the next offset.
    pub fn push(&mut self, stored: &Stored) -> Result<(), Error> {
        self.encoder.push(stored)?;
        self.write()
    }

    /// Ends the segment, which must have an event. It is on disk, synced, under its name when this returns.
    pub fn finish(mut self) -> Result<Segment, Error> {
        let segment = self.encoder.finish()?;
        self.write()?;
        let hash = ContentHash::from_slice(&segment.hash).map_err(|_| Error::Unfit("its hash has not 32 bytes"))?;
        if !self.new.files.contains(&hash) {
            self.new.keep(hash, segment.size)?;
        }
        Ok(segment)
    }
}

/// As [`Files::events`], of a segment whose bytes are in memory.
///
/// # Errors
/// What is damaged in it.
pub fn events_in(
    bytes: &Bytes,
    segment: &Segment,
    from: u64,
    max: usize,
    max_bytes: usize,
) -> Result<Vec<Stored>, &'static str> {
    let mut reader = Reader { bytes: bytes.clone(), size: bytes.len() as u64 };
    let short = |_| "it ends too early";
    let index = reader.index(segment).map_err(short)??;
    reader.events(&index, from, max, max_bytes).map_err(short)?
}

impl Files {
    /// At most `max` events of a segment from offset `from` on, which must be in it, and no more than about `max_bytes`
    /// (one in any case).
    ///
    /// # Errors
    /// [`Error::Missing`] when the file is not here, [`Error::Damaged`] when its index or a block is not as written.
    pub fn events(&self, segment: &Segment, from: u64, max: usize, max_bytes: usize) -> Result<Vec<Stored>, Error> {
        let hash = ContentHash::from_slice(&segment.hash).map_err(|_| Error::Unfit("its hash has not 32 bytes"))?;
        let Some((path, file)) = self.opened_anyway(&hash)? else { return Err(Error::Missing(hash)) };
        let mut reader = Reader { bytes: file, size: self.length(&hash).unwrap_or_default() };
        // what ends too early is damaged, anything else is the disk
        let read = |reader: &mut Reader<std::fs::File>| -> io::Result<Result<Vec<Stored>, &'static str>> {
            let known = self.shared.indexes.lock().get(&hash);
            let index = match known {
                Some(index) => index,
                None => match reader.index(segment)? {
                    Ok(index) => {
                        let index = Arc::new(index);
                        self.shared.indexes.lock().put(hash, index.clone());
                        index
                    }
                    Err(reason) => return Ok(Err(reason)),
                },
            };
            reader.events(&index, from, max, max_bytes)
        };
        match read(&mut reader) {
            Ok(Ok(events)) => Ok(events),
            Ok(Err(reason)) => Err(self.damaged(hash, reason)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged(hash, "it ends too early")),
            Err(error) => Err(at(&path)(error)),
        }
    }
}

/// Where the bytes of a segment are.
trait Source {
    fn bytes(&mut self, place: u64, length: usize) -> io::Result<Bytes>;
}

impl Source for std::fs::File {
    fn bytes(&mut self, place: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.seek(SeekFrom::Start(place))?;
        self.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

impl Source for Bytes {
    fn bytes(&mut self, place: u64, length: usize) -> io::Result<Bytes> {
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        match place.checked_add(length).filter(|end| *end <= self.len()) {
            Some(end) => Ok(self.slice(place..end)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

struct Reader<S> {
    bytes: S,
    size: u64,
}

impl<S: Source> Reader<S> {
    fn bytes(&mut self, place: u64, length: usize) -> io::Result<Bytes> {
        self.bytes.bytes(place, length)
    }

    /// Reads header, index and trailer, and checks them against each other and against the segment's row.
    fn index(&mut self, segment: &Segment) -> io::Result<Result<Index, &'static str>> {
        let size = self.size;
        let Some(trailer_at) = size.checked_sub(TRAILER as u64).filter(|at| size == segment.size && *at > 0) else {
            return Ok(Err("its size differs"));
        };
        let header = self.bytes(0, HEADER)?;
        let trailer = self.bytes(trailer_at, TRAILER)?;
        let mut head = header.clone();
        if head.split_to(MAGIC.len()) != MAGIC[..] {
            return Ok(Err("it is not a segment"));
        }
        if head.get_u32_le() != VERSION {
            return Ok(Err("it has a version that this program does not know"));
        }
        let (topic, first) = (head.get_u64_le(), head.get_u64_le());
        let mut tail = trailer.clone();
        let (behind, blocks, count) = (tail.get_u64_le(), tail.get_u32_le() as usize, tail.get_u64_le());
        if blocks > MAX_BLOCKS || behind.checked_add((blocks * INDEX_ENTRY) as u64) != Some(trailer_at) {
            return Ok(Err("its index is not where it should be"));
        }
        let mut index = self.bytes(behind, blocks * INDEX_ENTRY)?;
        let (summed, written) = trailer.split_at(TRAILER - SUM);
        if sum(&[&header, &index, summed]) != *written {
            return Ok(Err("its index is damaged"));
        }
        if topic != segment.topic || first != segment.first || count != segment.count {
            return Ok(Err("it has other events"));
        }
        let mut places = Vec::with_capacity(blocks);
        while index.has_remaining() {
            places.push((index.get_u64_le(), index.get_u64_le()));
        }
        Ok(Ok(Index { blocks: places, end: segment.end(), behind }))
    }

    fn events(
        &mut self,
        index: &Index,
        from: u64,
        max: usize,
        max_bytes: usize,
    ) -> io::Result<Result<Vec<Stored>, &'static str>> {
        let mut events: Vec<Stored> = Vec::new();
        let mut bytes = 0;
        let begin = index.blocks.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        for (at, (first, place)) in index.blocks.iter().enumerate().skip(begin) {
            if events.len() >= max || bytes >= max_bytes && !events.is_empty() {
                break;
            }
            let (end, behind) = index.blocks.get(at + 1).copied().unwrap_or((index.end, index.behind));
            let length = behind.saturating_sub(*place).min((BLOCK_HEADER + BLOCK + MAX_EVENT + SUM) as u64);
            let block = self.bytes(*place, usize::try_from(length).unwrap_or_default())?;
            let body = match body(block, *first, end) {
                Ok(body) => body,
                // the next read begins with it
                Err(_) if !events.is_empty() => break,
                Err(reason) => return Ok(Err(reason)),
            };
            let mut body = body;
            for offset in *first..end {
                let Ok(stored) = Stored::decode_length_delimited(&mut body) else {
                    return Ok(Err("an event can't be read"));
                };
                if offset < from {
                    continue;
                }
                bytes += stored.event.encoded_len();
                if events.len() >= max || bytes > max_bytes && !events.is_empty() {
                    return Ok(Ok(events));
                }
                events.push(Stored { offset, ..stored });
            }
        }
        Ok(Ok(events))
    }
}

/// The body of a block, checked.
fn body(block: Bytes, first: u64, end: u64) -> Result<Bytes, &'static str> {
    if block.len() < BLOCK_HEADER {
        return Err("a block is too short");
    }
    let mut head = block.slice(..BLOCK_HEADER);
    let body = block.slice(BLOCK_HEADER..);
    let summed = head.slice(..BLOCK_HEADER - SUM);
    let (base, count, length) = (head.get_u64_le(), head.get_u32_le(), head.get_u32_le());
    if head != sum(&[&summed, &body])[..] {
        return Err("a block is damaged");
    }
    if base != first || first.checked_add(u64::from(count)) != Some(end) || length as usize != body.len() {
        return Err("a block is not the one that the index names");
    }
    Ok(body)
}
