//! What arrives at a peer: messages of other replicas, and questions.

use bytes::Bytes;
use canal_consensus::Refused;
use canal_consensus::compaction::Offered;
use canal_consensus::convert;
use canal_consensus::core::group::Input;
use canal_consensus::core::keys::{Keys, Table};
use canal_consensus::core::kv::{Kv as _, KvError};
use canal_consensus::core::rows::{Applied, Topic};
use canal_consensus::view::Source;
use canal_proto::peer::{Manifest, PeerInfo, RaftMessage, Seed, Tier};
use canal_proto::{ContentHash, GroupId, PeerId, TopicId};
use prost::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::{AskId, Waiter};
use crate::sim::around::{Answer, Ask, Failed, Machine};
use crate::sim::dht;
use crate::sim::mutants::{self, Mutant};
use crate::sim::world::{NetView, PeerContent, World};

/// Bytes of events that one answer has at most.
const ANSWER_BYTES: usize = 1 << 20;

fn unavailable(reason: &'static str) -> Failed {
    Failed::Refused(Refused::Configuration(reason))
}

impl World {
    /// A message of another replica.
    pub(in crate::sim) fn message(
        &mut self,
        peer: Machine,
        from: Machine,
        group: GroupId,
        message: RaftMessage,
    ) -> Result<(), KvError> {
        let now_ms = self.now_ms(peer);
        let sender = self.identities.id(from);
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
        let Some(member) = live.members.get_mut(&group) else { return Ok(()) };
        let Ok(message) = convert::from_wire(message) else { return Ok(()) };
        if message.to != member.group.seed().replica {
            return Ok(());
        }
        member.heard.insert(message.from, self.now);
        if message.msg_type == MessageType::MsgSnapshot {
            self.offered(peer, group, sender, Box::new(message));
        } else {
            member.group.handle(Input::Message(sender, Box::new(message)), now_ms);
            live.dirty.insert(group);
        }
        Ok(())
    }

    /// A leader offers a snapshot. Raft hears of it only when all of it is here.
    fn offered(&mut self, peer: Machine, group: GroupId, sender: PeerId, message: Box<Message>) {
        let now_ms = self.now_ms(peer);
        let held = &mut self.peers[peer];
        let Some(live) = held.live.as_mut() else { return };
        let Some(member) = live.members.get_mut(&group) else { return };
        let index = message.get_snapshot().get_metadata().index;
        let Ok(manifest) = Manifest::decode(message.get_snapshot().data.clone()) else { return };
        if member.history.installing.is_some() {
            return;
        }
        if let Some(running) = member.history.offered.as_mut().filter(|running| running.manifest == manifest) {
            (running.from, running.message) = (sender, message);
            return;
        }
        let here = |hash: &[u8]| ContentHash::from_slice(hash).is_ok_and(|hash| held.disk.files.contains(&hash));
        let pieces = manifest.rows.iter().chain(&manifest.segments).filter(|piece| !here(&piece.hash));
        let pieces: Vec<_> = pieces.cloned().collect();
        let known = member.group.status().committed >= index;
        if pieces.is_empty() || (known && !member.group.needs_snapshot(index)) {
            member.group.handle(Input::Message(sender, message), now_ms);
            live.dirty.insert(group);
            return;
        }
        let number = live.next_task;
        live.next_task += 1;
        member.history.fetching = None;
        let from = PeerId::from_slice(&manifest.peer).unwrap_or(sender);
        member.history.offered = Some(Offered { from: sender, message, manifest, number });
        self.trace.tell(self.now, || {
            format!(
                "peer {peer}: group {group} is being filled by a snapshot at {index}, {} files to fetch",
                pieces.len()
            )
        });
        let sources = [from, sender].into_iter().filter_map(|id| self.identities.machine(id)).collect();
        self.begin_fetch(peer, group, number, pieces, sources);
    }

    /// A question has arrived; it is answered now, or by the group.
    pub(in crate::sim) fn asked(&mut self, peer: Machine, ask: AskId, question: Ask) -> Result<(), KvError> {
        let answer = match question {
            Ask::Append(group, item) => {
                let (topic, producer) = (item.topic, item.producer.clone());
                let (first, count) = (item.first_sequence, item.events.len() as u64);
                let waiter = Waiter::Publisher { ask, topic, producer, first, count };
                self.hand_in(peer, group, ask, waiter, |ticket| Input::Append(ticket, item));
                return Ok(());
            }
            Ask::Propose(group, kind) => {
                let waiter = Waiter::Proposer(ask);
                self.hand_in(peer, group, ask, waiter, |ticket| Input::Propose(ticket, kind));
                return Ok(());
            }
            Ask::State(group, bucket, key) => {
                let waiter = Waiter::Reader { ask, bucket, key };
                self.hand_in(peer, group, ask, waiter, Input::Read);
                return Ok(());
            }
            Ask::Stale(group, bucket, key) => {
                self.readable(peer, group).map(|()| Answer::Row(self.row(peer, group, &bucket, &key)))
            }
            Ask::Events(group, topic, from, max) => {
                self.readable(peer, group).and_then(|()| self.events_at(peer, group, topic, from, max))
            }
            Ask::Route(name) => self.route(peer, &name, false),
            Ask::Afresh(name) => self.route(peer, &name, true),
            Ask::Store(bytes) => {
                let (answer, seen) = self.dht.store(peer, &bytes, self.now_ms(peer));
                seen.into_iter().for_each(|seen| self.see(seen));
                Ok(answer)
            }
            Ask::Describe => Ok(Answer::Peer(Box::new(self.describe_peer(peer)))),
            Ask::Standing(group) => match self.member(peer, group) {
                Some(member) => {
                    let configuration = member.group.status().configuration;
                    Ok(Answer::Standing(configuration.last_id, configuration.replicas.clone()))
                }
                None => Err(Failed::NotHere),
            },
            Ask::Create(seed) => self.create(peer, seed)?,
            Ask::Remove(group, replica) => {
                let busy = self.member(peer, group).is_some_and(|member| member.history.work.is_some());
                if busy {
                    if let Some(live) = self.peers[peer].live.as_mut() {
                        live.leaving.push((group, replica, ask));
                    }
                    return Ok(());
                }
                self.remove(peer, group, replica)?
            }
            Ask::Holds(group, replica) => {
                let held = self.member(peer, group).is_some_and(|member| member.group.seed().replica == replica);
                Ok(if held { Answer::Yes } else { Answer::No })
            }
        };
        self.answer(peer, ask, answer);
        Ok(())
    }

    fn hand_in(&mut self, peer: Machine, group: GroupId, ask: AskId, waiter: Waiter, input: impl FnOnce(u64) -> Input) {
        let now_ms = self.now_ms(peer);
        let Some(live) = self.peers[peer].live.as_mut() else { return };
        if !live.members.contains_key(&group) {
            return self.answer(peer, ask, Err(Failed::NotHere));
        }
        let ticket = live.ticket(group, waiter);
        if let Some(member) = live.members.get_mut(&group) {
            member.group.handle(input(ticket), now_ms);
            live.dirty.insert(group);
        }
    }

    /// Whether a replica here has rows to answer with.
    fn readable(&mut self, peer: Machine, group: GroupId) -> Result<(), Failed> {
        let pulse = self.member(peer, group).map(|member| member.group.pulse()).ok_or(Failed::NotHere)?;
        if pulse.serves() { Ok(()) } else { Err(unavailable("this replica is being filled")) }
    }

    /// A row of a bucket.
    pub(in crate::sim) fn row(&self, peer: Machine, group: GroupId, bucket: &str, key: &str) -> Option<bytes::Bytes> {
        self.peers[peer].disk.rows.of(group)?.get(&Keys(group).state(bucket, key)).ok().flatten()
    }

    fn events_at(
        &mut self,
        peer: Machine,
        group: GroupId,
        topic: TopicId,
        from: u64,
        max: usize,
    ) -> Result<Answer, Failed> {
        let disk = &self.peers[peer].disk;
        let Some(kv) = disk.rows.of(group) else { return Err(Failed::NotHere) };
        let key = Keys(group).topic_only(Table::Topics, topic);
        let row = kv.get(&key).ok().flatten().and_then(|row| Topic::decode(row).ok());
        let Some(row) = row else { return Err(unavailable("the topic is not here")) };
        let content = PeerContent(disk);
        let source = Source { group, kv, content: &content };
        match source.events(topic, from, max, ANSWER_BYTES) {
            Ok(mut events) => {
                if peer == 1 && mutants::is(Mutant::GivesOther) {
                    let some = events.iter_mut().filter(|stored| stored.offset.is_multiple_of(40));
                    some.for_each(|stored| stored.event.payload = Bytes::from_static(b"other"));
                }
                Ok(Answer::Events(events, row.next))
            }
            Err(canal_consensus::view::Error::OutOfRange { oldest }) => {
                let error = canal_proto::WireError::new(canal_proto::Code::OutOfRange, "these events are gone");
                Err(Failed::Error(canal_proto::WireError { detail: oldest, ..error }))
            }
            Err(_) => Err(unavailable("these events are not here")),
        }
    }

    fn route(&mut self, peer: Machine, name: &str, fresh: bool) -> Result<Answer, Failed> {
        let Some(live) = self.peers[peer].live.as_ref() else { return Err(Failed::Silence) };
        let here = live.members.values().find_map(|member| dht::here(name, &member.group.status()));
        let net = NetView { network: &self.network, peers: &self.peers, now: self.now };
        self.dht.route(peer, name, fresh, here, &net)
    }

    fn describe_peer(&self, peer: Machine) -> PeerInfo {
        let held = &self.peers[peer];
        let members = || held.live.iter().flat_map(|live| live.members.values());
        PeerInfo {
            peer: held.id.to_vec(),
            tier: Tier::Edge.into(),
            site: format!("site-{}", self.network.site(peer)),
            cpus: 4,
            memory: 4 << 30,
            replicas: u32::try_from(members().count()).unwrap_or(u32::MAX),
            leads: u32::try_from(members().filter(|member| member.leads).count()).unwrap_or(u32::MAX),
            version: "sim".into(),
            start: held.start,
            nonce: held.start,
            ..PeerInfo::default()
        }
    }

    /// Creates a replica, as the driver does.
    pub(in crate::sim) fn create(&mut self, peer: Machine, seed: Seed) -> Result<Result<Answer, Failed>, KvError> {
        let id = GroupId(seed.group);
        if let Some(member) = self.member(peer, id) {
            let same = member.group.seed().replica == seed.replica;
            return Ok(if same { Ok(Answer::Yes) } else { Err(unavailable("another replica of it is here")) });
        }
        let disk = &self.peers[peer].disk;
        if seed.replica <= disk.log.gone(id) {
            return Ok(Err(unavailable("this replica was removed from this peer: it may not come back")));
        }
        if self.peers[peer].live.as_ref().is_some_and(|live| live.clearing.contains(&id)) {
            return Ok(Err(unavailable("the replica before this one is still being removed")));
        }
        let key = Keys(id).one(Table::Applied);
        let row = disk.rows.of(id).and_then(|kv| kv.get(&key).ok().flatten());
        if row.and_then(|row| Applied::decode(row).ok()).is_some_and(|applied| applied.index > 0) {
            return Ok(Err(unavailable("this peer has state of the group, but no log of it")));
        }
        disk.log.create(seed.clone())?;
        let stands = seed.first.first().is_some_and(|first| first.id == seed.replica);
        let replica = seed.replica;
        self.bring_to_life(peer, seed)?;
        self.trace.tell(self.now, || format!("peer {peer}: replica {replica} of group {id} is created"));
        let now_ms = self.now_ms(peer);
        if stands && let Some(member) = self.member(peer, id) {
            member.group.handle(Input::Campaign, now_ms);
        }
        Ok(Ok(Answer::Yes))
    }

    /// Removes a replica: the log first, with a note of its id, then what it had applied.
    pub(in crate::sim) fn remove(
        &mut self,
        peer: Machine,
        id: GroupId,
        replica: u64,
    ) -> Result<Result<Answer, Failed>, KvError> {
        match self.member(peer, id) {
            None => return Ok(Ok(Answer::Yes)),
            Some(member) if member.group.seed().replica != replica => {
                return Ok(Err(unavailable("another replica of it is here")));
            }
            Some(_) => {}
        }
        self.peers[peer].disk.log.remove(id, replica)?;
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(Ok(Answer::Yes)) };
        let member = live.members.remove(&id);
        live.dirty.remove(&id);
        live.cuts.remove(&id);
        live.clearing.insert(id);
        live.fetches.retain(|_, task| task.group != id);
        let waiting: Vec<_> = live.waiters.extract_if(.., |_, (group, _)| *group == id).collect();
        for (_, (_, waiter)) in waiting {
            if !matches!(waiter, Waiter::Seal) {
                self.reply(peer, id, waiter, Err(Refused::Uncertain));
            }
        }
        for actor in member.into_iter().flat_map(|member| member.led.into_iter().chain(member.rooms)) {
            self.dismiss(actor);
        }
        self.trace.tell(self.now, || format!("peer {peer}: replica {replica} of group {id} is removed"));
        self.clear(peer, id);
        Ok(Ok(Answer::Yes))
    }

    /// Removes the replicas that waited for the end of work on their files.
    pub(in crate::sim) fn let_leave(&mut self, peer: Machine) -> Result<(), KvError> {
        let Some(live) = self.peers[peer].live.as_mut() else { return Ok(()) };
        for (group, replica, ask) in std::mem::take(&mut live.leaving) {
            self.asked(peer, ask, Ask::Remove(group, replica))?;
        }
        Ok(())
    }
}
