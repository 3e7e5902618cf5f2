//! Function state, from outside: the rows of a bucket in one group.
//!
//! A trigger's bucket (its own name unless said otherwise) has rows in every group that hosts a topic on which the
//! trigger fires; [`Client::state_groups`] tells which.

use std::collections::BTreeMap;

use bytes::Bytes;
use canal_proto::log::{StateOp, StateWrite};
use canal_proto::request::{Answer, Ask, Consistency, StateGet, StateList, StatePut};
use canal_proto::{Code, GroupId, Pattern};

use crate::Error;
use crate::client::{Client, Target};

/// The rows of one bucket in one group.
#[derive(Clone)]
pub struct State {
    client: Client,
    group: GroupId,
    bucket: String,
}

impl Client {
    /// The rows of this bucket in this group.
    pub fn state(&self, group: GroupId, bucket: impl Into<String>) -> State {
        State { client: self.clone(), group, bucket: bucket.into() }
    }

    /// The groups that hold rows of a bucket, with their names: those of the topics on which its triggers fire.
    ///
    /// # Errors
    /// `UnknownTrigger` when no trigger has this bucket or name; those of [`Client::call`].
    pub async fn state_groups(&self, bucket: &str) -> Result<Vec<(GroupId, String)>, Error> {
        let view = self.catalog("", &["topics", "triggers"], false).await?;
        // a trigger that was found by its name counts as well, whatever its bucket is called
        let patterns: Vec<Pattern> = view
            .triggers
            .iter()
            .filter(|trigger| trigger.bucket == bucket || trigger.name == bucket)
            .flat_map(|trigger| trigger.patterns.iter().filter_map(|pattern| pattern.parse().ok()))
            .collect();
        if patterns.is_empty() {
            let message = format!("no trigger has the bucket `{bucket}`: name a trigger, or its bucket");
            return Err(Error::new(Code::UnknownTrigger, message));
        }
        let groups: BTreeMap<GroupId, String> = view
            .topics
            .into_iter()
            .filter(|topic| patterns.iter().any(|pattern| pattern.matches(&topic.name)))
            .map(|topic| (GroupId(topic.group), topic.group_name))
            .collect();
        Ok(groups.into_iter().collect())
    }
}

impl State {
    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Reads a row; `None` when there is none.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn get(&self, key: &str, consistency: Consistency) -> Result<Option<Bytes>, Error> {
        let ask = StateGet {
            group: self.group.0,
            bucket: self.bucket.clone(),
            key: key.into(),
            consistency: consistency.into(),
        };
        let rows = self.rows(Ask::StateGet(ask)).await?;
        Ok(rows.into_iter().find(|row| row.key == key).and_then(|row| row.value))
    }

    /// Rows whose keys have this prefix, by key; at most `limit`, or [`canal_proto::limits::MAX_SCAN`] for 0.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn list(
        &self,
        prefix: &str,
        limit: u32,
        consistency: Consistency,
    ) -> Result<Vec<(String, Bytes)>, Error> {
        let ask = StateList {
            group: self.group.0,
            bucket: self.bucket.clone(),
            prefix: prefix.into(),
            limit,
            consistency: consistency.into(),
        };
        let rows = self.rows(Ask::StateList(ask)).await?;
        Ok(rows.into_iter().filter_map(|row| Some((row.key, row.value?))).collect())
    }

    /// Writes a row, and returns the index of the entry that did.
    ///
    /// # Errors
    /// `TooLarge`; `NoQuorum` also when a try may or may not have taken effect: unlike a publish, a write to state
    /// is never sent again after such a try, since it could undo what a function wrote in between.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>) -> Result<u64, Error> {
        self.write(vec![StateOp { key: key.into(), value: Some(value.into()) }]).await
    }

    /// Removes a row, and returns the index of the entry that did.
    ///
    /// # Errors
    /// As [`State::put`].
    pub async fn delete(&self, key: &str) -> Result<u64, Error> {
        self.write(vec![StateOp { key: key.into(), value: None }]).await
    }

    /// Writes several rows at once: all of them or none.
    ///
    /// # Errors
    /// As [`State::put`].
    pub async fn write(&self, ops: Vec<StateOp>) -> Result<u64, Error> {
        use canal_proto::limits::{MAX_STATE_KEY, MAX_STATE_VALUE};
        for op in &ops {
            let value = op.value.as_ref().map_or(0, Bytes::len);
            for (what, size, limit) in [("key", op.key.len(), MAX_STATE_KEY), ("value", value, MAX_STATE_VALUE)] {
                if size > limit {
                    let message = format!("the {what} has {size} bytes; at most {limit} are allowed");
                    return Err(Error::new(Code::TooLarge, message));
                }
            }
        }
        let write = StateWrite { bucket: self.bucket.clone(), ops };
        let ask = Ask::StatePut(StatePut { group: self.group.0, write });
        match self.client.call(Target::Group(self.group), ask).await? {
            Answer::Done(done) => Ok(done.index),
            _ => Err(Error::unexpected("a write to state")),
        }
    }

    async fn rows(&self, ask: Ask) -> Result<Vec<StateOp>, Error> {
        match self.client.call(Target::Group(self.group), ask).await? {
            Answer::Rows(rows) => Ok(rows.rows),
            _ => Err(Error::unexpected("a read of state")),
        }
    }
}
