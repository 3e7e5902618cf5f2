//! Faults in a running peer that no signal and no network makes: a slow disk, one that fails to sync, a full one, a wrong
//! clock.
//!
//! A small C library (`shim/faults.c`) is preloaded into peers of a testnet that asks for it
//! ([`Options::faults`](crate::Options)), and takes the place of some functions of the C library. A page that it shares
//! with this process says what to do; it is looked at in every call, so that a change counts at once. It promises: only
//! files below the peer's data directory are touched, and without a fault nothing changes. What it can't do: reach a
//! program that is linked statically, or one for another system than 64-bit Linux, or see system calls that are made
//! without the C library. Of what `canal` uses, raft-engine, fjall and the standard library go through the C library; of
//! `rustix`, which does not, only the temporary files of fjall have some use (`renameat` and the like, which are no
//! faults here).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// The library; empty where it could not be compiled.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/faults.so"));
/// Bytes of the shared page.
const PAGE: u64 = 4096;
/// Bytes of one of its numbers.
const WORD: u64 = 8;
/// The first of the numbers that tell what to do; before it is the process that uses the page.
const ORDERS: u64 = WORD;
/// The first of the numbers that tell what was done.
const MADE: u64 = 5 * WORD;

/// What goes wrong in a peer from now on. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Each `fsync` and `fdatasync` takes this much longer, in milliseconds.
    pub slow_sync_ms: u32,
    /// `fsync` and `fdatasync` fail with `EIO`.
    pub fail_sync: bool,
    /// Whatever writes, reserves space or makes a file fails with `ENOSPC`.
    pub full_disk: bool,
    /// The wall clock is ahead by this, in milliseconds; less than 0: behind. Monotonic clocks are right.
    pub clock_shift_ms: i64,
}

/// How often the library has done something in a peer, over all its restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Made {
    /// Syncs that were made slow.
    pub slowed: u64,
    /// Syncs that failed.
    pub failed: u64,
    /// Writes, reservations and new files that were refused.
    pub refused: u64,
}

/// The library as a file, for the peers of one testnet.
#[derive(Debug, Clone)]
pub(crate) struct Shim {
    library: PathBuf,
}

impl Shim {
    /// Writes the library into a directory.
    pub(crate) fn install(dir: &Path) -> Result<Self, Error> {
        available().map_err(Error::NoFaults)?;
        let library = dir.join("faults.so");
        // the loader takes both for the end of a name
        if library.to_string_lossy().contains([' ', ':']) {
            return Err(Error::NoFaults(format!("{} holds a space or `:`: use another --dir", library.display())));
        }
        // never into a file that a peer of before still runs
        let next = dir.join("faults.so.new");
        std::fs::write(&next, LIBRARY)
            .and_then(|()| std::fs::rename(&next, &library))
            .map_err(Error::io(format!("writing {}", library.display())))?;
        Ok(Self { library })
    }
}

/// Whether peers can be started with the library; else why not.
///
/// # Errors
/// The reason.
pub fn available() -> Result<(), String> {
    if LIBRARY.is_empty() {
        return Err("the library for it could not be compiled (it is for 64-bit Linux, and takes a C compiler)".into());
    }
    Ok(())
}

/// What one peer is told, and what it has done.
#[derive(Debug)]
pub(crate) struct Control {
    page: File,
    path: PathBuf,
    library: PathBuf,
    data: PathBuf,
}

impl Control {
    /// The page of the peer with this data directory, which need not be there yet.
    pub(crate) fn new(shim: &Shim, path: PathBuf, data: PathBuf) -> io::Result<Self> {
        let page = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        page.set_len(PAGE)?;
        Ok(Self { page, path, library: shim.library.clone(), data })
    }

    /// Has a process that is about to be started use it.
    pub(crate) fn preload(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library);
        command.env("TESTNET_FAULTS", &self.path).env("TESTNET_FAULTS_BELOW", &self.data);
    }

    pub(crate) fn set(&self, faults: &Faults) -> io::Result<()> {
        let orders = [
            i64::from(faults.slow_sync_ms),
            i64::from(faults.fail_sync),
            i64::from(faults.full_disk),
            faults.clock_shift_ms,
        ];
        // word by word: each is whole, and they do not depend on each other
        (0..).zip(orders).try_for_each(|(at, order)| self.page.write_all_at(&order.to_ne_bytes(), ORDERS + at * WORD))
    }

    /// Whether this process has taken the page up.
    pub(crate) fn used_by(&self, pid: u32) -> io::Result<bool> {
        Ok(self.word(0)? == u64::from(pid))
    }

    pub(crate) fn made(&self) -> io::Result<Made> {
        let word = |at: u64| self.word(MADE + at * WORD);
        Ok(Made { slowed: word(0)?, failed: word(1)?, refused: word(2)? })
    }

    fn word(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.page.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn orders_stand_where_the_library_looks_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let shim = Shim { library: dir.path().join("faults.so") };
        let page = dir.path().join("page");
        let control = Control::new(&shim, page.clone(), dir.path().join("data")).unwrap();
        control.set(&Faults { slow_sync_ms: 7, fail_sync: true, full_disk: false, clock_shift_ms: -2 }).unwrap();
        let bytes = std::fs::read(&page).unwrap();
        assert_eq!(bytes.len(), 4096);
        let words: Vec<i64> =
            bytes.chunks(8).take(8).map(|word| i64::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [0, 7, 1, 0, -2, 0, 0, 0]);
        assert_eq!(control.made().unwrap(), Made::default());
        assert!(!control.used_by(1).unwrap());
    }

    #[test]
    fn a_directory_that_the_loader_can_not_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let spaced = dir.path().join("with space");
        std::fs::create_dir(&spaced).unwrap();
        assert!(Shim::install(&spaced).unwrap_err().to_string().contains("use another --dir"));
    }
}
