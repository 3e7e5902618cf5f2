//! When a command that would go on should stop: at a signal, or when nobody reads its output any more.

use std::io::Stdout;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Watches for the end.
#[derive(Debug)]
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// Standard output, where it can be watched: a pipe, a socket, a terminal. A file always has a reader.
    output: Option<AsyncFd<Stdout>>,
}

impl Stop {
    /// From now on, signals no longer end the process.
    ///
    /// # Errors
    /// When signals can't be watched.
    pub fn new() -> std::io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its descriptor must stay open, which that of standard output does; no unsafe here"
        )]
        let output = AsyncFd::with_interest(std::io::stdout(), Interest::ERROR).ok();
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, output })
    }

    /// Returns at a signal.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Returns at a signal, or when the reader of standard output has gone.
    pub async fn wait_or_unread(&mut self) {
        let Self { interrupt, terminate, output } = self;
        let unread = async {
            match output {
                Some(output) => drop(output.ready(Interest::ERROR).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = unread => {}
        }
    }
}
