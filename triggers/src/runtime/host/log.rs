//! `log`: lines for the activation's record.

use canal_proto::limits::MAX_ACTIVATION_LOG;

use super::Level;

/// Stands for all lines that found no room.
const FULL: &str = "warn: the log is full; further lines are dropped";

/// The lines of one run.
#[derive(Default)]
pub struct Log {
    lines: Vec<String>,
    bytes: usize,
    full: bool,
}

impl Log {
    /// Adds a line, `level: text`. From the first line that finds no room on, all are dropped, and one says so.
    pub fn line(&mut self, level: Level, text: &str) {
        if self.full {
            return;
        }
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        let bytes = self.bytes + level.len() + 2 + text.len();
        if bytes > MAX_ACTIVATION_LOG - FULL.len() {
            self.full = true;
            self.lines.push(FULL.to_owned());
        } else {
            self.bytes = bytes;
            self.lines.push(format!("{level}: {text}"));
        }
    }

    /// The lines.
    pub fn finish(self) -> Vec<String> {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_dropped_and_said_once() {
        let mut log = Log::default();
        log.line(Level::Info, "first");
        log.line(Level::Error, &"x".repeat(MAX_ACTIVATION_LOG));
        log.line(Level::Debug, "late");
        assert_eq!(log.finish(), ["info: first", FULL]);

        let mut log = Log::default();
        for _ in 0..MAX_ACTIVATION_LOG {
            log.line(Level::Warn, "");
        }
        let lines = log.finish();
        assert!(lines.iter().map(String::len).sum::<usize>() <= MAX_ACTIVATION_LOG);
        assert_eq!(lines.iter().filter(|line| *line == FULL).count(), 1);
    }
}
