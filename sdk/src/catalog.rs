//! The namespace's catalog and how the mesh stands: topics, functions, triggers, groups, peers, activations.
//!
//! Changes may be asked for again: to create what stands there already with the same definition is no error, and a
//! removal whose first try took effect is one that succeeded.

use canal_proto::catalog::{
    CatalogCommand, CatalogReply, Change, CreateTopic, FunctionInfo, GroupInfo, Placement, Retention, SetGroup,
    SetPaused, SetTopic, TopicInfo, TriggerInfo,
};
use canal_proto::log::ActivationRecord;
use canal_proto::peer::PeerInfo;
use canal_proto::request::{
    ActivationsAsk, Answer, Ask, CatalogAsk, CatalogView, DrainAsk, EndProducer, GroupStatus, PeerStatus,
    PeerStatusAsk, PeersAsk, Producers, ProducersAsk, TopicStatus, TopicStatusAsk,
};
use canal_proto::{Code, GroupId, Pattern, ProducerId, TopicName};

use crate::Error;
use crate::client::{Client, Target};

/// How a topic is created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicOptions {
    /// Name of the group that hosts it; none: the mesh's default group, or one for that count of replicas.
    pub group: Option<String>,
    /// Replicas wanted; none: three, or what the group has.
    pub replicas: Option<u32>,
    /// How long events are kept; none: for ever.
    pub retention: Option<Retention>,
    /// Where the replicas of a group that is created for it should be; none: anywhere.
    pub placement: Option<Placement>,
}

/// What a creation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created<T> {
    /// As it stands now.
    pub info: T,
    /// It stood there already with the same definition (or an earlier try of the same call created it).
    pub existed: bool,
}

impl Client {
    /// Creates a topic.
    ///
    /// # Errors
    /// `AlreadyExists` with another definition, `InvalidArgument` for a name that can't be used; those of
    /// [`Client::call`].
    pub async fn create_topic(&self, name: &str, options: TopicOptions) -> Result<Created<TopicInfo>, Error> {
        name.parse::<TopicName>()?;
        let group = options.group.clone().unwrap_or_default();
        if !group.is_empty() {
            canal_proto::name::check_plain(&group)?;
        }
        let replicas = options.replicas.unwrap_or(0);
        let TopicOptions { retention, placement, .. } = options;
        let ask = CreateTopic { name: name.into(), group, replicas, retention, placement };
        let reply = self.change(Change::CreateTopic(ask)).await?;
        created(reply.topic, reply.existed, "a topic's creation")
    }

    /// Changes how long a topic's events are kept. A retention without any bound keeps them for ever.
    ///
    /// # Errors
    /// `UnknownTopic`; those of [`Client::call`].
    pub async fn set_retention(&self, name: &str, retention: Retention) -> Result<TopicInfo, Error> {
        let reply = self.change(Change::SetTopic(SetTopic { name: name.into(), retention: Some(retention) })).await?;
        reply.topic.ok_or_else(|| Error::unexpected("a topic's change"))
    }

    /// Changes how many replicas a group should have (`None`: as before), and where they should be (`None`: as before).
    /// It returns when that is committed; the group's leader then goes there step by step.
    ///
    /// # Errors
    /// `UnknownGroup`, `InvalidArgument`; those of [`Client::call`].
    pub async fn set_group(
        &self,
        group: GroupId,
        replicas: Option<u32>,
        placement: Option<Placement>,
    ) -> Result<(), Error> {
        let replicas = replicas.unwrap_or(0);
        self.change(Change::SetGroup(SetGroup { group: group.0, replicas, placement })).await.map(|_| ())
    }

    /// Removes a topic and its events.
    ///
    /// # Errors
    /// `UnknownTopic`, `InUse`; those of [`Client::call`].
    pub async fn remove_topic(&self, name: &str) -> Result<(), Error> {
        self.remove(Change::RemoveTopic(name.into()), Code::UnknownTopic).await?;
        self.routes().forget(name);
        Ok(())
    }

    /// The topics that a pattern matches, by name; with an empty pattern all but the system's.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad pattern; those of [`Client::call`].
    pub async fn topics(&self, pattern: &str) -> Result<Vec<TopicInfo>, Error> {
        if !pattern.is_empty() {
            pattern.parse::<Pattern>()?;
        }
        Ok(self.catalog(pattern, &["topics"], false).await?.topics)
    }

    /// How a topic stands.
    ///
    /// # Errors
    /// `UnknownTopic`; those of [`Client::call`].
    pub async fn topic_status(&self, name: &str) -> Result<TopicStatus, Error> {
        match self.call(Target::Topic(name.into()), Ask::TopicStatus(TopicStatusAsk { topic: name.into() })).await? {
            Answer::TopicStatus(status) => Ok(status),
            _ => Err(Error::unexpected("a topic's status")),
        }
    }

    /// The producers that a topic remembers, by id, from this one on: a page of them, which says where the next begins.
    ///
    /// # Errors
    /// `UnknownTopic`; those of [`Client::call`].
    pub async fn producers(&self, topic: &str, from: Option<ProducerId>, limit: u32) -> Result<Producers, Error> {
        let from = from.map(|from| from.to_vec().into()).unwrap_or_default();
        let ask = Ask::Producers(ProducersAsk { topic: topic.into(), from, limit });
        match self.call(Target::Topic(topic.into()), ask).await? {
            Answer::Producers(producers) => Ok(producers),
            _ => Err(Error::unexpected("a question for producers")),
        }
    }

    /// Ends a producer of a topic: the topic forgets it, and what it sends from then on is refused as a gap. Nothing is
    /// done if it is not known there, or its last sequence is another one.
    ///
    /// # Errors
    /// `UnknownTopic`; those of [`Client::call`].
    pub async fn end_producer(&self, topic: &str, producer: ProducerId, last_sequence: u64) -> Result<(), Error> {
        let end = EndProducer { topic: topic.into(), producer: producer.to_vec().into(), last_sequence };
        self.call(Target::Topic(topic.into()), Ask::EndProducer(end)).await.map(|_| ())
    }

    /// Creates a trigger. Its id and creation time are the catalog's to set.
    ///
    /// # Errors
    /// `AlreadyExists`, `UnknownFunction`, `InvalidArgument`; those of [`Client::call`].
    pub async fn create_trigger(&self, trigger: TriggerInfo) -> Result<Created<TriggerInfo>, Error> {
        canal_proto::name::check_plain(&trigger.name)?;
        for pattern in &trigger.patterns {
            pattern.parse::<Pattern>()?;
        }
        let reply = self.change(Change::CreateTrigger(trigger)).await?;
        created(reply.trigger, reply.existed, "a trigger's creation")
    }

    /// Removes a trigger.
    ///
    /// # Errors
    /// `UnknownTrigger`; those of [`Client::call`].
    pub async fn remove_trigger(&self, name: &str) -> Result<(), Error> {
        self.remove(Change::RemoveTrigger(name.into()), Code::UnknownTrigger).await
    }

    /// Pauses a trigger, or resumes it.
    ///
    /// # Errors
    /// `UnknownTrigger`; those of [`Client::call`].
    pub async fn pause_trigger(&self, name: &str, paused: bool) -> Result<TriggerInfo, Error> {
        let reply = self.change(Change::SetPaused(SetPaused { trigger: name.into(), paused })).await?;
        reply.trigger.ok_or_else(|| Error::unexpected("a trigger's change"))
    }

    /// The triggers, by name.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn triggers(&self) -> Result<Vec<TriggerInfo>, Error> {
        Ok(self.catalog("", &["triggers"], false).await?.triggers)
    }

    /// The trigger with this name.
    ///
    /// # Errors
    /// `UnknownTrigger`; those of [`Client::call`].
    pub async fn trigger(&self, name: &str) -> Result<TriggerInfo, Error> {
        let found = self.triggers().await?.into_iter().find(|trigger| trigger.name == name);
        found.ok_or_else(|| Error::new(Code::UnknownTrigger, format!("there is no trigger `{name}`: create it first")))
    }

    /// The functions, by name.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn functions(&self) -> Result<Vec<FunctionInfo>, Error> {
        Ok(self.catalog("", &["functions"], false).await?.functions)
    }

    /// Removes a function.
    ///
    /// # Errors
    /// `UnknownFunction`, `InUse`; those of [`Client::call`].
    pub async fn remove_function(&self, name: &str) -> Result<(), Error> {
        self.remove(Change::RemoveFunction(name.into()), Code::UnknownFunction).await
    }

    /// The groups, by id.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn groups(&self) -> Result<Vec<GroupInfo>, Error> {
        Ok(self.catalog("", &["groups"], false).await?.groups)
    }

    /// How a group stands.
    ///
    /// # Errors
    /// `UnknownGroup`; those of [`Client::call`].
    pub async fn group_status(&self, group: GroupId) -> Result<GroupStatus, Error> {
        match self.call(Target::Group(group), Ask::GroupStatus(group.0)).await? {
            Answer::GroupStatus(status) => Ok(status),
            _ => Err(Error::unexpected("a group's status")),
        }
    }

    /// The peers that the peer knows of which this client was given first, by id: all of a mesh of up to 256, a changing
    /// sample of a larger one.
    ///
    /// # Errors
    /// Those of [`Client::ready`].
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, Error> {
        let connection = self.ready().await?;
        match connection.request(Ask::Peers(PeersAsk {}), self.options().deadline).await? {
            Answer::Peers(peers) => Ok(peers.peers),
            _ => Err(Error::unexpected("the list of peers")),
        }
    }

    /// How the peer that this client was given first stands.
    ///
    /// # Errors
    /// Those of [`Client::ready`].
    pub async fn peer_status(&self) -> Result<PeerStatus, Error> {
        let connection = self.ready().await?;
        match connection.request(Ask::PeerStatus(PeerStatusAsk {}), self.options().deadline).await? {
            Answer::PeerStatus(status) => Ok(status),
            _ => Err(Error::unexpected("a peer's status")),
        }
    }

    /// Begins to empty the peer that this client was given first (what it holds moves away, and it takes nothing new), or
    /// gives that up.
    ///
    /// # Errors
    /// Those of [`Client::ready`].
    pub async fn drain(&self, on: bool) -> Result<(), Error> {
        let connection = self.ready().await?;
        match connection.request(Ask::Drain(DrainAsk { on }), self.options().deadline).await? {
            Answer::Done(_) => Ok(()),
            _ => Err(Error::unexpected("a drain")),
        }
    }

    /// Activation records of a group, the newest first: of one trigger, or of all when its name is empty.
    ///
    /// # Errors
    /// `UnknownGroup`; those of [`Client::call`].
    pub async fn activations(&self, group: GroupId, trigger: &str, limit: u32) -> Result<Vec<ActivationRecord>, Error> {
        self.activation_records(ActivationsAsk { group: group.0, trigger: trigger.into(), limit, number: 0 }).await
    }

    /// One activation record.
    ///
    /// # Errors
    /// `UnknownActivation`, `UnknownGroup`; those of [`Client::call`].
    pub async fn activation(&self, group: GroupId, trigger: &str, number: u64) -> Result<ActivationRecord, Error> {
        let ask = ActivationsAsk { group: group.0, trigger: trigger.into(), limit: 1, number };
        self.activation_records(ask).await?.pop().ok_or_else(|| {
            let message =
                format!("trigger `{trigger}` has no activation {number} in group {group}: old ones are let go");
            Error::new(Code::UnknownActivation, message)
        })
    }

    /// Reads parts of the catalog: any of `topics`, `groups`, `functions`, `triggers`; topics only where the
    /// pattern matches. `linearizable` makes the leader ask its majority first.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn catalog(&self, pattern: &str, parts: &[&str], linearizable: bool) -> Result<CatalogView, Error> {
        let parts = parts.iter().map(|part| (*part).to_owned()).collect();
        let ask = CatalogAsk { pattern: pattern.into(), parts, linearizable };
        match self.call(Target::Catalog, Ask::Catalog(ask)).await? {
            Answer::Catalog(view) => Ok(view),
            _ => Err(Error::unexpected("a catalog read")),
        }
    }

    /// Changes the catalog.
    ///
    /// # Errors
    /// What the catalog refuses; those of [`Client::call`].
    pub async fn change(&self, change: Change) -> Result<CatalogReply, Error> {
        let command = CatalogCommand { change: Some(change), placement: Vec::new() };
        match self.call(Target::Catalog, Ask::Change(command)).await? {
            Answer::Changed(reply) => Ok(reply),
            _ => Err(Error::unexpected("a change of the catalog")),
        }
    }

    async fn remove(&self, change: Change, unknown: Code) -> Result<(), Error> {
        match self.change(change).await {
            Err(error) if error.code == unknown && error.repeated => Ok(()),
            other => other.map(|_| ()),
        }
    }

    async fn activation_records(&self, ask: ActivationsAsk) -> Result<Vec<ActivationRecord>, Error> {
        match self.call(Target::Group(GroupId(ask.group)), Ask::Activations(ask)).await? {
            Answer::Activations(activations) => Ok(activations.records),
            _ => Err(Error::unexpected("a list of activations")),
        }
    }
}

fn created<T>(info: Option<T>, existed: bool, question: &str) -> Result<Created<T>, Error> {
    info.map(|info| Created { info, existed }).ok_or_else(|| Error::unexpected(question))
}
