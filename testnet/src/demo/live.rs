//! What this machine measures: `/proc/stat`, `/proc/meminfo`, `/proc/loadavg`, and the first thermal zone that says
//! something.
//!
//! Inputs are how busy the processors are (%), context switches a second, memory in use (%) and interrupts a second;
//! with a thermal zone, the fourth is the load average, and the target is the temperature (°C); without one, the
//! target is the load average.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

/// The machine's sensors.
pub struct Machine {
    thermal: Option<PathBuf>,
    last: Counters,
    taken: Instant,
    /// What the rates were when the counters last moved.
    rates: Rates,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counters {
    busy: u64,
    total: u64,
    switches: u64,
    interrupts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Rates {
    busy: f64,
    switches: f64,
    interrupts: f64,
}

impl Machine {
    /// Looks for what there is.
    ///
    /// # Errors
    /// When `/proc` can't be read: this is not Linux.
    pub fn open() -> Result<Self> {
        let last = counters(&read("/proc/stat")?).context("/proc/stat has another form than expected")?;
        let zones = std::fs::read_dir("/sys/class/thermal").into_iter().flatten().flatten();
        let mut zones: Vec<PathBuf> = zones.map(|zone| zone.path().join("temp")).collect();
        zones.sort();
        let thermal = zones.into_iter().find(|zone| temperature(zone).is_some());
        Ok(Self { thermal, last, taken: Instant::now(), rates: Rates::default() })
    }

    /// The inputs' names, then the target's.
    pub fn names(&self) -> Vec<String> {
        let names = match self.thermal {
            Some(_) => ["cpu-busy", "context-switches", "memory-used", "load", "temperature"],
            None => ["cpu-busy", "context-switches", "memory-used", "interrupts", "load"],
        };
        names.map(str::to_owned).into()
    }

    /// Reads all sensors.
    ///
    /// # Errors
    /// When `/proc` can't be read any more.
    pub fn next(&mut self) -> Result<Vec<f64>> {
        let now = counters(&read("/proc/stat")?).context("/proc/stat has another form than expected")?;
        let elapsed = self.taken.elapsed().as_secs_f64();
        // between two ticks of the kernel's clock nothing has moved: the last rates still hold
        if now.total > self.last.total && elapsed > 0.0 {
            self.rates = Rates {
                busy: 100.0 * (now.busy.saturating_sub(self.last.busy)) as f64 / (now.total - self.last.total) as f64,
                switches: now.switches.saturating_sub(self.last.switches) as f64 / elapsed,
                interrupts: now.interrupts.saturating_sub(self.last.interrupts) as f64 / elapsed,
            };
            self.last = now;
            self.taken = Instant::now();
        }
        let memory = memory_used(&read("/proc/meminfo")?).context("/proc/meminfo has another form than expected")?;
        let load = first_number(&read("/proc/loadavg")?).context("/proc/loadavg has another form than expected")?;
        let Rates { busy, switches, interrupts } = self.rates;
        Ok(match &self.thermal {
            Some(zone) => vec![busy, switches, memory, load, temperature(zone).unwrap_or_default()],
            None => vec![busy, switches, memory, interrupts, load],
        })
    }
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{path} can't be read; use --csv FILE instead"))
}

fn temperature(zone: &PathBuf) -> Option<f64> {
    let millidegrees: f64 = std::fs::read_to_string(zone).ok()?.trim().parse().ok()?;
    Some(millidegrees / 1000.0)
}

fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The counters of `/proc/stat` (proc_stat(5)): time is busy unless it is idle or waits for a disk.
fn counters(text: &str) -> Option<Counters> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    // user nice system idle iowait irq softirq steal; what follows is counted in user and nice already
    let times: Vec<u64> = line("cpu")?.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let total: u64 = times.iter().sum();
    let idle: u64 = times.iter().skip(3).take(2).sum();
    let first = |name| line(name).and_then(|rest: &str| rest.split_whitespace().next()?.parse().ok());
    Some(Counters { busy: total.checked_sub(idle)?, total, switches: first("ctxt")?, interrupts: first("intr")? })
}

/// Memory that is not available, in per cent.
fn memory_used(text: &str) -> Option<f64> {
    let row = |name: &str| first_number(text.lines().find_map(|line| line.strip_prefix(name))?);
    let total = row("MemTotal:")?;
    let available = row("MemAvailable:")?;
    (total > 0.0).then(|| 100.0 * (total - available) / total)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn proc_is_read_as_its_manual_says() {
        let stat = "cpu  10 1 5 80 4 2 3 1 7 0\ncpu0 1 1 1 1\nintr 99 0 1\nctxt 1234\nbtime 5\n";
        assert_eq!(counters(stat), Some(Counters { busy: 22, total: 106, switches: 1234, interrupts: 99 }));
        assert_eq!(counters("cpu 1 2\n"), None);
        assert_eq!(memory_used("MemTotal: 200 kB\nMemFree: 1 kB\nMemAvailable: 50 kB\n"), Some(75.0));
        assert_eq!(first_number("0.42 0.1 0.0 1/2 3"), Some(0.42));
    }

    #[test]
    fn this_machine_gives_five_readings() {
        let mut machine = Machine::open().unwrap();
        let readings = machine.next().unwrap();
        assert_eq!(readings.len(), machine.names().len());
        assert!(readings.iter().all(|reading| reading.is_finite()), "{readings:?}");
        assert!(readings[2] > 0.0 && readings[2] < 100.0, "memory: {readings:?}");
    }
}
