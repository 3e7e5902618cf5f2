//! How answers are shown: aligned columns for people, JSON for programs.
//!
//! What others wrote (payloads, keys, values, labels) never reaches a terminal as it is: control characters and
//! bytes that are no text are escaped. JSON carries bytes that are no text in base 16, with a flag that says so.

use std::fmt::{Debug, Write as _};
use std::io::Write as _;

use serde_json::{Map, Value};

/// Standard output.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    json: bool,
}

impl Out {
    /// Output for programs or for people.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether it is for programs.
    pub fn json(self) -> bool {
        self.json
    }

    /// Prints a record or a document, and flushes it.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn show(self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> std::io::Result<()> {
        let text = if self.json { json().to_string() } else { text() };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// Says something beside the output.
    pub fn note(self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        let text = if self.json { json().to_string() } else { text() };
        // nobody has to listen
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    name: &'static str,
    right: bool,
}

/// A column of text.
pub const fn left(name: &'static str) -> Column {
    Column { name, right: false }
}

/// A column of numbers.
pub const fn right(name: &'static str) -> Column {
    Column { name, right: true }
}

/// Aligned columns with their names above; a line each, without white space at its end.
pub fn table<const N: usize>(columns: [Column; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let header = columns.map(|column| column.name.to_owned());
    let rows: Vec<[String; N]> = std::iter::once(header).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(columns).zip(widths) {
            let aligned = if column.right { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            line.push_str(&aligned);
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Names and values of one thing, a line each.
pub fn fields<const N: usize>(fields: [(&str, String); N]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in fields {
        out.push_str(format!("{name:<width$}  {value}").trim_end());
        out.push('\n');
    }
    out
}

/// Text, or the escaped form of what is none.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || is_invisible(c) {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            // writing to a string does not fail
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Characters that change how those around them are shown: line separators and directions of writing.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A word of a line: printable, without blanks, `-` when it is empty.
pub fn word(bytes: &[u8]) -> String {
    if bytes.is_empty() { "-".to_owned() } else { printable(bytes).replace(' ', "\\x20") }
}

/// Digits of base 16.
pub fn base16(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Adds a field of any bytes, and the flag `NAME_base16` that says whether they had to be written in base 16.
pub fn put_bytes(map: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    let (text, coded) = match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), false),
        Err(_) => (base16(bytes), true),
    };
    map.insert(name.to_owned(), text.into());
    map.insert(format!("{name}_base16"), coded.into());
}

/// The fields of an object; nothing of any other value.
pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The name of an enumeration's value: `NotRun` is `not-run`; of a number that this version does not know, `unknown`.
pub fn name_of<E: Debug + TryFrom<i32>>(number: i32) -> String {
    let Ok(value) = E::try_from(number) else { return "unknown".to_owned() };
    let mut name = String::new();
    for c in format!("{value:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

/// A size, readable.
pub fn size(bytes: u64) -> String {
    let mut unit = "B";
    let mut scaled = bytes as f64;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{scaled:.1} {unit}") }
}

/// A length of time given in microseconds, readable.
pub fn span(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        1_000_000..120_000_000 => format!("{:.1} s", micros as f64 / 1e6),
        _ => format!("{} min", micros / 60_000_000),
    }
}

/// A moment in UTC, given in milliseconds since 1970-01-01; `-` for none.
pub fn moment(ms: u64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let seconds = ms / 1000;
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Year, month and day of a day since 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms",
/// `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["é".to_owned(), "5".to_owned(), String::new()], ["longer".into(), "12345".into(), "x".into()]];
        let text = table([left("NAME"), right("N"), left("LAST")], rows);
        assert_eq!(text, "NAME        N  LAST\né           5\nlonger  12345  x\n");
        assert_eq!(table([left("A"), right("B")], []), "A  B\n");
        assert_eq!(fields([("id", "1".into()), ("topic", String::new())]), "id     1\ntopic\n");
    }

    #[test]
    fn what_others_wrote_can_not_drive_a_terminal() {
        assert_eq!(printable("a\u{1b}[2J\nb\tü\u{202e}".as_bytes()), "a\\u{1b}[2J\\nb\\tü\\u{202e}");
        assert_eq!(printable(b"{\"a\":1}\xff\x00"), "{\"a\":1}\\xff\\u{0}");
        assert_eq!(word(b""), "-");
        assert_eq!(word(b"a b"), "a\\x20b");
    }

    #[test]
    fn json_says_when_bytes_are_no_text() {
        let mut map = Map::new();
        put_bytes(&mut map, "payload", b"21.5");
        put_bytes(&mut map, "key", &[0xff, 1]);
        assert_eq!(
            Value::Object(map).to_string(),
            r#"{"key":"ff01","key_base16":true,"payload":"21.5","payload_base16":false}"#
        );
    }

    #[test]
    fn quantities_read_well() {
        assert_eq!([0, 1023, 1024, 1 << 20, 5 << 30].map(size), ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "5.0 GiB"]);
        assert_eq!([7, 1_500, 2_500_000, 180_000_000].map(span), ["7 µs", "1.5 ms", "2.5 s", "3 min"]);
        assert_eq!(moment(0), "-");
        assert_eq!(moment(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(moment(1_767_225_599_999), "2025-12-31 23:59:59Z");
        assert_eq!(moment(1_767_225_600_000), "2026-01-01 00:00:00Z");
    }

    #[test]
    fn enumerations_have_names() {
        use canal_proto::log::Status;
        assert_eq!(name_of::<Status>(Status::NotRun as i32), "not-run");
        assert_eq!(name_of::<Status>(99), "unknown");
    }
}
