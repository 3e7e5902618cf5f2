//! The error of this library: the code and message that travelled, or that were made here.
//!
//! Programs look at [`Error::code`]; people read the message, which says what to do next.

use canal_proto::peer::Replica;
use canal_proto::{Code, WireError};

/// What went wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct Error {
    /// For programs.
    pub code: Code,
    /// For people, in lower case.
    pub message: String,
    /// A number that the code explains.
    pub detail: u64,
    /// The leader, with [`Code::NotLeader`], when known.
    pub leader: Option<Replica>,
    /// The replicas, with [`Code::NotHere`] and [`Code::NotLeader`], when known.
    pub replicas: Vec<Replica>,
    /// An earlier try of the same call may have taken effect before this answer: that a topic is unknown may then
    /// mean that it was removed by this very call.
    pub repeated: bool,
}

impl Error {
    /// An error with a code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: 0, leader: None, replicas: Vec::new(), repeated: false }
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Code::Unreachable, message)
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(Code::Malformed, message)
    }

    /// The answer has a shape that does not belong to the question.
    pub(crate) fn unexpected(question: &str) -> Self {
        Self::malformed(format!("the answer does not belong to {question}: do client and peer have one version?"))
    }
}

impl From<WireError> for Error {
    fn from(wire: WireError) -> Self {
        let code = Code::try_from(wire.code).unwrap_or(Code::Unspecified);
        let WireError { message, leader, replicas, detail, .. } = wire;
        Self { code, message, detail, leader, replicas, repeated: false }
    }
}

impl From<Error> for WireError {
    fn from(error: Error) -> Self {
        Self {
            code: error.code.into(),
            message: error.message,
            leader: error.leader,
            replicas: error.replicas,
            detail: error.detail,
        }
    }
}

impl From<canal_proto::frame::Error> for Error {
    fn from(error: canal_proto::frame::Error) -> Self {
        let code = match &error {
            canal_proto::frame::Error::TooLarge(_) => Code::TooLarge,
            _ => Code::Malformed,
        };
        Self::new(code, error.to_string())
    }
}

impl From<canal_proto::name::Error> for Error {
    fn from(error: canal_proto::name::Error) -> Self {
        Self::new(Code::InvalidArgument, error.to_string())
    }
}
