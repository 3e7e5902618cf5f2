//! The application: its topics in two groups, its four functions and their triggers.
//!
//! ```text
//! group sensing:   demo/sensor/NAME … --smooth--> (learning)          demo/error <--score-- (learning)
//! group learning:  demo/smoothed/NAME …, demo/target --train--> demo/model --predict--> demo/prediction
//! ```
//! Every trigger fires on topics of one group, where its function's state lies; `smooth` and `score` emit into the
//! other group.

use anyhow::{Context, Result, ensure};
use canal_proto::catalog::{Start, TriggerInfo};
use canal_sdk::{Client, FunctionLimits, GroupId};

use crate::Testnet;

/// Group of the raw readings and of the errors.
pub const SENSING: &str = "sensing";
/// Group of everything that is learnt.
pub const LEARNING: &str = "learning";
/// Everything that the demo reads and writes.
pub const ALL: &str = "demo/#";
/// Raw readings of what is to be predicted.
pub const TARGET: &str = "demo/target";
/// Models.
pub const MODEL: &str = "demo/model";
/// Predictions.
pub const PREDICTION: &str = "demo/prediction";
/// Errors of the predictions.
pub const ERROR: &str = "demo/error";
/// Replicas of a group, where there are as many peers.
const REPLICAS: usize = 3;

/// A function: its name, its component, the patterns on which it fires.
struct Function {
    name: &'static str,
    component: &'static [u8],
    on: &'static [&'static str],
}

/// The functions. Their sources are in `examples/functions`.
const FUNCTIONS: [Function; 4] = [
    Function {
        name: "smooth",
        component: include_bytes!("../../../examples/functions/built/smooth.wasm"),
        on: &["demo/sensor/+"],
    },
    Function {
        name: "train",
        component: include_bytes!("../../../examples/functions/built/train.wasm"),
        on: &["demo/smoothed/+", TARGET],
    },
    Function {
        name: "predict",
        component: include_bytes!("../../../examples/functions/built/predict.wasm"),
        on: &["demo/smoothed/+", MODEL],
    },
    Function {
        name: "score",
        component: include_bytes!("../../../examples/functions/built/score.wasm"),
        on: &[PREDICTION, TARGET],
    },
];

/// The application as it stands in a mesh.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Names of the inputs.
    pub inputs: Vec<String>,
    /// Group of [`SENSING`].
    pub sensing: GroupId,
    /// Group of [`LEARNING`].
    pub learning: GroupId,
}

impl Layout {
    /// Creates the topics, deploys the functions and sets the triggers. The last of the names is the target's.
    ///
    /// # Errors
    /// What the mesh refuses.
    pub async fn create(net: &Testnet, client: &Client, names: &[String]) -> Result<Self> {
        let (_, inputs) = names.split_last().context("there is nothing to stream")?;
        let replicas = u32::try_from(REPLICAS.min(net.peers().len()))?;
        // the groups first, each with one topic, so that both are whole before there is anything to do
        let sensing = net.create_topic(client, ERROR, SENSING, replicas).await?;
        let learning = net.create_topic(client, TARGET, LEARNING, replicas).await?;
        let layout = Self { inputs: inputs.to_vec(), sensing, learning };
        for (topic, group) in layout.topics() {
            let name = if group == sensing { SENSING } else { LEARNING };
            let created = net.create_topic(client, &topic, name, replicas).await?;
            ensure!(created == group, "topic `{topic}` was put into another group than `{name}`");
        }
        for Function { name, component, on } in FUNCTIONS {
            client.deploy(name, component, FunctionLimits::default()).await?;
            let trigger = TriggerInfo {
                name: name.into(),
                function: name.into(),
                patterns: on.iter().map(|pattern| (*pattern).into()).collect(),
                start: Start::Earliest.into(),
                ..TriggerInfo::default()
            };
            client.create_trigger(trigger).await?;
        }
        Ok(layout)
    }

    /// All topics with their groups.
    pub fn topics(&self) -> Vec<(String, GroupId)> {
        let sensors = self.inputs.iter().map(|name| (sensor(name), self.sensing));
        let smoothed = self.inputs.iter().map(|name| (smoothed(name), self.learning));
        let others =
            [(TARGET, self.learning), (MODEL, self.learning), (PREDICTION, self.learning), (ERROR, self.sensing)];
        sensors.chain(smoothed).chain(others.map(|(topic, group)| (topic.to_owned(), group))).collect()
    }

    /// The topics to which readings are published: the inputs' in their order, then the target's.
    pub fn published(&self) -> Vec<String> {
        self.inputs.iter().map(|name| sensor(name)).chain([TARGET.to_owned()]).collect()
    }

    /// The groups with their names.
    pub fn groups(&self) -> [(&'static str, GroupId); 2] {
        [(SENSING, self.sensing), (LEARNING, self.learning)]
    }

    /// The triggers' names.
    pub fn triggers() -> impl Iterator<Item = &'static str> {
        FUNCTIONS.into_iter().map(|function| function.name)
    }
}

/// Whether a topic is one of those that the application reads and writes.
pub fn is_of_the_application(topic: &str) -> bool {
    topic.starts_with("demo/")
}

/// Topic of a sensor's raw readings.
pub fn sensor(name: &str) -> String {
    format!("demo/sensor/{name}")
}

/// Topic of a sensor's smoothed readings.
pub fn smoothed(name: &str) -> String {
    format!("demo/smoothed/{name}")
}
