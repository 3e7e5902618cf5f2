//! Configuration: flag over environment (`CANAL_…`) over file over default, and where each value came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use canal_proto::name::check_plain;
use canal_proto::peer::Tier;
use canal_topology::known::{MAX_LABELS, MAX_TEXT};
use serde::Deserialize;

/// Port of a peer unless said otherwise.
pub const DEFAULT_PORT: u16 = 4040;

/// How long a peer is waited for before what it held is replaced: a restart with an update is over by then.
const REPLACE_AFTER: Span = Span(Duration::from_secs(300));
/// Bytes of all labels: room is left for addresses in what a description may have.
const MAX_LABEL_BYTES: usize = MAX_TEXT - 1024;
/// A budget below this would seal segments all the time: some of raft-engine's files.
const MIN_LOG_BUDGET_MB: u64 = 8;
/// The shortest and the longest span.
const SPANS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(365 * 86_400);

/// A length of time as people write it: `90s`, `5m`, `2h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
        let unit = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
        let span = unit
            .and_then(|(number, seconds)| number.parse::<u64>().ok()?.checked_mul(seconds))
            .map(Duration::from_secs)
            .filter(|span| SPANS.contains(span));
        span.map(Self).ok_or_else(|| format!("`{text}` is not a time from 1s to 365d; write it as 90s, 5m, 2h or 7d"))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        match [(86_400, "d"), (3600, "h"), (60, "m")].into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", seconds / unit),
            None => write!(f, "{seconds}s"),
        }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// The configuration file.
    File,
    /// The environment.
    Env,
    /// The command line.
    Flag,
}

/// What flags say, as written. Absent: not given.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Directory for everything that the peer keeps [default: ~/.local/share/canal]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address to listen at: IP:PORT or a multiaddress; port 0 picks a free one [default: 127.0.0.1:4040]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Address of a peer of the mesh to join
    #[arg(long, value_name = "MULTIADDR")]
    pub join: Vec<String>,
    /// Name of the mesh [default: canal]
    #[arg(long, value_name = "NAME")]
    pub mesh: Option<String>,
    /// Tier: iot, edge or cloud [default: edge]
    #[arg(long, value_name = "TIER")]
    pub tier: Option<String>,
    /// Site: the failure and latency domain [default: default]
    #[arg(long, value_name = "NAME")]
    pub site: Option<String>,
    /// Label: what this peer offers
    #[arg(long, value_name = "K=V")]
    pub label: Vec<String>,
    /// Don't look for peers on the local network
    #[arg(long)]
    pub no_mdns: bool,
    /// A peer that was silent for this long is gone for good: what it held is replaced; as 90s, 5m or 2h [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub replace_after: Option<Span>,
    /// Space for the logs of all groups, in MiB; above it the longest are turned into segments early [default: 256]
    #[arg(long, value_name = "MIB")]
    pub log_budget_mb: Option<u64>,
    /// Bytes of a group's events, in KiB, that make a segment; for devices with little memory [default: 16384]
    #[arg(long, value_name = "KIB")]
    pub seal_kb: Option<u64>,
    /// Configuration file (TOML) [default: canal.toml in the data directory, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    data: Option<PathBuf>,
    listen: Option<Vec<String>>,
    join: Option<Vec<String>>,
    mesh: Option<String>,
    tier: Option<String>,
    site: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    mdns: Option<bool>,
    tick_ms: Option<u64>,
    state_cache_mb: Option<u64>,
    function_threads: Option<u64>,
    replace_after: Option<Span>,
    log_budget_mb: Option<u64>,
    seal_kb: Option<u64>,
    log: Option<String>,
}

/// What is in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory for everything that the peer keeps.
    pub data: PathBuf,
    /// Addresses to listen at.
    pub listen: Vec<String>,
    /// Addresses of peers to join.
    pub join: Vec<String>,
    /// Name of the mesh.
    pub mesh: String,
    /// Tier.
    pub tier: Tier,
    /// Site.
    pub site: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// Length of a Raft tick in milliseconds; a leader that is silent for 11 of them is replaced.
    pub tick_ms: u64,
    /// Memory for reading applied state, in MiB.
    pub state_cache_mb: u64,
    /// Threads that run functions; 0: one for every two processors, at least two.
    pub function_threads: u64,
    /// A peer that was silent for this long is gone for good.
    pub replace_after: Duration,
    /// Space for the logs of all groups, in MiB.
    pub log_budget_mb: u64,
    /// Bytes of a group's events that make a segment, in KiB.
    pub seal_kb: u64,
    /// What is logged: `info`, `debug`, or a filter such as `canal_node=debug,warn`.
    pub log: String,
    /// Name, value and source of each setting, for `canal config`.
    pub origin: Vec<(&'static str, String, Source)>,
}

/// Looks values up by precedence, and remembers where they came from.
struct Resolver<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    origin: Vec<(&'static str, String, Source)>,
}

impl Resolver<'_> {
    fn one<T: FromStr + ToString + Clone>(
        &mut self,
        name: &'static str,
        flag: Option<T>,
        file: Option<T>,
        default: T,
    ) -> Result<T>
    where
        T::Err: std::fmt::Display,
    {
        let variable = format!("CANAL_{}", name.to_uppercase());
        let env = match (self.env)(&variable) {
            Some(text) => Some(text.parse::<T>().map_err(|e| anyhow!("{variable}=`{text}`: {e}"))?),
            None => None,
        };
        let (value, source) = match (flag, env, file) {
            (Some(value), _, _) => (value, Source::Flag),
            (None, Some(value), _) => (value, Source::Env),
            (None, None, Some(value)) => (value, Source::File),
            (None, None, None) => (default, Source::Default),
        };
        self.origin.push((name, value.to_string(), source));
        Ok(value)
    }

    fn list(
        &mut self,
        name: &'static str,
        flag: Vec<String>,
        file: Option<Vec<String>>,
        default: Vec<String>,
    ) -> Vec<String> {
        let env = (self.env)(&format!("CANAL_{}", name.to_uppercase()));
        let split =
            |text: String| text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
        let (value, source): (Vec<String>, _) = match (flag, env, file) {
            (flag, _, _) if !flag.is_empty() => (flag, Source::Flag),
            (_, Some(text), _) => (split(text), Source::Env),
            (_, None, Some(value)) => (value, Source::File),
            (_, None, None) => (default, Source::Default),
        };
        self.origin.push((name, value.join(", "), source));
        value
    }
}

/// The data directory when nobody names one.
pub fn default_data(env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match (env("XDG_DATA_HOME"), env("HOME")) {
        (Some(dir), _) if !dir.is_empty() => Path::new(&dir).join("canal"),
        (_, Some(home)) if !home.is_empty() => Path::new(&home).join(".local/share/canal"),
        _ => PathBuf::from("canal-data"),
    }
}

struct PathText(PathBuf);

impl Config {
    /// Puts flags, environment and file together.
    ///
    /// # Errors
    /// When the file can't be read or a value makes no sense; the text names it.
    pub fn load(flags: Flags, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let named = flags.config.clone().or_else(|| env("CANAL_CONFIG").map(PathBuf::from));
        let early_data =
            flags.data.clone().or_else(|| env("CANAL_DATA").map(PathBuf::from)).unwrap_or_else(|| default_data(env));
        let path = named.clone().unwrap_or_else(|| early_data.join("canal.toml"));
        let file: FileConfig = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("the configuration file {}", path.display()))?,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => FileConfig::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("the configuration file {} can't be read", path.display()));
            }
        };
        let mut resolver = Resolver { env, origin: Vec::new() };
        let data =
            resolver.one("data", flags.data.map(PathText), file.data.map(PathText), PathText(default_data(env)))?.0;
        let listen = resolver.list("listen", flags.listen, file.listen, vec![format!("127.0.0.1:{DEFAULT_PORT}")]);
        let join = resolver.list("join", flags.join, file.join, Vec::new());
        let mesh = resolver.one("mesh", flags.mesh, file.mesh, "canal".to_owned())?;
        check_plain(&mesh).with_context(|| format!("the mesh's name `{mesh}`"))?;
        let tier = resolver.one("tier", flags.tier, file.tier, "edge".to_owned())?;
        let tier = tier.parse::<Tier>().map_err(|e| anyhow!(e))?;
        let site = resolver.one("site", flags.site, file.site, "default".to_owned())?;
        check_plain(&site).with_context(|| format!("the site's name `{site}`"))?;
        let file_labels = file.labels.map(|map| map.into_iter().map(|(k, v)| format!("{k}={v}")).collect());
        let mut labels = BTreeMap::new();
        for label in resolver.list("label", flags.label, file_labels, Vec::new()) {
            let Some((key, value)) = label.split_once('=') else { bail!("the label `{label}` is not of the form K=V") };
            labels.insert(key.to_owned(), value.to_owned());
        }
        // all of a description travels with every exchange between peers
        let texts: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if labels.len() > MAX_LABELS || texts > MAX_LABEL_BYTES {
            bail!("a peer has at most {MAX_LABELS} labels with {MAX_LABEL_BYTES} bytes together; give it fewer");
        }
        let mdns = resolver.one("mdns", flags.no_mdns.then_some(false), file.mdns, true)?;
        let tick_ms = resolver.one("tick_ms", None, file.tick_ms, 50)?.clamp(5, 10_000);
        let state_cache_mb = resolver.one("state_cache_mb", None, file.state_cache_mb, 32)?.clamp(1, 1 << 20);
        let function_threads = resolver.one("function_threads", None, file.function_threads, 0)?;
        let replace_after = resolver.one("replace_after", flags.replace_after, file.replace_after, REPLACE_AFTER)?.0;
        let log_budget_mb = resolver.one("log_budget_mb", flags.log_budget_mb, file.log_budget_mb, 256)?;
        let log_budget_mb = log_budget_mb.clamp(MIN_LOG_BUDGET_MB, 1 << 20);
        let seal_kb = resolver.one("seal_kb", flags.seal_kb, file.seal_kb, 16 << 10)?.clamp(16, 1 << 20);
        let log = resolver.one("log", None, file.log, "info".to_owned())?;
        let origin = resolver.origin;
        Ok(Self {
            data,
            listen,
            join,
            mesh,
            tier,
            site,
            labels,
            mdns,
            tick_ms,
            state_cache_mb,
            function_threads,
            replace_after,
            log_budget_mb,
            seal_kb,
            log,
            origin,
        })
    }
}

impl Clone for PathText {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl FromStr for PathText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(PathBuf::from(text)))
    }
}

impl std::fmt::Display for PathText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn source(config: &Config, name: &str) -> (String, Source) {
        config.origin.iter().find(|(n, ..)| *n == name).map(|(_, v, s)| (v.clone(), *s)).unwrap()
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("canal.toml");
        std::fs::write(&file, "site = \"f\"\ntier = \"cloud\"\nmesh = \"m\"\n").unwrap();
        let env = |name: &str| match name {
            "CANAL_SITE" => Some("e".to_owned()),
            "CANAL_TIER" => Some("iot".to_owned()),
            _ => None,
        };
        let flags = Flags { site: Some("x".into()), config: Some(file), ..Flags::default() };
        let config = Config::load(flags, &env).unwrap();
        assert_eq!(source(&config, "site"), ("x".into(), Source::Flag));
        assert_eq!(source(&config, "tier"), ("iot".into(), Source::Env));
        assert_eq!(source(&config, "mesh"), ("m".into(), Source::File));
        assert_eq!(source(&config, "listen"), ("127.0.0.1:4040".into(), Source::Default));
    }

    #[test]
    fn spans_are_read_and_shown_as_people_write_them() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("2h", 7200), ("7d", 604_800)] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.0.as_secs(), span.to_string().as_str()), (seconds, text));
        }
        for text in ["", "5", "m", "-1s", "0s", "1.5h", "99999999d", "5 m"] {
            assert!(text.parse::<Span>().unwrap_err().contains("write it as 90s"), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("canal.toml");
        std::fs::write(&file, "replace_after = \"2m\"\nlog_budget_mb = 1\n").unwrap();
        let env = |name: &str| (name == "CANAL_REPLACE_AFTER").then(|| "120s".to_owned());
        let config = Config::load(Flags { config: Some(file), ..Flags::default() }, &env).unwrap();
        assert_eq!(source(&config, "replace_after"), ("2m".into(), Source::Env));
        assert_eq!((config.replace_after.as_secs(), config.log_budget_mb), (120, MIN_LOG_BUDGET_MB));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let none = |_: &str| None;
        let refused = |flags: Flags| format!("{:#}", Config::load(flags, &none).unwrap_err());
        let flags = Flags { tier: Some("fog".into()), ..Flags::default() };
        assert_eq!(refused(flags), "`fog` is not a tier; use iot, edge or cloud");
        let flags = Flags { label: vec!["gpu".into()], ..Flags::default() };
        assert_eq!(refused(flags), "the label `gpu` is not of the form K=V");
        let flags = Flags { label: vec![format!("k={}", "v".repeat(MAX_LABEL_BYTES))], ..Flags::default() };
        assert!(refused(flags).starts_with("a peer has at most 64 labels with 2048 bytes together"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "sight = \"f\"\n").unwrap();
        assert!(refused(Flags { config: Some(file), ..Flags::default() }).contains("unknown field `sight`"));
    }
}
