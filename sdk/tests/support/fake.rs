//! A mesh of scripted peers over in-memory streams: one group, which every peer replicates, with what it takes to
//! publish, subscribe, and go wrong.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use canal_proto::catalog::{CatalogReply, Change, FunctionInfo, TopicInfo};
use canal_proto::error::WireError;
use canal_proto::event::{Event, Receipt, Stored};
use canal_proto::frame;
use canal_proto::log::StateOp;
use canal_proto::peer::Replica;
use canal_proto::request::{
    Answer, Ask, CatalogView, Content, Delivery, Done, Events, From, GroupStatus, Opened, Publish, Request, Response,
    Route, Say, Standing, StateRows, Subscribe, SubscriberFrame, TopicStatus, Welcome,
};
use canal_proto::route::{CATALOG, group_name};
use canal_proto::{Code, GroupId, Pattern, PeerId};
use canal_sdk::{BoxStream, Client, Error, Options, Transport};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

const GROUP: u64 = 0xabc;

/// How a peer behaves; what is asked of it is judged by the group first where that makes sense.
#[derive(Clone, Default)]
pub enum Behaviour {
    #[default]
    Well,
    /// Takes requests (and lets them have effect) but never answers.
    Silent,
    /// Handles this many requests beside greetings, and ends the stream in place of the last one's answer; then well.
    HangUpAfter(u32),
    /// Answers these, then well.
    Errors(Vec<WireError>),
    Garbage(&'static [u8]),
    Version(u32),
    MeshName(&'static str),
}

#[derive(Default)]
pub struct Topic {
    pub id: u64,
    pub events: Vec<Stored>,
    /// Events before it are no longer served.
    oldest: u64,
    producers: BTreeMap<Bytes, Vec<u64>>,
}

struct Held {
    next: u64,
    holder: Bytes,
}

#[derive(Default)]
struct Mesh {
    leader: u64,
    stale_leader: Option<u64>,
    topics: BTreeMap<String, Topic>,
    functions: Vec<FunctionInfo>,
    rows: BTreeMap<String, Bytes>,
    last_id: u64,
    behaviours: HashMap<u64, Behaviour>,
    dead: Vec<u64>,
    streams: HashMap<u64, Vec<AbortHandle>>,
    asked: Vec<(u64, &'static str)>,
    publishes: Vec<(u64, u64, usize)>,
    subscribes: Vec<(u64, Subscribe)>,
    /// Peers without a replica.
    elsewhere: Vec<u64>,
    /// Cursors, by topic and name.
    durable: BTreeMap<(String, String), Held>,
    /// What was said to be handled, in order.
    advances: Vec<u64>,
    /// No cursor moves.
    undecided: bool,
    /// Credit granted after opening.
    granted: u64,
    /// A replica that lags sees only this many events.
    lag: HashMap<u64, u64>,
    tampered: Option<fn(Vec<Stored>) -> Vec<Stored>>,
}

#[derive(Clone)]
pub struct Fake {
    mesh: Arc<Mutex<Mesh>>,
    changed: watch::Sender<u64>,
    peers: u64,
}

pub trait IntoEvent {
    fn into_event(self) -> Event;
}

impl IntoEvent for &'static str {
    fn into_event(self) -> Event {
        Event::new(self)
    }
}

fn id(peer: u64) -> PeerId {
    PeerId::from_public_key([u8::try_from(peer).unwrap(); 32])
}

fn replica(peer: u64) -> Replica {
    Replica { id: peer, peer: id(peer).to_vec(), addresses: vec![format!("p{peer}")] }
}

impl Fake {
    pub fn new(peers: u64) -> Self {
        Self { mesh: Arc::default(), changed: watch::Sender::new(0), peers }
    }

    pub fn client(&self, entry: u64) -> Client {
        self.client_with(entry, Options::default())
    }

    pub fn client_with(&self, entry: u64, options: Options) -> Client {
        Client::with_transport(Arc::new(self.clone()), vec![format!("p{entry}")], options)
    }

    fn mesh(&self) -> MutexGuard<'_, Mesh> {
        self.mesh.lock().unwrap()
    }

    fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn group(&self) -> GroupId {
        GroupId(GROUP)
    }

    pub fn topic(&self, name: &str, leader: u64) {
        let mut mesh = self.mesh();
        mesh.leader = leader;
        mesh.create(name);
    }

    /// The topic is gone, with all that it knew.
    pub fn remove_topic(&self, name: &str) {
        self.mesh().topics.remove(name).unwrap();
        self.touch();
    }

    pub fn lead(&self, peer: u64) {
        self.mesh().leader = peer;
    }

    pub fn stale_leader(&self, peer: Option<u64>) {
        self.mesh().stale_leader = peer;
    }

    pub fn behave(&self, peer: u64, behaviour: Behaviour) {
        self.mesh().behaviours.insert(peer, behaviour);
    }

    /// Ends all streams of a peer, and refuses new ones.
    pub fn kill(&self, peer: u64) {
        let mut mesh = self.mesh();
        mesh.dead.push(peer);
        for stream in mesh.streams.remove(&peer).unwrap_or_default() {
            stream.abort();
        }
    }

    pub fn revive(&self, peer: u64) {
        self.mesh().dead.retain(|dead| *dead != peer);
    }

    pub fn lag(&self, peer: u64, events: u64) {
        self.mesh().lag.insert(peer, events);
    }

    pub fn tamper(&self, with: fn(Vec<Stored>) -> Vec<Stored>) {
        self.mesh().tampered = Some(with);
    }

    /// Payloads in the topic's log.
    pub fn logged(&self, topic: &str) -> Vec<String> {
        let mesh = self.mesh();
        let events = mesh.topics[topic].events.iter();
        events.map(|stored| String::from_utf8(stored.event.payload.to_vec()).unwrap()).collect()
    }

    /// All producers of a topic have been ended.
    pub fn forget_producers(&self, topic: &str) {
        self.mesh().topics.get_mut(topic).unwrap().producers.clear();
    }

    pub fn append(&self, topic: &str, payload: &str) {
        self.mesh().append(topic, Event::new(payload.to_owned()), Bytes::from_static(&[9; 16]), 0);
        self.touch();
    }

    pub fn count(&self, what: &str) -> usize {
        self.mesh().asked.iter().filter(|(_, asked)| *asked == what).count()
    }

    /// The peers that were asked to publish, in order.
    pub fn published_at(&self) -> Vec<u64> {
        self.mesh().publishes.iter().map(|(peer, ..)| *peer).collect()
    }

    /// First sequence and size of each publish request, in order.
    pub fn batches(&self) -> Vec<(u64, usize)> {
        self.mesh().publishes.iter().map(|(_, first, count)| (*first, *count)).collect()
    }

    /// Who was asked for a subscription, and from where.
    pub fn subscribed(&self) -> Vec<(u64, Option<From>)> {
        self.mesh().subscribes.iter().map(|(peer, ask)| (*peer, ask.from.clone())).collect()
    }

    /// The whole of what was asked, in order.
    pub fn subscribes(&self) -> Vec<(u64, Subscribe)> {
        self.mesh().subscribes.clone()
    }

    /// This peer has no replica.
    pub fn without_replica(&self, peer: u64) {
        self.mesh().elsewhere.push(peer);
    }

    /// Lets go of the events before an offset.
    pub fn trim(&self, topic: &str, oldest: u64) {
        self.mesh().topics.get_mut(topic).unwrap().oldest = oldest;
        self.touch();
    }

    /// Where a durable subscription is.
    pub fn cursor(&self, topic: &str, name: &str) -> Option<u64> {
        self.mesh().durable.get(&(topic.to_owned(), name.to_owned())).map(|held| held.next)
    }

    /// Whether cursors can be moved: without a majority they can't.
    pub fn decides(&self, decides: bool) {
        self.mesh().undecided = !decides;
    }

    /// What was said to be handled, in order.
    pub fn advances(&self) -> Vec<u64> {
        self.mesh().advances.clone()
    }

    /// Bytes of credit granted after opening.
    pub fn granted(&self) -> u64 {
        self.mesh().granted
    }

    async fn serve(self, peer: u64, mut stream: DuplexStream) {
        let mut buffer = BytesMut::new();
        while let Some(Request { id: request, ask: Some(ask), .. }) = read(&mut stream, &mut buffer).await {
            let greeting = matches!(ask, Ask::Hello(_));
            let (answer, behaviour) = {
                let mut mesh = self.mesh();
                let behaviour = mesh.behaviours.get(&peer).cloned().unwrap_or_default();
                (mesh.answer(peer, ask, &behaviour, self.peers), behaviour)
            };
            self.touch();
            match behaviour {
                Behaviour::Silent if !greeting => continue,
                Behaviour::HangUpAfter(left) if !greeting => {
                    if left <= 1 {
                        self.behave(peer, Behaviour::Well);
                        return;
                    }
                    self.behave(peer, Behaviour::HangUpAfter(left - 1));
                }
                Behaviour::Garbage(bytes) if !greeting => {
                    stream.write_all(bytes).await.unwrap();
                    continue;
                }
                _ => {}
            }
            write(&mut stream, &Response { id: request, answer: Some(answer) }).await;
        }
    }

    async fn serve_subscriber(self, peer: u64, mut stream: DuplexStream) {
        let mut changed = self.changed.subscribe();
        let mut buffer = BytesMut::new();
        let Some(ask) = read::<Subscribe>(&mut stream, &mut buffer).await else {
            return;
        };
        let opened = self.mesh().open(peer, &ask);
        self.touch();
        let (opened, mut next) = match opened {
            Ok(opened) => (Content::Opened(opened.clone()), opened.next),
            Err(error) => {
                return write(&mut stream, &Delivery { content: Some(Content::Error(error)) }).await;
            }
        };
        write(&mut stream, &Delivery { content: Some(opened) }).await;
        let mut credit = i64::try_from(ask.credit).unwrap();
        loop {
            if matches!(self.mesh().behaviours.get(&peer), Some(Behaviour::Silent)) {
                return std::future::pending().await;
            }
            let content = self.mesh().next_content(peer, &ask, &mut next, &mut credit);
            if let Some(content) = content {
                let last = matches!(content, Content::Error(_));
                write(&mut stream, &Delivery { content: Some(content) }).await;
                if last {
                    return;
                }
                continue;
            }
            tokio::select! {
                changed = changed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                frame = read::<SubscriberFrame>(&mut stream, &mut buffer) => match frame.map(|frame| frame.say.unwrap()) {
                    None => return,
                    Some(Say::Credit(more)) => {
                        self.mesh().granted += more;
                        credit += i64::try_from(more).unwrap();
                    }
                    Some(Say::Handled(handled)) => {
                        let committed = self.mesh().advance(&ask, handled);
                        self.touch();
                        if committed {
                            write(&mut stream, &Delivery { content: Some(Content::Handled(handled)) }).await;
                        }
                    }
                },
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {
                    let head = self.mesh().topics.get(&ask.topic).map_or(0, |topic| topic.events.len() as u64);
                    write(&mut stream, &Delivery { content: Some(Content::Standing(Standing { next, head })) }).await;
                }
            }
        }
    }
}

impl Mesh {
    fn create(&mut self, name: &str) -> bool {
        if self.topics.contains_key(name) {
            return false;
        }
        self.last_id += 1;
        self.topics.insert(name.into(), Topic { id: self.last_id, ..Topic::default() });
        true
    }

    fn seen(&self, peer: u64, topic: &Topic) -> usize {
        self.lag.get(&peer).map_or(topic.events.len(), |lag| topic.events.len().min(*lag as usize))
    }

    fn append(&mut self, topic: &str, event: Event, producer: Bytes, sequence: u64) {
        let topic = self.topics.get_mut(topic).unwrap();
        let offset = topic.events.len() as u64;
        topic.events.push(Stored { offset, event, producer, sequence });
    }

    fn info(&self, name: &str) -> TopicInfo {
        let group_name = "default".into();
        TopicInfo {
            id: self.topics[name].id,
            name: name.into(),
            group: GROUP,
            group_name,
            created_ms: 1,
            ..TopicInfo::default()
        }
    }

    /// What a subscriber gets next, if there is something.
    fn next_content(&mut self, peer: u64, ask: &Subscribe, next: &mut u64, credit: &mut i64) -> Option<Content> {
        let key = (ask.topic.clone(), ask.durable.clone());
        if !ask.durable.is_empty() && self.durable.get(&key).is_none_or(|held| held.holder != ask.holder) {
            return Some(Content::Error(WireError::new(Code::TakenOver, "taken over")));
        }
        let Some(topic) = self.topics.get(&ask.topic) else {
            return Some(Content::Error(WireError::new(Code::UnknownTopic, "no such topic")));
        };
        let seen = self.seen(peer, topic);
        let mut events = Vec::new();
        for stored in topic.events[..seen].iter().skip(*next as usize).take(2) {
            if *credit <= 0 {
                break;
            }
            *credit -= i64::try_from(Events::cost(stored)).unwrap();
            *next += 1;
            events.push(stored.clone());
        }
        let events = self.tampered.map_or(events.clone(), |tamper| tamper(events));
        (!events.is_empty()).then(|| Content::Events(Events { events, head: seen as u64 }))
    }

    fn open_durable(&mut self, ask: &Subscribe) -> Result<u64, WireError> {
        let topic = &self.topics[&ask.topic];
        let key = (ask.topic.clone(), ask.durable.clone());
        let known = self.durable.get(&key);
        if ask.again && known.is_none_or(|known| known.holder != ask.holder) {
            return Err(WireError::new(Code::TakenOver, "taken over"));
        }
        let from = match &ask.from {
            Some(From::Offset(next)) => *next,
            Some(From::Latest(_)) => topic.events.len() as u64,
            _ => topic.oldest,
        };
        let next = known.map_or(from, |known| known.next);
        self.durable.insert(key, Held { next, holder: ask.holder.clone() });
        Ok(next)
    }

    /// Moves a cursor; says whether that was committed.
    fn advance(&mut self, ask: &Subscribe, next: u64) -> bool {
        self.advances.push(next);
        if self.undecided {
            return false;
        }
        let held = self.durable.get_mut(&(ask.topic.clone(), ask.durable.clone())).unwrap();
        let ours = held.holder == ask.holder;
        if ours {
            held.next = held.next.max(next);
        }
        ours
    }

    fn open(&mut self, peer: u64, ask: &Subscribe) -> Result<Opened, WireError> {
        self.subscribes.push((peer, ask.clone()));
        let unknown = || WireError::new(Code::UnknownTopic, "no such topic");
        if self.elsewhere.contains(&peer) && !ask.relay {
            return Err(WireError::new(Code::NotHere, "no replica here"));
        }
        let topic = self.topics.get(&ask.topic).ok_or_else(unknown)?;
        if ask.topic_id != 0 && ask.topic_id != topic.id {
            return Err(unknown());
        }
        let oldest = topic.oldest;
        if !ask.durable.is_empty() {
            let cursor = self.open_durable(ask)?;
            let head = self.topics[&ask.topic].events.len() as u64;
            let next = match (&ask.from, ask.again) {
                (Some(From::Offset(next)), true) => *next,
                _ => cursor.max(oldest),
            };
            return Ok(Opened { topic: self.topics[&ask.topic].id, next, head, oldest, session: 1, cursor });
        }
        let head = self.seen(peer, topic) as u64;
        let next = match &ask.from {
            Some(From::Offset(next)) if *next > head => {
                return Err(WireError::new(Code::OutOfRange, "beyond the newest event").with_detail(head));
            }
            Some(From::Offset(next)) if *next < oldest => {
                return Err(WireError::new(Code::OutOfRange, "the oldest is later").with_detail(oldest));
            }
            Some(From::Offset(next)) => *next,
            Some(From::Latest(_)) => head,
            _ => oldest,
        };
        Ok(Opened { topic: topic.id, next, head, oldest, ..Opened::default() })
    }

    fn answer(&mut self, peer: u64, ask: Ask, behaviour: &Behaviour, peers: u64) -> Answer {
        self.judge(peer, ask, behaviour, peers).unwrap_or_else(Answer::Error)
    }

    fn must_lead(&self, peer: u64, peers: u64) -> Result<(), WireError> {
        if self.leader == peer {
            return Ok(());
        }
        let leader = (self.leader != 0).then(|| replica(self.leader));
        let replicas = (1..=peers).map(replica).collect();
        Err(WireError { leader, replicas, ..WireError::new(Code::NotLeader, "not the leader") })
    }

    fn judge(&mut self, peer: u64, ask: Ask, behaviour: &Behaviour, peers: u64) -> Result<Answer, WireError> {
        let unknown = || WireError::new(Code::UnknownTopic, "no such topic");
        if let Ask::Hello(_) = ask {
            let (mut version, mut mesh_name) = (canal_proto::request::VERSION, "canal");
            match behaviour {
                Behaviour::Version(other) => version = *other,
                Behaviour::MeshName(other) => mesh_name = other,
                _ => {}
            }
            return Ok(Answer::Welcome(Welcome {
                version,
                peer: id(peer).to_vec().into(),
                mesh: Bytes::from_static(&[1; 16]),
                mesh_name: mesh_name.into(),
                addresses: vec![format!("p{peer}")],
                ..Welcome::default()
            }));
        }
        let resolve = matches!(ask, Ask::Resolve(_));
        if let Some(Behaviour::Errors(errors)) = self.behaviours.get_mut(&peer)
            && !resolve
            && let Some(error) = errors.pop()
        {
            return Err(error);
        }
        match ask {
            Ask::Resolve(ask) => {
                self.asked.push((peer, "resolve"));
                let topic = match self.topics.get(&ask.name) {
                    Some(topic) => topic.id,
                    None if ask.name == CATALOG || ask.name == group_name(GroupId(GROUP)) => 0,
                    None if ask.name.starts_with('$') => {
                        return Err(WireError::new(Code::UnknownGroup, "no such group"));
                    }
                    None => return Err(unknown()),
                };
                let leader = self.stale_leader.unwrap_or(self.leader);
                let replicas = (1..=peers).map(replica).collect();
                Ok(Answer::Route(Route { topic, group: GROUP, replicas, leader, ..Route::default() }))
            }
            Ask::Publish(publish) => {
                self.publishes.push((peer, publish.first_sequence, publish.events.len()));
                self.must_lead(peer, peers)?;
                self.publish(publish).map(Answer::Receipt)
            }
            Ask::EndProducer(end) => {
                self.must_lead(peer, peers)?;
                self.asked.push((peer, "end"));
                self.topics.get_mut(&end.topic).ok_or_else(unknown)?.producers.remove(&end.producer);
                Ok(Answer::Done(Done::default()))
            }
            Ask::TopicStatus(ask) => {
                let topic = self.topics.get(&ask.topic).ok_or_else(unknown)?;
                Ok(Answer::TopicStatus(TopicStatus { id: topic.id, group: GROUP, ..TopicStatus::default() }))
            }
            Ask::GroupStatus(group) => Ok(Answer::GroupStatus(GroupStatus { id: group, ..GroupStatus::default() })),
            Ask::Catalog(ask) => {
                let pattern: Option<Pattern> = ask.pattern.parse().ok();
                let names = self.topics.keys().filter(|name| pattern.as_ref().is_none_or(|p| p.matches(name)));
                let topics = names.map(|name| self.info(name)).collect();
                Ok(Answer::Catalog(CatalogView { topics, functions: self.functions.clone(), ..CatalogView::default() }))
            }
            Ask::Change(command) => {
                self.must_lead(peer, peers)?;
                let mut reply = CatalogReply::default();
                match command.change.unwrap() {
                    Change::CreateTopic(create) => {
                        reply.existed = !self.create(&create.name);
                        reply.topic = Some(self.info(&create.name));
                    }
                    Change::RemoveTopic(name) => drop(self.topics.remove(&name).ok_or_else(unknown)?),
                    Change::PutChunk(_) => self.asked.push((peer, "chunk")),
                    Change::Deploy(info) => {
                        self.functions.push(info.clone());
                        reply.function = Some(info);
                    }
                    other => panic!("{other:?}"),
                }
                Ok(Answer::Changed(reply))
            }
            Ask::StatePut(put) => {
                self.must_lead(peer, peers)?;
                self.asked.push((peer, "put"));
                for op in put.write.ops {
                    self.rows.insert(op.key, op.value.unwrap());
                }
                Ok(Answer::Done(Done { index: 1 }))
            }
            Ask::StateGet(_) | Ask::StateList(_) => {
                let rows = self.rows.iter().map(|(k, v)| StateOp { key: k.clone(), value: Some(v.clone()) }).collect();
                Ok(Answer::Rows(StateRows { rows, applied: 1 }))
            }
            other => panic!("{other:?}"),
        }
    }

    /// As the group does it: once, in order, and the first receipt again for what was appended before.
    fn publish(&mut self, publish: Publish) -> Result<Receipt, WireError> {
        let Publish { topic: name, topic_id: publish_id, producer, first_sequence, events, .. } = publish;
        let count = u32::try_from(events.len()).unwrap();
        let Some(topic) = self.topics.get_mut(&name) else {
            return Err(WireError::new(Code::UnknownTopic, "no such topic"));
        };
        if publish_id != 0 && publish_id != topic.id {
            return Err(WireError::new(Code::UnknownTopic, "another topic has this name"));
        }
        let next = topic.events.len() as u64;
        let known = topic.producers.entry(producer.clone()).or_default();
        let receipt = Receipt { offset: Some(next), count, term: 1, index: 1, ..Receipt::default() };
        let last = known.len() as u64;
        if first_sequence <= last {
            let covered = u32::try_from(last + 1 - first_sequence).unwrap().min(count);
            let offset = Some(known[first_sequence as usize - 1]);
            return Ok(Receipt { offset, count: covered, duplicate: true, ..receipt });
        }
        if first_sequence != last + 1 {
            return Err(WireError::new(Code::SequenceGap, "skips").with_detail(last + 1));
        }
        known.extend((0..u64::from(count)).map(|n| next + n));
        for (event, sequence) in events.into_iter().zip(first_sequence..) {
            self.append(&name, event, producer.clone(), sequence);
        }
        Ok(receipt)
    }
}

impl Transport for Fake {
    fn open<'a>(
        &'a self,
        peer: Option<PeerId>,
        addresses: &'a [String],
        protocol: &'a str,
    ) -> BoxFuture<'a, Result<(PeerId, BoxStream), Error>> {
        async move {
            let number = match peer {
                Some(peer) => u64::from(peer.public_key()[0]),
                None => addresses[0][1..].parse().unwrap(),
            };
            if self.mesh().dead.contains(&number) {
                return Err(Error::new(Code::Unreachable, "dead"));
            }
            if !protocol.starts_with("/canal/canal/") {
                return Err(Error::new(Code::Incompatible, "not this mesh"));
            }
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let task = if protocol.contains("/subscribe/") {
                tokio::spawn(self.clone().serve_subscriber(number, theirs))
            } else {
                tokio::spawn(self.clone().serve(number, theirs))
            };
            self.mesh().streams.entry(number).or_default().push(task.abort_handle());
            Ok((id(number), Box::new(ours) as BoxStream))
        }
        .boxed()
    }
}

async fn read<M: prost::Message + Default>(stream: &mut DuplexStream, buffer: &mut BytesMut) -> Option<M> {
    loop {
        if let Some(message) = frame::decode(buffer).unwrap() {
            return Some(message);
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

async fn write<M: prost::Message>(stream: &mut DuplexStream, message: &M) {
    let mut bytes = BytesMut::new();
    frame::encode(message, &mut bytes).unwrap();
    // the other side may be gone
    drop(stream.write_all(&bytes).await);
}
