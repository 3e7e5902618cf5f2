//! What the demo streams: rounds of readings, a few inputs and the target that is to be predicted from them.

use std::path::Path;

use anyhow::Result;

use super::live::Machine;
use super::table::Table;

/// Inputs at most: as many as the model uses.
pub const MAX_INPUTS: usize = 4;

/// Where readings come from.
pub enum Readings {
    /// This machine.
    Live(Machine),
    /// A CSV file.
    Table(Table),
}

impl Readings {
    /// The machine's own, or those of a file, of which at most `rounds` rows are read.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn open(file: Option<&Path>, rounds: u64) -> Result<Self> {
        Ok(match file {
            Some(file) => Self::Table(Table::open(file, usize::try_from(rounds)?)?),
            None => Self::Live(Machine::open()?),
        })
    }

    /// Names of the inputs, then of the target; each can be a topic's level.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Live(machine) => machine.names(),
            Self::Table(table) => table.names().to_vec(),
        }
    }

    /// Rounds there are; none: no end.
    pub fn rounds(&self) -> Option<u64> {
        match self {
            Self::Live(_) => None,
            Self::Table(table) => Some(table.rounds()),
        }
    }

    /// The readings of the next round, in the order of the names.
    ///
    /// # Errors
    /// When the machine can't be read.
    pub fn next(&mut self) -> Result<Vec<f64>> {
        match self {
            Self::Live(machine) => machine.next(),
            Self::Table(table) => Ok(table.next()),
        }
    }

    /// For people: what is streamed.
    pub fn describe(&self) -> String {
        match self {
            Self::Live(_) => "live readings of this machine".into(),
            Self::Table(table) => table.describe(),
        }
    }
}
