//! Readings from a CSV file with a header.
//!
//! A column is a sensor if each of its cells, in the rows that are used, is a finite number or empty, and not all are
//! empty. The first four of these are inputs and the fifth is the target; with fewer than five, the last one is the
//! target. Two are the least. An empty cell repeats the reading before it (0 at the beginning).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::readings::MAX_INPUTS;

/// The readings of a file.
#[derive(Debug)]
pub struct Table {
    names: Vec<String>,
    /// One vector a column.
    columns: Vec<Vec<f64>>,
    next: usize,
}

impl Table {
    /// Reads a file, at most so many rows.
    ///
    /// # Errors
    /// When it can't be read, or has fewer than two numeric columns.
    pub fn open(path: &Path, max_rows: usize) -> Result<Self> {
        let file = std::fs::File::open(path).with_context(|| format!("{} can't be opened", path.display()))?;
        Self::read(file, max_rows).with_context(|| format!("{} can't be used", path.display()))
    }

    fn read(input: impl std::io::Read, max_rows: usize) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
        let header = reader.headers()?.clone();
        // a column stands as long as all its cells are numbers
        let mut columns: Vec<Option<Vec<f64>>> = vec![Some(Vec::new()); header.len()];
        let mut filled = vec![false; header.len()];
        for record in reader.records().take(max_rows) {
            let record = record?;
            for ((cell, column), filled) in record.iter().zip(&mut columns).zip(&mut filled) {
                let Some(readings) = column else { continue };
                let before = readings.last().copied().unwrap_or_default();
                match cell.parse::<f64>() {
                    _ if cell.is_empty() => readings.push(before),
                    Ok(number) if number.is_finite() => {
                        *filled = true;
                        readings.push(number);
                    }
                    _ => *column = None,
                }
            }
        }
        let mut taken = BTreeSet::new();
        let mut table = Self { names: Vec::new(), columns: Vec::new(), next: 0 };
        let numeric = header.iter().zip(columns).zip(filled).filter(|(_, filled)| *filled);
        for ((name, column), _) in numeric {
            if let Some(column) = column.filter(|_| table.names.len() <= MAX_INPUTS) {
                table.names.push(level(name, &mut taken));
                table.columns.push(column);
            }
        }
        if table.names.len() < 2 {
            bail!("it has {} columns of numbers; at least 2 are needed: an input and a target", table.names.len());
        }
        Ok(table)
    }

    /// The inputs' names, then the target's.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Rows there are.
    pub fn rounds(&self) -> u64 {
        self.columns.first().map_or(0, |column| column.len() as u64)
    }

    /// The next row; behind the last, the first again.
    pub fn next(&mut self) -> Vec<f64> {
        let row = self.columns.iter().filter_map(|column| column.get(self.next).copied()).collect();
        self.next = if self.next as u64 + 1 < self.rounds() { self.next + 1 } else { 0 };
        row
    }

    /// For people.
    pub fn describe(&self) -> String {
        let (target, inputs) = self
            .names
            .split_last()
            .map_or((String::new(), String::new()), |(target, inputs)| (target.clone(), inputs.join(", ")));
        format!("{} rows of {inputs}; target {target}", self.rounds())
    }
}

/// A column's name as a level of a topic: lower-case letters, digits and `-`; different from those taken.
fn level(name: &str, taken: &mut BTreeSet<String>) -> String {
    let mut plain = String::new();
    for c in name.chars().flat_map(char::to_lowercase) {
        match c {
            c if c.is_ascii_alphanumeric() => plain.push(c),
            _ if plain.is_empty() || plain.ends_with('-') => {}
            _ => plain.push('-'),
        }
    }
    let plain = match plain.trim_end_matches('-') {
        "" => "column".to_owned(),
        plain => plain.chars().take(40).collect(),
    };
    let mut candidate = plain.clone();
    let mut number = 1;
    while !taken.insert(candidate.clone()) {
        number += 1;
        candidate = format!("{plain}-{number}");
    }
    candidate
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn read(text: &str) -> Result<Table> {
        Table::read(text.as_bytes(), 100)
    }

    #[test]
    fn numeric_columns_are_sensors_and_empty_cells_repeat() {
        let mut table = read("date,Temp (°C),temp c,note,rain\n2020-01-01, 1.5 ,2,x,\n2020-01-02,,3,,0.5\n").unwrap();
        assert_eq!(table.names(), ["temp-c", "temp-c-2", "rain"]);
        assert_eq!(table.describe(), "2 rows of temp-c, temp-c-2; target rain");
        assert_eq!([table.next(), table.next(), table.next()], [[1.5, 2.0, 0.0], [1.5, 3.0, 0.5], [1.5, 2.0, 0.0]]);
    }

    #[test]
    fn the_fifth_is_the_target_and_the_rest_is_left_out() {
        let table = read("a,b,c,d,e,f\n1,2,3,4,5,6\n").unwrap();
        assert_eq!(table.names(), ["a", "b", "c", "d", "e"]);
        assert_eq!(Table::read("a,b\n1,2\n3,4\n5,6\n".as_bytes(), 2).unwrap().rounds(), 2);
    }

    #[test]
    fn a_file_without_two_numeric_columns_is_refused() {
        assert!(read("a,b\n1,x\n").unwrap_err().to_string().contains("1 columns of numbers"));
        assert!(read("a,b\n1,NaN\n").is_err());
        assert!(read("").is_err());
        assert!(read("a,b\n1\n").is_err());
    }
}
