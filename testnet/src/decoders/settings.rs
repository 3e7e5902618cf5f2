//! What people write: scenarios of a testnet, and a peer's configuration.

use std::path::PathBuf;

use canal_node::config::{Config, Flags};

use crate::Scenario;

/// A scenario file.
pub fn scenarios(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(scenario) = text.parse::<Scenario>() else { return false };
    assert!(scenario.check().is_ok());
    let peers = scenario.expanded();
    assert!((1..=64).contains(&peers.len()), "{} peers", peers.len());
    for (from, to, quality) in scenario.linked() {
        assert!(from < peers.len() && to < peers.len() && from != to && quality.check().is_ok());
    }
    true
}

/// A configuration file, and behind a zero byte the environment, a variable a line.
pub fn configurations(data: &[u8]) -> bool {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let file = parts.next().unwrap_or_default();
    let environment = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let Ok(dir) = tempfile::tempdir() else { return false };
    let path = dir.path().join("canal.toml");
    if std::fs::write(&path, file).is_err() {
        return false;
    }
    // where the file is has to be said by somebody who is not under test
    let env = |name: &str| match name {
        "CANAL_CONFIG" => None,
        name => {
            let mut lines = environment.lines().filter_map(|line| line.split_once('='));
            lines.find(|(variable, _)| *variable == name).map(|(_, value)| value.to_owned())
        }
    };
    let load = || Config::load(Flags { config: Some(path.clone()), ..Flags::default() }, &env);
    let config = match load() {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    assert!((5..=10_000).contains(&config.tick_ms) && config.log_budget_mb >= 8 && config.seal_kb >= 16);
    assert!(config.replace_after.as_secs() >= 1 && config.labels.len() <= 64);
    assert!(config.data != PathBuf::new() || file.windows(4).any(|word| word == b"data") || !environment.is_empty());
    let names: std::collections::BTreeSet<_> = config.origin.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names.len(), config.origin.len());
    assert!(load().is_ok_and(|again| again.origin == config.origin), "the same file means something else");
    true
}
