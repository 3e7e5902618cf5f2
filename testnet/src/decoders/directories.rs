//! The small files of a peer's data directory.

use std::path::Path;

use canal_node::data::{self, Data};

use super::bytes::Parts;

/// The files, in the order in which the first byte of an input chooses.
const FILES: [&str; 8] = [
    "identity",
    "mesh.json",
    "boot",
    "ports.json",
    "known-peers.json",
    "seen-starts.json",
    "forgotten.json",
    "peer.json",
];

/// A data directory in which one file has this content: what is wrong with it is said, with its name.
pub fn directories(data: &[u8]) -> bool {
    let mut parts = Parts(data);
    let Some(name) = FILES.get(usize::from(parts.byte()) % FILES.len()) else { return false };
    let Ok(dir) = tempfile::tempdir() else { return false };
    if std::fs::write(dir.path().join(name), parts.0).is_err() {
        return false;
    }
    match read(dir.path()) {
        Ok(()) => true,
        Err(error) => {
            let text = format!("{error:#}");
            let words = [*name, "peer id", "mesh id", "belongs to mesh", "forgotten-", "number"];
            assert!(words.iter().any(|word| text.contains(word)), "{name}: {text}");
            false
        }
    }
}

/// What a peer reads when it starts, and what it writes then.
fn read(dir: &Path) -> anyhow::Result<()> {
    let data = Data::open(dir)?;
    let boot = data.count_boot()?;
    assert!(boot >= 1);
    let keys = data.identity()?;
    assert!(data.identity()?.public() == keys.public(), "the identity changes");
    let seen = data.seen_starts()?;
    data.set_seen_starts(&seen)?;
    assert!(data.seen_starts()? == seen);
    let mesh = data.mesh("canal")?;
    assert!(data.mesh("canal")? == mesh);
    data.known_peers();
    data.port("127.0.0.1:0");
    data.set_port("127.0.0.1:0", 4040)?;
    assert_eq!(data.port("127.0.0.1:0"), Some(4040));
    data::contact(dir)?;
    drop(data);
    // the next start reads what this one has left
    assert_eq!(Data::open(dir)?.count_boot()?, boot.saturating_add(1));
    Ok(())
}
