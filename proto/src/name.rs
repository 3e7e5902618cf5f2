//! Topic names and patterns, with MQTT's meaning (MQTT 5.0, section 4.7).
//!
//! A name is one or more levels divided by `/`. In a pattern, `+` stands for exactly one level and `#`, as the
//! last level, for the level before it and everything below. A wildcard in the first level does not match names
//! that start with `$`: those are the system's. Unlike MQTT, an empty level is refused, since it is always a
//! mistake.

use std::fmt;
use std::str::FromStr;

use crate::limits::MAX_NAME;

/// Why a name or pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No character at all.
    #[error("a name can't be empty")]
    Empty,
    /// Longer than [`MAX_NAME`] bytes.
    #[error("a name has at most {MAX_NAME} bytes, this one has {0}")]
    TooLong(usize),
    /// `a//b`, `/a` or `a/`.
    #[error("`{0}` has an empty level; write levels as a/b/c")]
    EmptyLevel(String),
    /// White space or a control character.
    #[error("`{0}` holds white space or a control character")]
    BadCharacter(String),
    /// `+` or `#` in a name.
    #[error("`{0}` holds a wildcard; a topic's name can't")]
    Wildcard(String),
    /// A wildcard that shares its level with other characters, or `#` before the end.
    #[error("`{0}`: `+` and `#` stand alone in a level, and `#` stands last")]
    BadWildcard(String),
    /// `/` in a name of one level.
    #[error("`{0}` is not a plain name; use letters, digits, `-`, `_` and `.`")]
    NotPlain(String),
}

fn check(text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::Empty);
    }
    if text.len() > MAX_NAME {
        return Err(Error::TooLong(text.len()));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::BadCharacter(text.escape_debug().to_string()));
    }
    if text.split('/').any(str::is_empty) {
        return Err(Error::EmptyLevel(text.to_owned()));
    }
    Ok(())
}

/// Checks the name of a group, function, trigger, site or namespace: one level of letters, digits, `-`, `_`, `.`.
pub fn check_plain(text: &str) -> Result<(), Error> {
    check(text)?;
    if text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        Ok(())
    } else {
        Err(Error::NotPlain(text.to_owned()))
    }
}

/// The name of a topic, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(String);

impl TopicName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of the system's (`$…`): only the mesh itself creates and writes those.
    pub fn is_system(&self) -> bool {
        self.0.starts_with('$')
    }

    /// The topic of reports about steps in which groups' replicas changed.
    pub const STEPS: &str = "$mesh/steps";

    /// The topic where events go that a trigger could not handle.
    pub fn dead_letters(trigger: &str) -> String {
        format!("$dead/{trigger}")
    }
}

impl FromStr for TopicName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        check(text)?;
        if text.contains(['+', '#']) {
            return Err(Error::Wildcard(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pattern over topic names, checked. A plain name is a pattern that matches itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it holds no wildcard.
    pub fn is_plain(&self) -> bool {
        !self.0.contains(['+', '#'])
    }

    /// Whether it matches this topic name.
    pub fn matches(&self, name: &str) -> bool {
        if name.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut pattern = self.0.split('/');
        let mut levels = name.split('/');
        loop {
            match (pattern.next(), levels.next()) {
                (Some("#"), _) => return true,
                (Some("+"), Some(_)) => {}
                (Some(want), Some(have)) if want == have => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        check(text)?;
        let last = text.split('/').count() - 1;
        for (at, level) in text.split('/').enumerate() {
            let wild = level.contains(['+', '#']);
            if wild && (level.len() > 1 || (level == "#" && at != last)) {
                return Err(Error::BadWildcard(text.to_owned()));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Pattern>().is_ok_and(|p| p.matches(name))
    }

    #[test]
    fn patterns_have_mqtts_meaning() {
        // the examples of MQTT 5.0, 4.7.1 and 4.7.2
        for (pattern, name) in [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
            ("sport/#", "sport"),
            ("#", "a"),
            ("#", "a/b/c"),
            ("sport/tennis/+", "sport/tennis/player1"),
            ("+", "finance"),
            ("+/tennis/#", "sport/tennis/player1"),
            ("$SYS/#", "$SYS/broker"),
            ("a/b", "a/b"),
        ] {
            assert!(matches(pattern, name), "{pattern} should match {name}");
        }
        for (pattern, name) in [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "finance/shares"),
            ("#", "$SYS/broker"),
            ("+/monitor", "$SYS/monitor"),
            ("a/b", "a"),
            ("a", "a/b"),
        ] {
            assert!(!matches(pattern, name), "{pattern} should not match {name}");
        }
    }

    #[test]
    fn what_is_refused_says_why() {
        assert_eq!("".parse::<TopicName>(), Err(Error::Empty));
        assert_eq!("a//b".parse::<TopicName>(), Err(Error::EmptyLevel("a//b".into())));
        assert_eq!("a/+".parse::<TopicName>(), Err(Error::Wildcard("a/+".into())));
        assert_eq!("a b".parse::<TopicName>(), Err(Error::BadCharacter("a b".into())));
        assert_eq!("a/#/b".parse::<Pattern>(), Err(Error::BadWildcard("a/#/b".into())));
        assert_eq!("a/b+".parse::<Pattern>(), Err(Error::BadWildcard("a/b+".into())));
        assert_eq!("x".repeat(256).parse::<Pattern>(), Err(Error::TooLong(256)));
        assert_eq!(check_plain("a/b"), Err(Error::NotPlain("a/b".into())));
    }
}
