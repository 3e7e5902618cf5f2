//! What stops a run from outside: its memory limit, its time limit, the end of the runtime.

use wasmtime::ResourceLimiter;

/// Entries of all tables of one run together: as much as the pool gives one table.
pub const MAX_TABLE_ENTRIES: usize = 20_000;

/// Why a run was stopped from outside. It travels through wasmtime as the error of the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// It ran out of time.
    #[error("ran for more than {0} ms; give the function a higher time limit or less to do")]
    Time(u32),
    /// It asked for more memory than it may have.
    #[error("needs more than {0} bytes of memory; give the function a higher memory limit or less to hold")]
    Memory(u64),
    /// It asked for more table entries than there are.
    #[error("needs more than {MAX_TABLE_ENTRIES} table entries")]
    Table,
    /// The runtime closes.
    #[error("this peer is shutting down")]
    Closing,
}

/// Counts the memory of one run: all of its linear memories together.
///
/// Where memory is short the run ends; `memory.grow` never reports failure to the guest. A guest that could see
/// how much memory there is might not repeat itself.
pub struct Limiter {
    limit: u64,
    used: u64,
    entries: usize,
}

impl Limiter {
    pub fn new(limit: u64) -> Self {
        Self { limit, used: 0, entries: 0 }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.used = self.used.saturating_add(desired.saturating_sub(current) as u64);
        if self.used > self.limit {
            return Err(Stop::Memory(self.limit).into());
        }
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(error)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.entries = self.entries.saturating_add(desired.saturating_sub(current));
        if self.entries > MAX_TABLE_ENTRIES {
            return Err(Stop::Table.into());
        }
        Ok(true)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(error)
    }
}
