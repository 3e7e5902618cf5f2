//! The data directory: who this peer is, which mesh it belongs to, and where it was last reachable.
//!
//! A lock keeps a second process out. Small files are written beside and renamed into place, synced, so that a crash
//! leaves the old or the new one.
//!
//! A peer whose disk is older than what others have seen of it begins anew: what it holds of groups is moved into
//! `forgotten-N/`, where nobody reads it. A file notes that this is to be done before it is begun, and the next start
//! goes on where a crash came between. What was moved is the operator's to look at or remove.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use canal_proto::{MeshId, PeerId};
use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};

use crate::starts::Start;

/// Other peers whose addresses are kept for the next start.
const MAX_KNOWN: usize = 64;
/// What a peer holds of groups: log, applied state, segments and pieces of snapshots.
const HELD: [&str; 3] = ["log", "state", "files"];
/// How often a peer begins anew by itself. More often than a few times means that two processes use one key, and each
/// would move aside what the other has made.
const MAX_ASIDE: u32 = 8;

/// What a client on this machine needs to find the peer: `peer.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Contact {
    /// Peer id.
    pub peer: String,
    /// Name of the mesh.
    pub mesh: String,
    /// Multiaddresses.
    pub addresses: Vec<String>,
}

/// Something of this peer's is held by another process.
#[derive(Debug, thiserror::Error)]
pub enum InUse {
    /// The data directory.
    #[error("another process uses the data directory {}; stop it, or name another directory with --data", .0.display())]
    Directory(PathBuf),
    /// An address.
    #[error("can't listen at {0}: {1}; is another process there? name another address with --listen")]
    Address(String, String),
}

/// A small file is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged: {}; restore it from a copy. Its format is in docs/format.md", .0.display(), .1)]
pub struct Damaged(PathBuf, String);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Membership {
    name: String,
    id: String,
}

/// What is to be moved aside, and where to: `forgotten.json`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Forgotten {
    /// How many starts were seen of this peer.
    boot: u64,
    /// Number of the directory.
    aside: u32,
    /// It is damaged, and not older than it should be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    damaged: bool,
}

/// The data directory, locked.
#[derive(Debug)]
pub struct Data {
    dir: PathBuf,
    _lock: File,
    /// What was held was damaged, and moved aside by this start.
    discarded: bool,
}

impl Data {
    /// Opens and locks the directory; makes it when it is not there.
    ///
    /// # Errors
    /// When another process holds it, or it can't be written.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("the data directory {} can't be made", dir.display()))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("{} can't be opened", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(InUse::Directory(dir.to_owned()).into()),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} can't be locked", path.display()));
            }
        }
        let mut data = Self { dir: dir.to_owned(), _lock: lock, discarded: false };
        data.discarded = data.move_aside()?;
        Ok(data)
    }

    /// Counts this start, and returns its number.
    ///
    /// # Errors
    /// When the file is damaged, or can't be written.
    pub fn count_boot(&self) -> Result<u64> {
        let boot = self.boot()?.saturating_add(1);
        self.set_boot(boot)?;
        Ok(boot)
    }

    fn boot(&self) -> Result<u64> {
        let path = self.dir.join("boot");
        match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim().parse().with_context(|| {
                format!(
                    "{} is damaged: it has the number of starts of this peer, as `canal peer ls` at another peer shows it. Write \
                     that number, or a larger one, into it, or restore the data directory from a copy",
                    path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        }
    }

    fn set_boot(&self, boot: u64) -> Result<()> {
        self.replace("boot", format!("{boot}\n").as_bytes(), false)
    }

    /// The highest starts that were seen of other peers.
    pub fn seen_starts(&self) -> Result<BTreeMap<PeerId, Start>> {
        let seen: BTreeMap<String, Start> = self.read_or_lose("seen-starts.json")?;
        seen.into_iter().map(|(peer, start)| Ok((peer.parse()?, start))).collect()
    }

    /// Notes the highest starts that were seen of other peers.
    pub fn set_seen_starts(&self, seen: &BTreeMap<PeerId, Start>) -> Result<()> {
        let seen: BTreeMap<String, Start> = seen.iter().map(|(peer, start)| (peer.to_string(), *start)).collect();
        self.write("seen-starts.json", &seen)
    }

    /// Whether this peer is being emptied.
    pub fn draining(&self) -> bool {
        self.dir.join("draining").exists()
    }

    /// Notes whether this peer is being emptied.
    pub fn set_draining(&self, on: bool) -> Result<()> {
        if on { self.replace("draining", b"", false) } else { self.remove("draining") }
    }

    /// Notes that what this peer holds of groups can't be trusted, since others have seen this start of it: the next
    /// [`Self::open`] moves it aside.
    ///
    /// # Errors
    /// When that was done too often already, or the note can't be written.
    pub fn forget(&self, seen: u64) -> Result<()> {
        self.note_forgotten(seen, false)
    }

    /// Notes that what this peer holds of groups is damaged, and is to be moved aside by the next [`Self::open`].
    ///
    /// # Errors
    /// As [`Self::forget`].
    pub fn discard(&self) -> Result<()> {
        self.note_forgotten(self.boot()?, true)
    }

    /// Whether what this peer held was damaged, and moved aside by this start.
    pub fn discarded(&self) -> bool {
        self.discarded
    }

    fn note_forgotten(&self, seen: u64, damaged: bool) -> Result<()> {
        let free = (1..=MAX_ASIDE).find(|n| !self.aside(*n).exists());
        let Some(aside) = free else {
            bail!(
                "this peer has begun anew {MAX_ASIDE} times: does another process run with a copy of {}, or is its disk \
                 failing? End it, or replace the disk, then remove the forgotten-* directories",
                self.dir.display()
            );
        };
        self.write("forgotten.json", &Forgotten { boot: seen, aside, damaged })
    }

    fn aside(&self, number: u32) -> PathBuf {
        self.dir.join(format!("forgotten-{number}"))
    }

    /// Moves aside what can't be trusted, if there is such a note. Can be done again from any point.
    fn move_aside(&self) -> Result<bool> {
        let Some(forgotten) = self.read::<Forgotten>("forgotten.json")? else { return Ok(false) };
        let aside = self.aside(forgotten.aside);
        let move_all = || -> std::io::Result<()> {
            fs::create_dir_all(&aside)?;
            for name in HELD {
                match fs::rename(self.dir.join(name), aside.join(name)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            File::open(&aside)?.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        move_all().with_context(|| format!("what this peer held can't be moved to {}", aside.display()))?;
        self.set_boot(self.boot()?.max(forgotten.boot))?;
        self.remove("forgotten.json")?;
        if forgotten.damaged {
            tracing::error!(
                aside = %aside.display(),
                "what this peer held was damaged: it was moved aside, and its groups make its replicas anew"
            );
        }
        Ok(forgotten.damaged)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        match fs::remove_file(&path).and_then(|()| File::open(&self.dir)?.sync_all()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} can't be removed", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The peer's key; drawn the first time.
    pub fn identity(&self) -> Result<Keypair> {
        let path = self.dir.join("identity");
        match fs::read(&path) {
            Ok(bytes) => Keypair::from_protobuf_encoding(&bytes).with_context(|| {
                format!(
                    "{} is damaged; restore it from a copy. Without it this peer can't be itself: a new one, with another \
                     data directory, takes its place in groups with other replicas",
                    path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let keys = Keypair::generate_ed25519();
                self.replace("identity", &keys.to_protobuf_encoding()?, true)?;
                Ok(keys)
            }
            Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        }
    }

    /// The mesh that this peer belongs to, if it has joined or founded one.
    pub fn mesh(&self, name: &str) -> Result<Option<MeshId>> {
        let Some(mesh) = self.read::<Membership>("mesh.json")? else { return Ok(None) };
        if mesh.name != name {
            bail!(
                "the data directory {} belongs to mesh `{}`, not `{name}`; use that name, or another directory",
                self.dir.display(),
                mesh.name
            );
        }
        Ok(Some(mesh.id.parse()?))
    }

    /// Notes the mesh, for good.
    pub fn set_mesh(&self, name: &str, id: MeshId) -> Result<()> {
        self.write("mesh.json", &Membership { name: name.to_owned(), id: id.to_string() })
    }

    /// The port that was chosen for `listen` before, so that a restart keeps it.
    pub fn port(&self, listen: &str) -> Option<u16> {
        let ports: BTreeMap<String, u16> = self.read("ports.json").ok().flatten()?;
        ports.get(listen).copied()
    }

    /// Notes the port that was chosen for `listen`.
    pub fn set_port(&self, listen: &str, port: u16) -> Result<()> {
        let mut ports: BTreeMap<String, u16> = self.read_or_lose("ports.json")?;
        ports.insert(listen.to_owned(), port);
        self.write("ports.json", &ports)
    }

    /// Addresses of other peers, from the last run.
    pub fn known_peers(&self) -> Vec<String> {
        self.read("known-peers.json").ok().flatten().unwrap_or_default()
    }

    /// Notes addresses of other peers for the next start.
    pub fn set_known_peers(&self, addresses: &[String]) -> Result<()> {
        self.write("known-peers.json", &addresses.iter().take(MAX_KNOWN).collect::<Vec<_>>())
    }

    /// Says where this peer can be reached.
    pub fn set_contact(&self, peer: PeerId, mesh: &str, addresses: &[String]) -> Result<()> {
        let contact = Contact { peer: peer.to_string(), mesh: mesh.to_owned(), addresses: addresses.to_vec() };
        self.write("peer.json", &contact)
    }

    /// Reads a file that this peer can do without: one that is damaged is moved aside.
    fn read_or_lose<T: for<'de> Deserialize<'de> + Default>(&self, name: &str) -> Result<T> {
        match self.read(name) {
            Ok(value) => Ok(value.unwrap_or_default()),
            Err(error) if error.is::<Damaged>() => {
                let (path, aside) = (self.dir.join(name), self.dir.join(format!("{name}.damaged")));
                tracing::error!(%error, aside = %aside.display(), "a small file is damaged; it is moved aside, and begun anew");
                fs::rename(&path, &aside).with_context(|| format!("{} can't be moved aside", path.display()))?;
                Ok(T::default())
            }
            Err(error) => Err(error),
        }
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>> {
        read(&self.dir, name)
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.replace(name, &serde_json::to_vec_pretty(value)?, false)
    }

    fn replace(&self, name: &str, bytes: &[u8], secret: bool) -> Result<()> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        let write = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(true);
            #[cfg(unix)]
            if secret {
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            }
            let mut file = options.open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().with_context(|| format!("{} can't be written", path.display()))
    }
}

/// Where the peer that uses this directory can be reached.
pub fn contact(dir: &Path) -> Result<Option<Contact>> {
    read(dir, "peer.json")
}

fn read<T: for<'de> Deserialize<'de>>(dir: &Path, name: &str) -> Result<Option<T>> {
    let path = dir.join(name);
    match fs::read(&path) {
        Ok(bytes) => {
            Ok(Some(serde_json::from_slice(&bytes).map_err(|error| Damaged(path.clone(), error.to_string()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_belongs_to_one_process_and_one_mesh() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path()).unwrap();
        let refused = Data::open(dir.path()).unwrap_err().to_string();
        assert!(refused.starts_with("another process uses the data directory"), "{refused}");
        let keys = data.identity().unwrap();
        assert_eq!(data.identity().unwrap().public(), keys.public());
        assert_eq!(data.mesh("home").unwrap(), None);
        data.set_mesh("home", MeshId([1; 16])).unwrap();
        assert_eq!(data.mesh("home").unwrap(), Some(MeshId([1; 16])));
        assert!(data.mesh("work").unwrap_err().to_string().contains("belongs to mesh `home`"));
        drop(data);
        Data::open(dir.path()).unwrap();
    }

    #[test]
    fn the_files_are_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path()).unwrap();
        let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        data.set_mesh("home", MeshId([1; 16])).unwrap();
        assert_eq!(text("mesh.json"), "{\n  \"name\": \"home\",\n  \"id\": \"01010101010101010101010101010101\"\n}");
        data.set_port("127.0.0.1:0", 4041).unwrap();
        assert_eq!(text("ports.json"), "{\n  \"127.0.0.1:0\": 4041\n}");
        data.set_known_peers(&["/ip4/127.0.0.1/udp/1/quic-v1".into()]).unwrap();
        assert_eq!(text("known-peers.json"), "[\n  \"/ip4/127.0.0.1/udp/1/quic-v1\"\n]");
        let peer = PeerId::from_public_key([0; 32]);
        assert_eq!((data.count_boot().unwrap(), data.count_boot().unwrap()), (1, 2));
        assert_eq!(text("boot"), "2\n");
        data.set_seen_starts(&[(peer, Start { boot: 3, nonce: u64::MAX })].into()).unwrap();
        let want = "{\n  \"12D3KooW9pNAk8aiBuGVQtWRdbkLmo5qVL3e2h5UxbN2Nz9ttwiw\": {\n    \"boot\": 3,\n    \"nonce\": 18446744073709551615\n  }\n}";
        assert_eq!(text("seen-starts.json"), want);
        assert_eq!(data.seen_starts().unwrap(), [(peer, Start { boot: 3, nonce: u64::MAX })].into());
        data.set_draining(true).unwrap();
        assert_eq!((data.draining(), text("draining").as_str()), (true, ""));
        data.set_draining(false).unwrap();
        assert!(!data.draining());
        data.forget(9).unwrap();
        assert_eq!(text("forgotten.json"), "{\n  \"boot\": 9,\n  \"aside\": 1\n}");
        data.set_contact(peer, "home", &["/ip4/127.0.0.1/udp/1/quic-v1".into()]).unwrap();
        let want = "{\n  \"peer\": \"12D3KooW9pNAk8aiBuGVQtWRdbkLmo5qVL3e2h5UxbN2Nz9ttwiw\",\n  \"mesh\": \"home\",\n  \"addresses\": [\n    \"/ip4/127.0.0.1/udp/1/quic-v1\"\n  ]\n}";
        assert_eq!(text("peer.json"), want);
    }

    #[test]
    fn what_is_forgotten_is_moved_aside_once_and_the_count_goes_on_above() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path()).unwrap();
        let key = data.identity().unwrap().public();
        data.count_boot().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        data.forget(7).unwrap();
        drop(data);
        // a crash after some of it
        std::fs::create_dir(dir.path().join("forgotten-1")).unwrap();
        std::fs::rename(dir.path().join("log"), dir.path().join("forgotten-1/log")).unwrap();
        let data = Data::open(dir.path()).unwrap();
        assert!(dir.path().join("forgotten-1/log").is_dir() && dir.path().join("forgotten-1/files").is_dir());
        assert!(!dir.path().join("log").exists() && !dir.path().join("forgotten.json").exists());
        assert_eq!(data.count_boot().unwrap(), 8);
        assert_eq!(data.identity().unwrap().public(), key);
        // what is made from then on stays
        std::fs::create_dir(dir.path().join("log")).unwrap();
        drop(data);
        let data = Data::open(dir.path()).unwrap();
        assert!(dir.path().join("log").is_dir());
        for _ in 1..MAX_ASIDE {
            data.forget(1).unwrap();
            data.move_aside().unwrap();
        }
        assert!(data.forget(1).unwrap_err().to_string().contains("does another process run"));
    }

    #[test]
    fn a_damaged_file_says_what_to_do_and_what_can_be_done_without_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path()).unwrap();
        data.identity().unwrap();
        data.count_boot().unwrap();
        data.set_mesh("home", MeshId([1; 16])).unwrap();
        data.set_port("127.0.0.1:0", 4041).unwrap();
        data.set_seen_starts(&[(PeerId::from_public_key([0; 32]), Start { boot: 3, nonce: 4 })].into()).unwrap();
        for name in ["identity", "boot", "mesh.json", "ports.json", "seen-starts.json", "known-peers.json"] {
            std::fs::write(dir.path().join(name), b"{\xff").unwrap();
        }
        let says = |refused: anyhow::Error, parts: &[&str]| {
            let text = format!("{refused:#}");
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        says(data.identity().unwrap_err(), &["identity is damaged", "restore it from a copy"]);
        says(data.count_boot().unwrap_err(), &["boot is damaged", "a larger one"]);
        says(data.mesh("home").unwrap_err(), &["mesh.json is damaged", "restore it from a copy", "docs/format.md"]);
        // hints: a port is chosen again, addresses are found again, starts are told again
        assert_eq!((data.port("127.0.0.1:0"), data.known_peers()), (None, Vec::new()));
        data.set_port("127.0.0.1:0", 4042).unwrap();
        assert_eq!(data.port("127.0.0.1:0"), Some(4042));
        assert!(data.seen_starts().unwrap().is_empty());
        assert!(dir.path().join("seen-starts.json.damaged").exists());
    }

    #[test]
    fn what_is_damaged_is_moved_aside_by_the_next_start_which_knows() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path()).unwrap();
        data.count_boot().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        data.discard().unwrap();
        let text = std::fs::read_to_string(dir.path().join("forgotten.json")).unwrap();
        assert_eq!(text, "{\n  \"boot\": 1,\n  \"aside\": 1,\n  \"damaged\": true\n}");
        drop(data);
        let data = Data::open(dir.path()).unwrap();
        assert!(data.discarded() && dir.path().join("forgotten-1/log").is_dir());
        assert_eq!(data.count_boot().unwrap(), 2);
        drop(data);
        assert!(!Data::open(dir.path()).unwrap().discarded());
    }
}
