//! Scores: says how far the newest prediction was off when the real reading comes.
//!
//! - Takes `demo/prediction` and `demo/target`; publishes to `demo/error`.
//! - **Count:** nothing for a prediction; exactly one error for each reading of the target that is handled after a
//!   first prediction was, and none before. Once a reading has made one, every later one does. The payload is
//!   `|prediction - reading|`; key and `round` are the reading's, and the header `predicted` has the prediction's
//!   round.
//! - State: `prediction`, the newest one: of two, that of the later round.
//!
//! State lies in the group of the topics that a trigger fires on: they all have to be in one group.

use canal_function::{Context, Error, Event};
use readings::{ERROR, PREDICTION, ROUND, TARGET, follow, number, parse};

canal_function::function!(handle);

fn handle(event: &Event, ctx: &mut Context) -> Result<(), Error> {
    let value = number(event)?;
    let newest = ctx.get_str("prediction")?;
    // "ROUND VALUE"
    let newest = newest.as_deref().and_then(|text| text.split_once(' '));
    if event.topic == PREDICTION {
        let round = round(event);
        let before = newest.and_then(|(round, _)| round.parse().ok()).unwrap_or_default();
        return if round >= before { ctx.put("prediction", format!("{round} {value}")) } else { Ok(()) };
    }
    if event.topic != TARGET {
        return Err(Error::new(format!("trigger this function on `{PREDICTION}` and `{TARGET}`")));
    }
    let Some((round, prediction)) = newest else {
        return Ok(());
    };
    let error = (parse(prediction)? - value).abs();
    ctx.emit(ERROR, follow(event, error.to_string()).with_header("predicted", round))
}

/// The event's round; 0 where it has none.
fn round(event: &Event) -> u64 {
    event.header(ROUND).and_then(|round| std::str::from_utf8(round).ok()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;
    use canal_function::mock::Mock;

    fn event(topic: &str, payload: &str, round: u64) -> Event {
        Event::new(topic, payload).with_header("round", round.to_string())
    }

    #[test]
    fn each_target_after_a_prediction_makes_one_error() {
        let mut mock = Mock::default();
        mock.run(handle, &event("demo/target", "1", 1)).unwrap();
        assert!(mock.emitted.is_empty());
        mock.run(handle, &event("demo/prediction", "10", 10)).unwrap();
        mock.run(handle, &event("demo/prediction", "99", 9)).unwrap();
        mock.run(handle, &event("demo/target", "12.5", 11)).unwrap();
        mock.run(handle, &event("demo/target", "7", 12)).unwrap();
        let payloads: Vec<_> = mock.emitted.iter().map(|(_, message)| message.payload.as_slice()).collect();
        assert_eq!(payloads, [b"2.5".as_slice(), b"3"]);
        let (topic, message) = &mock.emitted[0];
        assert_eq!(topic, ERROR);
        let headers: Vec<_> = message.headers.iter().map(|h| (h.name.as_str(), h.value.as_slice())).collect();
        assert_eq!(headers, [("round", b"11".as_slice()), ("predicted", b"10")]);
    }
}
