//! A peer's disk, which forgets what was not synced when the machine stops.
//!
//! Three things lie on it, as in the product: the logs of all groups ([`log`], one synced write a turn for all of them), the
//! rows that groups have applied ([`rows`], never synced on the way, flushed now and then), and files named by their content
//! ([`files`], synced before they have a name). Beside them stands how many times the peer has started.

use canal_proto::GroupId;

use super::rng::Rng;

pub mod files;
pub mod log;
pub mod rows;

pub use files::Files;
pub use log::Log;
pub use rows::Rows;

/// A disk.
#[derive(Default)]
pub struct Disk {
    /// The logs.
    pub log: Log,
    /// The rows.
    pub rows: Rows,
    /// The files.
    pub files: Files,
}

impl Disk {
    /// The machine stops: what was not synced is lost, but for a part that had got there by itself.
    pub fn crash(&mut self, rng: &mut Rng) {
        self.log.crash(rng);
        self.rows.crash(rng);
    }

    /// The groups that have a log here.
    pub fn groups(&self) -> Vec<GroupId> {
        self.log.groups()
    }
}
