//! Trains: fits a linear regression of the target on the smoothed sensors, over the last 72 readings of the target.
//!
//! - Takes `demo/smoothed/NAME` and `demo/target`; publishes to `demo/model`.
//! - **Count:** nothing for a smoothed reading. Each reading of the target adds a sample, and from the eighth on
//!   each makes exactly one model: `n` readings make `max(0, n - 7)` models, with the same key and `round`. A sensor
//!   that has said nothing yet counts as 0, so that the count depends on the target alone.
//! - State: `latest/NAME`, the newest smoothed value of a sensor; `count`, the samples so far; `sample/NN`, the last
//!   72 samples in a ring, each the target and then the sensors.
//!
//! State lies in the group of the topics that a trigger fires on: they all have to be in one group.

use canal_function::{Context, Error, Event};
use readings::{MODEL, Model, SMOOTHED, TARGET, follow, keep_latest, latest, number, parse, read_values, value_of};

mod fit;

/// Samples in the sliding window.
const WINDOW: u64 = 72;
/// With fewer samples than this no model is made: it would only repeat them.
const ENOUGH: usize = 8;

canal_function::function!(handle);

fn handle(event: &Event, ctx: &mut Context) -> Result<(), Error> {
    if event.topic.starts_with(SMOOTHED) {
        return keep_latest(event, ctx);
    }
    if event.topic != TARGET {
        return Err(Error::new(format!("trigger this function on `{SMOOTHED}+` and `{TARGET}`")));
    }
    let sensors = latest(ctx)?;
    let count: u64 = ctx.get_str("count")?.map_or(Ok(0), |text| text.parse())?;
    let sample = format!("{} {}", number(event)?, readings::write_values(&sensors));
    ctx.put(&format!("sample/{:02}", count % WINDOW), sample)?;
    ctx.put("count", (count + 1).to_string())?;

    let rows = ctx.scan("sample/", WINDOW as u32)?;
    let samples = rows.iter().map(|row| read_sample(&row.value)).collect::<Result<Vec<_>, _>>()?;
    if samples.len() < ENOUGH {
        return Ok(());
    }
    let model = train(&sensors, &samples);
    ctx.emit(MODEL, follow(event, model.write()))
}

type Sample = (f64, Vec<(String, f64)>);

fn read_sample(value: &[u8]) -> Result<Sample, Error> {
    let text = std::str::from_utf8(value)?;
    let (target, sensors) = text.split_once(' ').unwrap_or((text, ""));
    Ok((parse(target)?, read_values(sensors)?))
}

fn train(sensors: &[(String, f64)], samples: &[Sample]) -> Model {
    let names: Vec<_> = sensors.iter().map(|(name, _)| name).collect();
    let inputs: Vec<Vec<f64>> =
        samples.iter().map(|(_, values)| names.iter().map(|name| value_of(values, name)).collect()).collect();
    let targets: Vec<f64> = samples.iter().map(|(target, _)| *target).collect();
    let (intercept, weights) = fit::ridge(&inputs, &targets);
    let weights = names.into_iter().cloned().zip(weights).collect();
    Model { samples: samples.len(), intercept, weights }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;
    use canal_function::mock::Mock;

    /// A round: four sensors, then a target that follows from them.
    fn round(mock: &mut Mock, n: u32) -> f64 {
        let values = [f64::from(n % 7), f64::from(n * n % 11), f64::from(n % 3) * 1e9, f64::from(n % 5) / 1e3];
        for (name, value) in ["a", "b", "c", "d"].iter().zip(values) {
            mock.run(handle, &Event::new(format!("demo/smoothed/{name}"), value.to_string())).unwrap();
        }
        let target = 3.0 + 2.0 * values[0] - values[1] + 1e-9 * values[2] + 500.0 * values[3];
        let event = Event::new("demo/target", target.to_string()).with_header("round", n.to_string());
        mock.run(handle, &event).unwrap();
        target
    }

    #[test]
    fn from_the_eighth_on_each_target_makes_one_model() {
        let mut mock = Mock::default();
        for n in 0..100 {
            let target = round(&mut mock, n);
            assert_eq!(mock.emitted.len(), (n as usize + 1).saturating_sub(7));
            if n >= 30 {
                let (topic, message) = mock.emitted.last().unwrap();
                assert_eq!((topic.as_str(), message.headers[0].value.as_slice()), (MODEL, n.to_string().as_bytes()));
                let model = Model::read(std::str::from_utf8(&message.payload).unwrap()).unwrap();
                let sensors: Vec<_> = ["a", "b", "c", "d"]
                    .iter()
                    .map(|name| {
                        (
                            name.to_string(),
                            parse(std::str::from_utf8(&mock.rows[&format!("latest/{name}")]).unwrap()).unwrap(),
                        )
                    })
                    .collect();
                assert!((model.predict(&sensors) - target).abs() < 0.2, "{model:?} for {target}");
                assert_eq!(model.samples, (n as usize + 1).min(72));
            }
        }
        assert_eq!(mock.rows.keys().filter(|key| key.starts_with("sample/")).count(), 72);
    }

    #[test]
    fn targets_without_sensors_count_as_well() {
        let mut mock = Mock::default();
        for n in 0..9 {
            mock.run(handle, &Event::new("demo/target", n.to_string())).unwrap();
        }
        assert_eq!(mock.emitted.len(), 2);
        assert_eq!(mock.emitted[1].1.payload, b"9 4");
    }
}
