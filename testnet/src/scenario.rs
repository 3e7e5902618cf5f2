//! What a testnet consists of, as a TOML file says it.
//!
//! ```
//! let scenario: canal_testnet::Scenario = r#"
//!     mesh = "plant"
//!     [[peer]]
//!     tier = "iot"
//!     site = "line1"
//!     labels = { sensor = "temperature" }
//!     [[peer]]
//!     count = 2
//!     tier = "edge"
//!     site = "hall"
//!     [[topic]]
//!     name = "plant/line1/temperature"
//!     group = "plant"
//!     replicas = 3
//!     [[link]]
//!     between = ["iot", "edge"]
//!     delay_ms = 20
//!     loss = 0.01
//! "#.parse()?;
//! assert_eq!(scenario.expanded().len(), 3);
//! # Ok::<(), canal_testnet::Error>(())
//! ```

use std::collections::BTreeMap;
use std::str::FromStr;

use canal_proto::TopicName;
use canal_proto::name::check_plain;
use canal_proto::peer::Tier;
use serde::Deserialize;

use crate::Error;
use crate::emulated::Quality;

/// Peers of one testnet: more processes than that help nobody on one machine.
const MAX_PEERS: usize = 64;

/// A testnet to be.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name of the mesh.
    #[serde(default = "default_mesh")]
    pub mesh: String,
    /// The peers. The first of them founds the mesh.
    #[serde(rename = "peer")]
    pub peers: Vec<PeerSpec>,
    /// Topics to be created once the mesh stands.
    #[serde(rename = "topic", default)]
    pub topics: Vec<TopicSpec>,
    /// How the peers are linked, on an emulated network. Of several that fit two peers the last one counts; peers that none
    /// fits have a link without delay.
    #[serde(rename = "link", default)]
    pub links: Vec<LinkSpec>,
}

/// A link between peers, the same in both directions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LinkSpec {
    /// Two of: a tier, a site, a peer's number, `*` for any.
    pub between: (String, String),
    /// How it behaves.
    #[serde(flatten)]
    pub quality: Quality,
}

/// One peer, or several of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSpec {
    /// How many of this kind.
    #[serde(default = "one")]
    pub count: usize,
    /// `iot`, `edge` or `cloud`.
    #[serde(default = "default_tier")]
    pub tier: String,
    /// Failure and latency domain.
    #[serde(default = "default_site")]
    pub site: String,
    /// What the peer offers.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// The group that hosts it; none: the mesh's default.
    pub group: Option<String>,
    /// Replicas of that group; none: the mesh's default.
    pub replicas: Option<u32>,
}

fn default_mesh() -> String {
    "canal".into()
}

fn default_tier() -> String {
    "edge".into()
}

fn default_site() -> String {
    "local".into()
}

fn one() -> usize {
    1
}

impl PeerSpec {
    /// One peer of a tier at a site.
    pub fn new(tier: &str, site: &str) -> Self {
        Self { count: 1, tier: tier.into(), site: site.into(), labels: BTreeMap::new() }
    }
}

impl Scenario {
    /// This many peers, each at a site of its own, in alternating tiers: what most tests need.
    pub fn of(count: usize) -> Self {
        let tiers = ["edge", "cloud", "iot"];
        let peers =
            tiers.iter().cycle().take(count).zip(0..).map(|(tier, n)| PeerSpec::new(tier, &format!("site-{n}")));
        Self { mesh: default_mesh(), peers: peers.collect(), topics: Vec::new(), links: Vec::new() }
    }

    /// This many edge peers, each at a site of its own: none is a better place for a replica than another.
    pub fn alike(count: usize) -> Self {
        let peers = (0..count).map(|n| PeerSpec::new("edge", &format!("site-{n}")));
        Self { mesh: default_mesh(), peers: peers.collect(), topics: Vec::new(), links: Vec::new() }
    }

    /// Peers in three tiers at three sites: of five, one in the iot tier, two at the edge, two in the cloud.
    pub fn three_tiers(count: usize) -> Self {
        let kinds = [("iot", "plant"), ("edge", "edge"), ("cloud", "cloud"), ("edge", "edge"), ("cloud", "cloud")];
        let peers = kinds.iter().cycle().take(count).map(|(tier, site)| PeerSpec::new(tier, site));
        Self { mesh: default_mesh(), peers: peers.collect(), topics: Vec::new(), links: Vec::new() }
    }

    /// The peers one by one, in the order in which they are numbered.
    pub fn expanded(&self) -> Vec<PeerSpec> {
        let copies = |spec: &PeerSpec| std::iter::repeat_n(PeerSpec { count: 1, ..spec.clone() }, spec.count);
        self.peers.iter().flat_map(copies).collect()
    }

    /// The links that the scenario names, in both directions: from, to, and how it behaves.
    pub fn linked(&self) -> Vec<(usize, usize, Quality)> {
        let peers = self.expanded();
        let fits = |end: &str, number: usize| {
            let spec = peers.get(number);
            end == "*" || end == number.to_string() || spec.is_some_and(|spec| end == spec.tier || end == spec.site)
        };
        let mut links = Vec::new();
        for from in 0..peers.len() {
            for to in (0..peers.len()).filter(|to| *to != from) {
                let between = |link: &&LinkSpec| {
                    let (a, b) = &link.between;
                    (fits(a, from) && fits(b, to)) || (fits(b, from) && fits(a, to))
                };
                links.extend(self.links.iter().rfind(between).map(|link| (from, to, link.quality)));
            }
        }
        links
    }

    /// Refuses what can't be run, and says what to change.
    ///
    /// # Errors
    /// [`Error::Scenario`].
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::Scenario(why));
        let named = |what: &str, error: canal_proto::name::Error| Error::Scenario(format!("{what}: {error}"));
        check_plain(&self.mesh).map_err(|e| named("mesh", e))?;
        // before anything is repeated that often
        let count = self.peers.iter().fold(0usize, |sum, spec| sum.saturating_add(spec.count));
        if count == 0 || count > MAX_PEERS {
            return refuse(format!("{count} peers; 1 to {MAX_PEERS} can be run"));
        }
        for spec in &self.peers {
            spec.tier.parse::<Tier>().map_err(Error::Scenario)?;
            check_plain(&spec.site).map_err(|e| named("site", e))?;
            if let Some(key) = spec.labels.keys().find(|key| key.is_empty() || key.contains('=')) {
                return refuse(format!("label `{key}`: a label's name is not empty and holds no `=`"));
            }
        }
        for link in &self.links {
            link.quality.check().map_err(|why| Error::Scenario(format!("link {:?}: {why}", link.between)))?;
        }
        for topic in &self.topics {
            topic.name.parse::<TopicName>().map_err(|e| named("topic", e))?;
            let group: Result<(), _> = topic.group.as_deref().map_or(Ok(()), check_plain);
            group.map_err(|e| named("group", e))?;
        }
        Ok(())
    }
}

impl FromStr for Scenario {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let scenario: Self = toml::from_str(text).map_err(|e| Error::Scenario(e.to_string()))?;
        scenario.check()?;
        Ok(scenario)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Scenario>().unwrap_err().to_string()
    }

    #[test]
    fn the_scenario_in_the_repository_reads_as_it_says() {
        let scenario: Scenario = include_str!("../scenarios/three-tiers.toml").parse().unwrap();
        let peers = scenario.expanded();
        let tiers: Vec<&str> = peers.iter().map(|peer| peer.tier.as_str()).collect();
        assert_eq!(tiers, ["iot", "edge", "edge", "cloud", "cloud"]);
        assert_eq!(peers[0].labels["sensor"], "yes");
        assert_eq!(scenario.topics[0].replicas, Some(3));
    }

    #[test]
    fn what_can_not_be_run_is_refused_with_what_to_change() {
        assert!(refused("peer = []").contains("0 peers; 1 to 64"));
        assert!(refused("[[peer]]\ncount = 9999999999").contains("9999999999 peers"));
        assert!(refused("[[peer]]\ntier = \"moon\"").contains("use iot, edge or cloud"));
        assert!(refused("[[peer]]\nsite = \"a b\"").contains("site: `a b` holds white space"));
        assert!(refused("[[peer]]\ncolour = \"red\"").contains("unknown field"));
        assert!(refused("mesh = \"a/b\"\n[[peer]]").contains("not a plain name"));
        assert!(refused("[[peer]]\n[[topic]]\nname = \"a/+\"").contains("wildcard"));
    }

    #[test]
    fn the_last_link_that_fits_counts_in_both_directions() {
        let text = "[[peer]]\ntier = \"iot\"\nsite = \"a\"\n[[peer]]\ntier = \"edge\"\n[[peer]]\ntier = \"cloud\"\n\
                    [[link]]\nbetween = [\"*\", \"*\"]\ndelay_ms = 1\n[[link]]\nbetween = [\"cloud\", \"a\"]\ndelay_ms = 40.0";
        let delays: Vec<_> =
            text.parse::<Scenario>().unwrap().linked().into_iter().map(|(a, b, q)| (a, b, q.delay_ms)).collect();
        assert_eq!(delays, [(0, 1, 1.0), (0, 2, 40.0), (1, 0, 1.0), (1, 2, 1.0), (2, 0, 40.0), (2, 1, 1.0)]);
        assert!(refused("[[peer]]\n[[link]]\nbetween = [\"*\", \"*\"]\nloss = 2.0").contains("use a share"));
    }

    #[test]
    fn made_scenarios_spread_over_tiers_and_sites() {
        let five = Scenario::three_tiers(5).expanded();
        let count = |tier: &str| five.iter().filter(|peer| peer.tier == tier).count();
        assert_eq!((count("iot"), count("edge"), count("cloud")), (1, 2, 2));
        let three = Scenario::of(3).expanded();
        assert_eq!(three.iter().map(|peer| peer.site.as_str()).collect::<Vec<_>>(), ["site-0", "site-1", "site-2"]);
    }
}
