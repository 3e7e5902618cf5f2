//! Smooths sensors: publishes the mean of a sensor's last five readings.
//!
//! - Takes `demo/sensor/NAME`; publishes to `demo/smoothed/NAME`.
//! - **Count:** exactly one event for each event taken, with the same key and `round`. The first ones are means of
//!   fewer than five readings.
//! - State: a row for each sensor, `window/NAME`: its last readings, oldest first.

use canal_function::{Context, Error, Event};
use readings::{SENSORS, SMOOTHED, follow, number, parse};

/// Readings in a mean.
const WINDOW: usize = 5;

canal_function::function!(handle);

fn handle(event: &Event, ctx: &mut Context) -> Result<(), Error> {
    let Some(name) = event.topic.strip_prefix(SENSORS) else {
        return Err(Error::new(format!("`{}` is not a sensor; trigger this function on `{SENSORS}+`", event.topic)));
    };
    let row = format!("window/{name}");
    let text = ctx.get_str(&row)?.unwrap_or_default();
    let mut window = text.split_whitespace().map(parse).collect::<Result<Vec<_>, _>>()?;
    window.push(number(event)?);
    window.drain(..window.len().saturating_sub(WINDOW));
    let words: Vec<_> = window.iter().map(f64::to_string).collect();
    ctx.put(&row, words.join(" "))?;
    // divided before it is summed, so that the mean of finite readings is finite
    let mean: f64 = window.iter().map(|reading| reading / window.len() as f64).sum();
    ctx.emit(&format!("{SMOOTHED}{name}"), follow(event, mean.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;
    use canal_function::mock::Mock;

    #[test]
    fn each_reading_makes_one_mean_of_the_last_five() {
        let mut mock = Mock::default();
        for n in 1..=8 {
            let event = Event::new("demo/sensor/cpu", n.to_string()).with_header("round", n.to_string());
            mock.run(handle, &event).unwrap();
            mock.run(handle, &Event::new("demo/sensor/mem", "100")).unwrap();
        }
        let of = |topic: &str| mock.emitted.iter().filter(|(to, _)| to == topic).map(|(_, m)| m).collect::<Vec<_>>();
        let means: Vec<f64> =
            of("demo/smoothed/cpu").iter().map(|m| parse(std::str::from_utf8(&m.payload).unwrap()).unwrap()).collect();
        for (mean, want) in means.iter().zip([1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0]) {
            assert!((mean - want).abs() < 1e-12, "{means:?}");
        }
        assert_eq!(of("demo/smoothed/mem").len(), 8);
        let last = of("demo/smoothed/cpu")[7];
        assert_eq!(last.headers[0].value, b"8");
        assert_eq!(mock.rows["window/cpu"], b"4 5 6 7 8");
    }

    #[test]
    fn what_is_not_a_reading_is_refused() {
        let mut mock = Mock::default();
        assert!(mock.run(handle, &Event::new("demo/sensor/cpu", "high")).is_err());
        assert!(mock.run(handle, &Event::new("elsewhere", "1")).is_err());
        assert!(mock.rows.is_empty());
    }
}
