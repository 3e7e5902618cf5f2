//! A medium in memory that remembers every write, and makes of them what a crash could have left.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Write {
    Bytes(u64, Vec<u8>),
    Length(u64),
    Sync,
}

#[derive(Debug, Default)]
struct Inner {
    content: Vec<u8>,
    log: Vec<Write>,
    failing: bool,
}

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub(in crate::queue) struct Disk(Arc<Mutex<Inner>>);

/// Numbers that look random and are the same for a seed (xorshift64*, Vigna 2016).
pub(in crate::queue) struct Dice(pub(in crate::queue) u64);

impl Dice {
    pub(in crate::queue) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

impl Disk {
    /// Writes so far.
    pub(in crate::queue) fn written(&self) -> usize {
        self.0.lock().log.len()
    }

    /// Syncs so far.
    pub(in crate::queue) fn synced(&self) -> usize {
        self.0.lock().log.iter().filter(|write| matches!(write, Write::Sync)).count()
    }

    /// From now on, nothing is written any more.
    pub(in crate::queue) fn fail(&self) {
        self.0.lock().failing = true;
    }

    /// What is left when the power fails after so many writes: all that was synced, and of the rest what the dice say.
    pub(in crate::queue) fn crashed(&self, after: usize, dice: &mut Dice) -> Self {
        let inner = self.0.lock();
        let log = &inner.log[..after];
        let synced = log.iter().rposition(|write| matches!(write, Write::Sync)).unwrap_or(0);
        let mut content = Vec::new();
        for (at, write) in log.iter().enumerate() {
            match write {
                Write::Bytes(offset, bytes) => {
                    let kept = match if at < synced { 0 } else { dice.roll(3) } {
                        0 => bytes.len(),
                        1 => 0,
                        _ => dice.roll(bytes.len() / SECTOR + 1) * SECTOR,
                    };
                    put(&mut content, *offset, &bytes[..kept]);
                }
                Write::Length(length) if at < synced || dice.roll(2) == 0 => {
                    content.resize(usize::try_from(*length).unwrap(), 0);
                }
                _ => {}
            }
        }
        // what was left is what the next crash begins with
        let log = vec![Write::Bytes(0, content.clone()), Write::Sync];
        Self(Arc::new(Mutex::new(Inner { content, log, failing: false })))
    }
}

fn put(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap();
    let end = start + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.0.lock();
        let start = usize::try_from(offset).unwrap();
        let bytes = inner.content.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.content.resize(usize::try_from(len).unwrap(), 0);
        inner.log.push(Write::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.lock().log.push(Write::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock();
        if inner.failing {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut inner.content, offset, data);
        inner.log.push(Write::Bytes(offset, data.to_vec()));
        Ok(())
    }
}
