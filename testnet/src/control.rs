//! Changing the links of a testnet that runs: `canal-testnet link` talks to `canal-testnet up` through a socket in the
//! testnet's directory. A line of JSON asks, a line of JSON answers.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::emulated::{Network, Quality};

/// The socket, in the testnet's directory.
const SOCKET: &str = "control.sock";
/// Bytes of a line at most: some hundred links.
const MAX_LINE: u64 = 64 << 10;
/// For a question and its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks how a link stands, or changes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Number of the peer from which packets come.
    pub from: usize,
    /// Number of the peer to which they go.
    pub to: usize,
    /// How the link behaves from now on; none: as before.
    pub set: Option<Quality>,
}

/// How a link stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// How it behaves.
    pub quality: Quality,
    /// Packets that passed so far.
    pub passed: u64,
    /// Packets that were lost so far.
    pub lost: u64,
}

fn socket(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

/// Answers until it is dropped.
///
/// # Errors
/// When the socket can't be made.
pub async fn serve(dir: &Path, network: Network) -> io::Result<()> {
    let path = socket(dir);
    // one that a killed testnet has left; a live one has its own directory
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    let listener = UnixListener::bind(&path)?;
    loop {
        let (stream, _) = listener.accept().await?;
        match timeout(PATIENCE, converse(stream, &network)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a question about a link was not answered"),
            Err(_) => tracing::warn!("a question about a link did not come to its end"),
        }
    }
}

async fn converse(stream: UnixStream, network: &Network) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await?;
    let answer: Result<Answer, String> = answer(&line, network);
    let mut text = serde_json::to_string(&answer).map_err(io::Error::other)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await
}

fn answer(line: &str, network: &Network) -> Result<Answer, String> {
    let ask: Ask = serde_json::from_str(line).map_err(|e| e.to_string())?;
    if let Some(quality) = ask.set {
        network.set(ask.from, ask.to, quality).map_err(|e| e.to_string())?;
    }
    let link = network.link(ask.from, ask.to).map_err(|e| e.to_string())?;
    Ok(Answer { quality: link.quality, passed: link.passed, lost: link.lost })
}

/// Asks the testnet in this directory.
///
/// # Errors
/// When none runs there on an emulated network, or it refuses.
pub async fn ask(dir: &Path, ask: &Ask) -> io::Result<Answer> {
    let path = socket(dir);
    let none = |error: io::Error| {
        let text = format!("no testnet with an emulated network runs in {}: {error}", dir.display());
        io::Error::new(error.kind(), text)
    };
    let asked = async {
        let mut stream = UnixStream::connect(&path).await.map_err(none)?;
        let mut text = serde_json::to_string(ask).map_err(io::Error::other)?;
        text.push('\n');
        stream.write_all(text.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE)).read_line(&mut line).await?;
        let answer: Result<Answer, String> = serde_json::from_str(&line).map_err(io::Error::other)?;
        answer.map_err(io::Error::other)
    };
    timeout(PATIENCE, asked).await.map_err(|_| io::Error::other("the testnet does not answer"))?
}
