//! Names, patterns and identifiers as text.

use std::fmt::Display;
use std::str::FromStr;

use canal_proto::limits::MAX_NAME;
use canal_proto::name::check_plain;
use canal_proto::{ContentHash, GroupId, MeshId, Pattern, PeerId, TopicName};

/// What is taken is written as it was read, or at least reads as the same again.
fn text<T: FromStr + Display + PartialEq>(text: &str, exact: bool) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    let written = value.to_string();
    assert!(!exact || written == text, "`{text}` is written as `{written}`");
    assert!(written.parse::<T>().is_ok_and(|again| again == value), "`{written}` reads as something else");
    Some(value)
}

/// What a pattern means, said in another way than [`Pattern::matches`] does it.
fn matches(pattern: &[&str], name: &[&str]) -> bool {
    match (pattern, name) {
        (["#"], _) | ([], []) => true,
        ([level, pattern @ ..], [first, name @ ..]) if *level == "+" || level == first => matches(pattern, name),
        _ => false,
    }
}

/// A pattern and a name, with a line break between them; and the first line as each kind of identifier.
pub fn names(data: &[u8]) -> bool {
    let Ok(data) = std::str::from_utf8(data) else { return false };
    let (first, second) = data.split_once('\n').unwrap_or((data, data));
    let peer = text::<PeerId>(first, true).is_some();
    let mesh = text::<MeshId>(first, false).is_some();
    let hash = text::<ContentHash>(first, false).is_some();
    let group = text::<GroupId>(first, false).is_some();
    if check_plain(first).is_ok() {
        assert!(first.len() <= MAX_NAME && first.parse::<TopicName>().is_ok());
    }
    let name = text::<TopicName>(second, true);
    let Some(pattern) = text::<Pattern>(first, true) else { return peer || mesh || hash || group };
    assert!(first.len() <= MAX_NAME);
    let Some(name) = name else { return false };
    let (wanted, given): (Vec<&str>, Vec<&str>) = (first.split('/').collect(), name.as_str().split('/').collect());
    // wildcards in the first level do not reach the system's names
    let hidden = name.is_system() && wanted.first().is_some_and(|level| *level == "+" || *level == "#");
    assert_eq!(pattern.matches(name.as_str()), !hidden && matches(&wanted, &given), "`{first}` on `{second}`");
    true
}
