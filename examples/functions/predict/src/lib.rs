//! Predicts the target: applies the newest model to the newest smoothed values.
//!
//! - Takes `demo/smoothed/NAME` and `demo/model`; publishes to `demo/prediction`.
//! - **Count:** nothing for a smoothed reading; exactly one prediction for each model, with the same key and `round`.
//!   The round is that of the reading that made the model: what is predicted is a later one.
//! - State: `latest/NAME`, the newest smoothed value of a sensor; `model`, the newest model, for people to see.
//!
//! State lies in the group of the topics that a trigger fires on: they all have to be in one group.

use canal_function::{Context, Error, Event};
use readings::{MODEL, Model, PREDICTION, SMOOTHED, follow, keep_latest, latest, parse};

canal_function::function!(handle);

fn handle(event: &Event, ctx: &mut Context) -> Result<(), Error> {
    if event.topic.starts_with(SMOOTHED) {
        return keep_latest(event, ctx);
    }
    if event.topic != MODEL {
        return Err(Error::new(format!("trigger this function on `{SMOOTHED}+` and `{MODEL}`")));
    }
    let text = event.payload_str()?;
    ctx.put("model", text)?;
    let prediction = Model::read(text)?.predict(&latest(ctx)?).to_string();
    parse(&prediction)?;
    ctx.emit(PREDICTION, follow(event, prediction))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;
    use canal_function::mock::Mock;

    #[test]
    fn each_model_makes_one_prediction() {
        let mut mock = Mock::default();
        mock.run(handle, &Event::new("demo/smoothed/a", "2")).unwrap();
        mock.run(handle, &Event::new("demo/smoothed/b", "10")).unwrap();
        mock.run(handle, &Event::new("demo/smoothed/a", "4")).unwrap();
        assert!(mock.emitted.is_empty());
        // the sensor c has said nothing yet
        let model = Event::new("demo/model", "8 1 a=0.5 b=-1 c=100").with_header("round", "7");
        mock.run(handle, &model).unwrap();
        mock.run(handle, &model).unwrap();
        assert_eq!(mock.emitted.len(), 2);
        let (topic, message) = &mock.emitted[0];
        assert_eq!((topic.as_str(), message.payload.as_slice()), (PREDICTION, b"-7".as_slice()));
        assert_eq!(message.headers[0].value, b"7");
        assert!(mock.run(handle, &Event::new("demo/model", "junk")).is_err());
    }
}
