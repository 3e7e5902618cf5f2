//! Every bound that a client or a peer can meet, with its reason.
//!
//! What exceeds a limit is refused with [`crate::Code::TooLarge`] or [`crate::Code::InvalidArgument`] and a
//! message that names the limit; nothing is truncated.

/// Payload of one event: what a sensor, an image tile or a document needs, and four of them fit a frame.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Key of one event.
pub const MAX_KEY: usize = 1 << 10;
/// All headers of one event, names and values together.
pub const MAX_HEADERS: usize = 8 << 10;
/// Events in one publish request: bounds the work of one turn.
pub const MAX_BATCH_EVENTS: usize = 1024;
/// One frame on any stream, length prefix excluded: a publish of [`MAX_PAYLOAD`] with its envelope, and room.
pub const MAX_FRAME: usize = 4 << 20;
/// One entry of a Raft log: below [`MAX_FRAME`], so that an entry always fits a Raft message.
pub const MAX_ENTRY: usize = 3 << 20;
/// A topic name or a pattern, in bytes.
pub const MAX_NAME: usize = 255;
/// A component: functions are small; a language runtime compiled to Wasm still fits.
pub const MAX_COMPONENT: usize = 16 << 20;
/// One piece of a component on its way into the mesh.
pub const BLOB_CHUNK: usize = 512 << 10;
/// Key of a row of function state.
pub const MAX_STATE_KEY: usize = 512;
/// Value of a row of function state.
pub const MAX_STATE_VALUE: usize = 256 << 10;
/// Rows that one `scan` or `state ls` returns at most.
pub const MAX_SCAN: usize = 1024;
/// Topics that one group hosts: its spec is one entry.
pub const MAX_TOPICS_PER_GROUP: usize = 4096;
/// Triggers in one namespace: every group's spec carries those that match it.
pub const MAX_TRIGGERS: usize = 1024;
/// Patterns of one trigger.
pub const MAX_PATTERNS: usize = 16;
/// Replicas of a group.
pub const MAX_REPLICAS: usize = 9;
/// A route record in the DHT: nine replicas with eight addresses each fit.
pub const MAX_ROUTE_RECORD: usize = 8 << 10;
/// Addresses told of one peer.
pub const MAX_ADDRESSES: usize = 8;
/// Latest sequences of a producer whose offsets are remembered, so that a retry gets its first receipt again;
/// the bound of a publisher's window. Older retries are recognised too, but their receipt names no offset. (So are those
/// before the latest 256 stretches of consecutive offsets: a request is one, and few are on their way at a time.)
pub const RECEIPT_WINDOW: u64 = 4096;
/// Offsets that may be done above a trigger's low watermark (events parked for a retry hold the watermark).
pub const MAX_CURSOR_GAP: u64 = 1024;
/// Activation records kept a trigger and group: the newest ones.
pub const MAX_ACTIVATIONS: u64 = 1000;
/// Log lines kept of one activation, in bytes together.
pub const MAX_ACTIVATION_LOG: usize = 8 << 10;
/// Entries that may wait in one group's outbox; above it, the group's functions wait.
pub const MAX_OUTBOX: u64 = 65_536;
/// Producers that one topic remembers. Their rows are what makes a retry recognisable without a time window, so they
/// are never dropped to make room: a new producer above the bound is refused until others end.
pub const MAX_PRODUCERS: u64 = 100_000;
/// Durable subscriptions of one topic.
pub const MAX_SUBSCRIPTIONS: usize = 1024;
/// Name of a durable subscription, in bytes.
pub const MAX_SUBSCRIPTION_NAME: usize = 128;
/// Records kept of the steps in which a group's replicas changed: the newest ones.
pub const MAX_STEPS: u64 = 32;
/// Peers that one peer knows descriptions of, beside those that it shares groups with. Enough to place replicas well,
/// and no more in a mesh of a million.
pub const MAX_KNOWN_PEERS: usize = 256;
/// Descriptions in one exchange between two peers.
pub const MAX_GOSSIP: usize = 32;
/// Bytes in one answer to a [`crate::request::PieceAsk`].
pub const MAX_PIECE: usize = 1 << 20;
/// Segments in one `Seal`: a topic each, in one entry.
pub const MAX_SEAL: usize = 4096;
/// Events in one batch to a subscriber.
pub const MAX_DELIVERY: usize = 256;
