//! Errors as they travel: a code for programs, a message for people, and what helps to go on.

use crate::peer::Replica;

/// What went wrong. The number is the wire value; the command line exits with [`Code::exit_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Code {
    /// No code was given: a newer peer's error, or a broken frame.
    Unspecified = 0,
    /// The peer met an error of its own; its log says more.
    Internal = 1,
    /// A name, a flag or a field can't be used as it is.
    InvalidArgument = 2,
    /// No such topic.
    UnknownTopic = 3,
    /// No such function.
    UnknownFunction = 4,
    /// No such trigger.
    UnknownTrigger = 5,
    /// No such group.
    UnknownGroup = 6,
    /// No such activation.
    UnknownActivation = 7,
    /// It exists already, with another definition.
    AlreadyExists = 8,
    /// It is still in use: a topic's trigger, a trigger's function.
    InUse = 9,
    /// A limit of [`crate::limits`] is exceeded.
    TooLarge = 10,
    /// The bytes are not a component of the world `canal:function`.
    BadComponent = 11,
    /// The group had no majority within the deadline. The request may or may not have taken effect; a publish
    /// with the same producer and sequence is safe to send again.
    NoQuorum = 12,
    /// This peer does not lead the group; `leader` says who does, as far as it knows.
    NotLeader = 13,
    /// No peer could be reached at the given address.
    Unreachable = 14,
    /// A queue is full: wait and try again.
    WouldBlock = 15,
    /// A producer skipped a sequence; `detail` is the one that was expected.
    SequenceGap = 16,
    /// The other side speaks another version of the protocol, or belongs to another mesh.
    Incompatible = 17,
    /// A frame could not be read.
    Malformed = 18,
    /// This peer holds no replica of the group; `replicas` says who does.
    NotHere = 19,
    /// The offset is before the oldest or after the newest event; `detail` is the nearest that exists.
    OutOfRange = 20,
    /// The peer is shutting down.
    Stopping = 21,
    /// The topic remembers as many producers as it may: no new one is taken until some end.
    TooManyProducers = 22,
    /// A durable subscription was opened elsewhere under the same name: this one ends.
    TakenOver = 23,
    /// The other side's disk is older than what was seen of it: it has forgotten what it promised, and takes no part
    /// until it has begun anew.
    Forgotten = 24,
    /// No durable subscription of this name.
    UnknownSubscription = 25,
}

impl Code {
    /// The exit code of the command line for this error: 10 and up, so that it never meets a shell's own.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Unspecified | Self::Internal => 1,
            Self::InvalidArgument => 2,
            other => u8::try_from(other as i32).unwrap_or(0).saturating_add(7),
        }
    }

    /// The code's name in JSON output, as `unknown-topic`.
    pub fn name(self) -> String {
        let mut name = String::new();
        for c in format!("{self:?}").chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }
}

/// An error answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireError {
    /// What went wrong.
    #[prost(enumeration = "Code", tag = "1")]
    pub code: i32,
    /// For people: what happened and what to do next, in lower case.
    #[prost(string, tag = "2")]
    pub message: String,
    /// The leader, with `NotLeader`, when known.
    #[prost(message, optional, tag = "3")]
    pub leader: Option<Replica>,
    /// The replicas, with `NotHere` and `NotLeader`, when known.
    #[prost(message, repeated, tag = "4")]
    pub replicas: Vec<Replica>,
    /// A number that the code explains.
    #[prost(uint64, tag = "5")]
    pub detail: u64,
}

impl WireError {
    /// An error with a code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), ..Self::default() }
    }

    /// The same error with its number.
    #[must_use]
    pub fn with_detail(mut self, detail: u64) -> Self {
        self.detail = detail;
        self
    }
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for WireError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_where_users_tell_them_apart() {
        let codes = [
            Code::UnknownTopic,
            Code::UnknownFunction,
            Code::TooLarge,
            Code::BadComponent,
            Code::NoQuorum,
            Code::Unreachable,
        ];
        assert_eq!(codes.map(Code::exit_code), [10, 11, 17, 18, 19, 21]);
        assert_eq!(Code::UnknownTopic.name(), "unknown-topic");
    }
}
