//! Waits for conditions, never for time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Error;

/// Between two looks at a condition: short against everything that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Asks again and again until the answer is `Ok`, and returns it; after the deadline, fails with the last refusal.
/// One question that takes longer than the time left is given up too.
///
/// # Errors
/// [`Error::TooLate`] with `what` and why it did not hold.
pub async fn until<T, F>(what: &str, deadline: Duration, mut condition: F) -> Result<T, Error>
where
    F: AsyncFnMut() -> Result<T, String>,
{
    let end = Instant::now() + deadline;
    let mut last = String::from("never answered");
    loop {
        match tokio::time::timeout_at(end, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(why)) => last = why,
            Err(_) => {}
        }
        if Instant::now() + LOOK_EVERY >= end {
            return Err(Error::TooLate { what: format!("{what}: {last}"), seconds: deadline.as_secs() });
        }
        sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    #[tokio::test]
    async fn a_condition_is_asked_until_it_holds_and_no_longer_than_the_deadline() {
        let mut asked = 0;
        let held = until("three", Duration::from_secs(5), async || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err(format!("{asked}")) }
        });
        assert_eq!(held.await.unwrap(), 3);
        let never = until("never", Duration::from_millis(120), async || Err::<(), _>("no".to_owned())).await;
        assert_eq!(never.unwrap_err().to_string(), "gave up after 0 s: never: no");
        let stuck =
            until("stuck", Duration::from_millis(60), async || std::future::pending::<Result<(), String>>().await);
        assert!(stuck.await.is_err());
    }
}
