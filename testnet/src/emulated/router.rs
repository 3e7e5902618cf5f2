//! Carries packets between the namespaces' devices, each as its link lets it.
//!
//! A thread a device reads packets and gives them to the links; one thread writes those whose time has come. A device
//! that goes away ends its thread.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tun_rs::SyncDevice;

use super::link::{Link, Quality};

/// Packets under way, over all links: a bound on memory, at 1500 bytes each.
const MAX_UNDER_WAY: usize = 65_536;
/// Room for a packet.
const PACKET: usize = 2048;
/// Header of an IPv4 packet without options.
const HEADER: usize = 20;

/// Ends of a link, from and to.
pub type Ends = (Ipv4Addr, Ipv4Addr);

/// A packet: when it arrives, in which order it came, where it goes, and its bytes.
type UnderWay = (u64, u64, Ipv4Addr, Vec<u8>);

struct State {
    links: BTreeMap<Ends, Link>,
    devices: BTreeMap<Ipv4Addr, Arc<SyncDevice>>,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    given: u64,
    random: u64,
}

/// Routes packets until it is dropped.
pub struct Router {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    more: Condvar,
    began: Instant,
    ended: AtomicBool,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl State {
    /// Steele, Lea, Flood 2014: SplitMix64.
    fn draw(&mut self) -> [u32; 2] {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        [(z >> 32) as u32, (z & 0xffff_ffff) as u32]
    }
}

impl Router {
    /// A router without devices. Losses and jitter follow from the seed and the order of packets.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(seed: u64) -> io::Result<Self> {
        let state = State {
            links: BTreeMap::new(),
            devices: BTreeMap::new(),
            under_way: BinaryHeap::new(),
            given: 0,
            random: seed,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            more: Condvar::new(),
            began: Instant::now(),
            ended: AtomicBool::new(false),
        });
        let router = Self { shared: shared.clone() };
        std::thread::Builder::new().name("router".into()).spawn(move || write(&shared))?;
        Ok(router)
    }

    /// Takes up a device.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn attach(&self, address: Ipv4Addr, device: Arc<SyncDevice>) -> io::Result<()> {
        self.shared.state.lock().devices.insert(address, device.clone());
        let shared = self.shared.clone();
        std::thread::Builder::new().name(format!("router {address}")).spawn(move || read(&shared, address, &device))?;
        Ok(())
    }

    /// Changes a link, in one direction.
    pub fn set(&self, ends: Ends, quality: Quality) {
        self.shared.state.lock().links.entry(ends).or_default().quality = quality;
    }

    /// How a link stands.
    pub fn link(&self, ends: Ends) -> Link {
        self.shared.state.lock().links.get(&ends).cloned().unwrap_or_default()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.more.notify_all();
    }
}

fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    let version = packet.first()? >> 4;
    let bytes: [u8; 4] = packet.get(16..HEADER)?.try_into().ok()?;
    (version == 4).then(|| Ipv4Addr::from(bytes))
}

fn read(shared: &Shared, from: Ipv4Addr, device: &SyncDevice) {
    let mut packet = [0; PACKET];
    while let Ok(len) = device.recv(&mut packet) {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let Some(packet) = packet.get(..len) else { return };
        let Some(to) = destination(packet) else { continue };
        let now = shared.now();
        let mut state = shared.state.lock();
        if !state.devices.contains_key(&to) {
            continue;
        }
        if state.under_way.len() >= MAX_UNDER_WAY {
            state.links.entry((from, to)).or_default().lost += 1;
            continue;
        }
        let draws = state.draw();
        let Some(at) = state.links.entry((from, to)).or_default().give(len, now, draws) else { continue };
        state.given += 1;
        let number = state.given;
        state.under_way.push(Reverse((at, number, to, packet.to_vec())));
        shared.more.notify_one();
    }
}

fn write(shared: &Shared) {
    let mut state = shared.state.lock();
    while !shared.ended.load(Ordering::Relaxed) {
        let now = shared.now();
        match state.under_way.peek().map(|Reverse((at, ..))| *at) {
            Some(at) if at <= now => {
                if let Some(Reverse((_, _, to, packet))) = state.under_way.pop()
                    && let Some(device) = state.devices.get(&to).cloned()
                {
                    // a device whose queue is full drops the packet, as a network card does
                    parking_lot::MutexGuard::unlocked(&mut state, || drop(device.send(&packet)));
                }
            }
            Some(at) => drop(shared.more.wait_for(&mut state, Duration::from_micros(at - now))),
            None => shared.more.wait(&mut state),
        }
    }
}
