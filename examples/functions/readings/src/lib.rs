//! What the demo's functions have in common: the topics, and how a reading is written.
//!
//! A reading is a decimal number as text. The header `round` numbers the demo's rounds; whatever follows from a
//! reading carries its round on.

use canal_function::{Context, Error, Event, Message};

/// Raw readings, one topic a sensor below it.
pub const SENSORS: &str = "demo/sensor/";
/// Smoothed readings, one topic a sensor below it.
pub const SMOOTHED: &str = "demo/smoothed/";
/// Raw readings of what is to be predicted.
pub const TARGET: &str = "demo/target";
/// Models, as [`Model`] writes them.
pub const MODEL: &str = "demo/model";
/// Predictions of the target.
pub const PREDICTION: &str = "demo/prediction";
/// Absolute errors of the predictions.
pub const ERROR: &str = "demo/error";
/// The header with the number of the round.
pub const ROUND: &str = "round";
/// Sensors that a model uses: the first ones by name.
pub const SENSORS_USED: u32 = 4;

/// The number that an event carries. Refuses what is not a finite one.
pub fn number(event: &Event) -> Result<f64, Error> {
    parse(event.payload_str()?)
}

/// The number that a text is. Refuses what is not a finite one.
pub fn parse(text: &str) -> Result<f64, Error> {
    match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(Error::new(format!("`{text}` is not a reading; send a finite decimal number as text"))),
    }
}

/// What follows from `cause`: the payload, with its key and round.
pub fn follow(cause: &Event, payload: impl Into<Vec<u8>>) -> Message {
    let message = Message::new(payload).with_key(cause.key.clone());
    match cause.header(ROUND) {
        Some(round) => message.with_header(ROUND, round),
        None => message,
    }
}

/// Keeps the newest smoothed value of the event's sensor.
pub fn keep_latest(event: &Event, ctx: &mut Context) -> Result<(), Error> {
    ctx.put(&format!("latest/{}", event.last_level()), number(event)?.to_string())
}

/// The newest smoothed values that were kept, by sensor.
pub fn latest(ctx: &mut Context) -> Result<Vec<(String, f64)>, Error> {
    let rows = ctx.scan("latest/", SENSORS_USED)?;
    rows.into_iter().map(|row| named(row.key.trim_start_matches("latest/"), &row.value)).collect()
}

fn named(name: &str, value: &[u8]) -> Result<(String, f64), Error> {
    Ok((name.to_owned(), parse(std::str::from_utf8(value)?)?))
}

/// Writes values by name as `NAME=VALUE NAME=VALUE …`. Names of topic levels hold no white space.
pub fn write_values(values: &[(String, f64)]) -> String {
    let words: Vec<_> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
    words.join(" ")
}

/// Reads what [`write_values`] wrote.
pub fn read_values(text: &str) -> Result<Vec<(String, f64)>, Error> {
    let word = |word: &str| {
        let (name, value) = word.rsplit_once('=').ok_or_else(|| Error::new(format!("`{word}` is not NAME=VALUE")))?;
        named(name, value.as_bytes())
    };
    text.split_whitespace().map(word).collect()
}

/// The value of this name, 0 without one.
pub fn value_of(values: &[(String, f64)], name: &str) -> f64 {
    values.iter().find(|(have, _)| have == name).map_or(0.0, |(_, value)| *value)
}

/// A linear model of the target. As text: `SAMPLES INTERCEPT NAME=WEIGHT …`.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Samples that it was fitted to.
    pub samples: usize,
    /// What it predicts where all sensors are 0.
    pub intercept: f64,
    /// Weight of each sensor.
    pub weights: Vec<(String, f64)>,
}

impl Model {
    /// The model as text.
    pub fn write(&self) -> String {
        let Self { samples, intercept, weights } = self;
        format!("{samples} {intercept} {}", write_values(weights)).trim_end().to_owned()
    }

    /// Reads what [`Self::write`] wrote.
    pub fn read(text: &str) -> Result<Self, Error> {
        let mut words = text.splitn(3, ' ');
        let (Some(samples), Some(intercept)) = (words.next(), words.next()) else {
            return Err(Error::new(format!("`{text}` is not a model")));
        };
        Ok(Self {
            samples: samples.parse()?,
            intercept: parse(intercept)?,
            weights: read_values(words.next().unwrap_or_default())?,
        })
    }

    /// What it predicts for these values of the sensors.
    pub fn predict(&self, values: &[(String, f64)]) -> f64 {
        self.weights.iter().fold(self.intercept, |sum, (name, weight)| sum + weight * value_of(values, name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn a_model_is_read_as_it_was_written() {
        let weights = vec![("a=b".to_owned(), 0.1 + 0.2), ("c".to_owned(), -1e-300)];
        for weights in [weights, Vec::new()] {
            let model = Model { samples: 8, intercept: -2.5, weights };
            assert_eq!(Model::read(&model.write()).unwrap(), model);
        }
        assert!(Model::read("8").is_err());
        assert!(Model::read("8 x").is_err());
    }

    #[test]
    fn a_reading_is_finite() {
        assert_eq!(parse(" 1.5\n").unwrap(), 1.5);
        for text in ["", "NaN", "inf", "1e999", "1,5"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
