//! What can go wrong with a testnet.

use std::path::PathBuf;

/// Why a testnet could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The scenario can't be used.
    #[error("the scenario can't be used: {0}")]
    Scenario(String),
    /// A file, a directory or a process refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A peer did not come up.
    #[error("peer {peer} did not start ({why}); its log is {log}, and ends with:\n{tail}", log = log.display())]
    NotStarted {
        /// Its number.
        peer: usize,
        /// What was seen.
        why: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// There is no such peer, or it does not run.
    #[error("peer {0} does not run: start it first")]
    NotRunning(usize),
    /// Faults can't be made in a peer.
    #[error("no faults can be made in this peer: {0}")]
    NoFaults(String),
    /// A condition did not come true in time.
    #[error("gave up after {seconds} s: {what}")]
    TooLate {
        /// What was waited for, and what was last seen.
        what: String,
        /// For how long.
        seconds: u64,
    },
    /// The mesh answered with an error.
    #[error(transparent)]
    Mesh(#[from] canal_sdk::Error),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
