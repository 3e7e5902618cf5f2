//! An emulated network: each peer in a network namespace of its own, linked through a router in this process.
//!
//! The kernels that this has to run on have TUN devices, and no queueing discipline that delays or loses packets. So a
//! router in user space carries each packet between two devices, with the delay, jitter, loss and bandwidth of that link,
//! or not at all. Links can be changed while peers run.
//!
//! The process that uses it has to live in such a namespace itself to reach the peers: [`Network::here`] does that for the
//! calling thread and all that it starts later, so call it first. Where the system does not allow any of it,
//! [`Network::here`] says why, and a testnet runs on loopback.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

pub mod link;
mod router;
mod space;

pub use link::{Link, Quality};
pub use space::Space;

use router::Router;

/// Peers in one network.
const MAX_PEERS: usize = 250;

/// An emulated network.
#[derive(Clone)]
pub struct Network {
    router: Arc<Router>,
    rootless: bool,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

/// The address of a peer; number 0 is the first, and [`HERE`] is this process.
fn address(number: usize) -> io::Result<Ipv4Addr> {
    let number = u8::try_from(number).ok().filter(|number| usize::from(*number) < MAX_PEERS);
    let number =
        number.ok_or_else(|| io::Error::other(format!("an emulated network has at most {MAX_PEERS} peers")))?;
    Ok(Ipv4Addr::new(10, 77, 1, number + 1))
}

/// Moves the calling process, which must not have other threads yet, into a user namespace of its own, where it may make
/// network namespaces; it stays who it is.
fn as_user() -> io::Result<()> {
    let (user, group) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// The address of this process.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

impl Network {
    /// Moves the calling thread, and whatever it starts from now on, into a namespace of its own, and makes a network
    /// that it is part of.
    ///
    /// # Errors
    /// When the system does not allow it; the text says what is missing.
    pub fn here(seed: u64) -> io::Result<Self> {
        let missing = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        // asked first: who is in a namespace without a device has no loopback either
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(|error| missing("no TUN device can be made: /dev/net/tun can't be opened", error))?;
        let rootless = match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => false,
            Err(Errno::EPERM) => {
                as_user().map_err(|error| {
                    missing("no network namespace can be made (it needs root, or user namespaces)", error)
                })?;
                true
            }
            Err(errno) => return Err(missing("no network namespace can be made", errno.into())),
        };
        let device = space::device(HERE).map_err(|error| missing("no TUN device can be made", error))?;
        let router = Router::new(seed)?;
        router.attach(HERE, Arc::new(device))?;
        Ok(Self { router: Arc::new(router), rootless })
    }

    /// What to put in front of a command to run it among the peers, while this process lives.
    pub fn enter(&self) -> String {
        let process = std::process::id();
        if self.rootless {
            format!("nsenter --target {process} --user --preserve-credentials --net")
        } else {
            format!("nsenter --net=/proc/{process}/ns/net")
        }
    }

    /// A namespace for the peer with this number.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn space(&self, number: usize) -> io::Result<Space> {
        let space = Space::new(address(number)?)?;
        self.router.attach(space.address(), space.device())?;
        Ok(space)
    }

    /// Changes the link between two peers in the direction from the first to the second.
    ///
    /// # Errors
    /// When there can't be such a peer, or the link can't be like that.
    pub fn set(&self, from: usize, to: usize, quality: Quality) -> io::Result<()> {
        quality.check().map_err(io::Error::other)?;
        self.router.set((address(from)?, address(to)?), quality);
        Ok(())
    }

    /// How the link between two peers stands in that direction.
    ///
    /// # Errors
    /// When there can't be such a peer.
    pub fn link(&self, from: usize, to: usize) -> io::Result<Link> {
        Ok(self.router.link((address(from)?, address(to)?)))
    }
}
