//! A network namespace of its own for one peer: a thread that lives in it, its TUN device, and the processes it starts.
//!
//! A namespace belongs to the thread that made it, and to what that thread starts; it goes when they are gone. So nothing
//! on the machine has to be named, configured or cleaned up.

use std::io;
use std::net::Ipv4Addr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use nix::sched::{CloneFlags, unshare};
use tun_rs::{DeviceBuilder, SyncDevice};

/// What fits a packet on the wire: that of Ethernet.
const MTU: u16 = 1500;

type Job = Box<dyn FnOnce() + Send>;

/// A namespace with one device, whose packets go through the router.
pub struct Space {
    address: Ipv4Addr,
    device: Arc<SyncDevice>,
    jobs: Sender<Job>,
}

impl Space {
    /// Makes a namespace whose device has this address in a network of 16 bits.
    ///
    /// # Errors
    /// When the system does not allow it (it needs root, and `/dev/net/tun`).
    pub fn new(address: Ipv4Addr) -> io::Result<Self> {
        let (jobs, work) = channel::<Job>();
        let (made, device) = channel();
        std::thread::Builder::new().name(format!("space {address}")).spawn(move || {
            let device = enter(address);
            let failed = device.is_err();
            if made.send(device).is_err() || failed {
                return;
            }
            // ends when the space is dropped
            while let Ok(job) = work.recv() {
                job();
            }
        })?;
        let device = device.recv().map_err(|_| io::Error::other("the namespace's thread ended"))??;
        Ok(Self { address, device: Arc::new(device), jobs })
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where its packets come out, and go in.
    pub fn device(&self) -> Arc<SyncDevice> {
        self.device.clone()
    }

    /// Starts a process in it.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        let (done, child) = channel();
        let job: Job = Box::new(move || drop(done.send(command.spawn())));
        self.jobs.send(job).map_err(|_| io::Error::other("the namespace is gone"))?;
        child.recv().map_err(|_| io::Error::other("the namespace is gone"))?
    }
}

fn enter(address: Ipv4Addr) -> io::Result<SyncDevice> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    device(address)
}

/// A device in the namespace of the thread that calls this.
pub(super) fn device(address: Ipv4Addr) -> io::Result<SyncDevice> {
    DeviceBuilder::new().name("canal0").ipv4(address, 16, None).mtu(MTU).build_sync()
}
