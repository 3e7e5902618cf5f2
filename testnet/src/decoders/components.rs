//! Components of functions.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use canal_proto::ContentHash;
use canal_triggers::runtime::{Options, Runtime};

/// A component of so many bytes or fewer is judged within [`TIME`]: compiling takes time by its length.
const SMALL: usize = 64 << 10;
/// A hundred times what the largest of the corpus takes, on a busy machine.
const TIME: Duration = Duration::from_secs(20);

fn runtime() -> Option<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let options = Options { threads: 1, memory: 256 << 20, cached: 2 };
    RUNTIME.get_or_init(|| Runtime::start(options).ok()).as_ref()
}

/// A component, or what is said to be one: what is checked can be loaded, under its own hash only, and in time.
pub fn components(data: &[u8]) -> bool {
    let Some(runtime) = runtime() else { return false };
    let begun = Instant::now();
    let checked = runtime.check(data);
    assert!(data.len() > SMALL || begun.elapsed() < TIME, "it took {:?}", begun.elapsed());
    let hash = ContentHash::of(data);
    assert_eq!(runtime.load(hash, data).is_ok(), checked.is_ok());
    assert_eq!(runtime.is_loaded(&hash), checked.is_ok());
    assert!(runtime.load(ContentHash([0; 32]), data).is_err());
    checked.is_ok()
}
