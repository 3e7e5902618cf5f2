//! The file of a publisher's queue on disk.

use std::sync::OnceLock;
use std::time::Duration;

use canal_sdk::queue::{Queue, QueueOptions};
use canal_sdk::{Code, Event};

use super::bytes::Parts;

/// The file in a queue's directory.
const FILE: &str = "queue.redb";
/// Opening a file of a few megabytes.
const TIME: Duration = Duration::from_secs(30);
/// Topics and events of the queue whose file is damaged.
const TOPICS: [&str; 2] = ["plant/a", "plant/b"];
const EVENTS: u64 = 20;

/// The file of a sound queue; made once.
fn sound() -> Option<&'static Vec<u8>> {
    static FILE_OF: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().ok()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(async {
            let queue = Queue::open(dir.path(), QueueOptions::default()).ok()?;
            for topic in TOPICS {
                let events = (0..EVENTS).map(|n| Event::new(n.to_string())).collect();
                queue.put_all(topic, events).await.ok()?;
            }
            Some(())
        })?;
        std::fs::read(dir.path().join(FILE)).ok()
    };
    FILE_OF.get_or_init(make).as_ref()
}

/// Damage to a sound queue's file: a first byte of 255 cuts it at a place (three bytes); else parts, each with its length
/// before it, whose first three bytes say where the rest of it is written. What opens has its events, counted as they were
/// put in; what does not is refused with what to do.
pub fn queues(data: &[u8]) -> bool {
    let Some(sound) = sound() else { return false };
    let Ok(dir) = tempfile::tempdir() else { return false };
    let mut file = sound.clone();
    let mut parts = Parts(data);
    let place = |parts: &mut Parts<'_>| {
        (0..3).fold(0usize, |place, at| place | usize::from(parts.byte()) << (8 * at)) % sound.len()
    };
    if data.first() == Some(&255) {
        parts.byte();
        file.truncate(place(&mut parts));
    } else {
        while let Some(part) = parts.part() {
            let mut part = Parts(part);
            let at = place(&mut part);
            file.iter_mut().skip(at).zip(part.0).for_each(|(to, from)| *to = *from);
        }
    }
    if std::fs::write(dir.path().join(FILE), &file).is_err() {
        return false;
    }
    let begun = std::time::Instant::now();
    let opened = Queue::open(dir.path(), QueueOptions::default());
    assert!(begun.elapsed() < TIME, "it took {:?}", begun.elapsed());
    match opened {
        Ok(queue) => {
            // a queue that the program made itself, of any content, is sound: only a file with that content is judged
            let waiting = queue.waiting();
            if file == *sound {
                let counted = waiting.iter().map(|waiting| (waiting.topic.as_str(), waiting.events));
                assert!(counted.eq(TOPICS.map(|topic| (topic, EVENTS))), "a sound queue has lost events");
            }
            true
        }
        Err(error) => {
            assert!(matches!(error.code, Code::Internal | Code::Incompatible), "{error}");
            assert!(!error.message.is_empty() && file != *sound);
            false
        }
    }
}
