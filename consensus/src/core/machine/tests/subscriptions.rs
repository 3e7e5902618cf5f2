//! Durable subscriptions.

use canal_proto::limits::{MAX_SUBSCRIPTION_NAME, MAX_SUBSCRIPTIONS};
use canal_proto::log::{Advance, SubscriptionChange, SubscriptionOp, Trim};

use super::*;

fn change(name: &str, holder: &'static str, op: SubscriptionOp) -> SubscriptionChange {
    SubscriptionChange { topic: 3, name: name.into(), op: Some(op), holder: holder.into(), again: false }
}

fn open(from: u64) -> SubscriptionOp {
    SubscriptionOp::Open(from)
}

fn advance(session: u64, next: u64) -> SubscriptionOp {
    SubscriptionOp::Advance(Advance { session, next })
}

fn row(name: &str, next: u64, session: u64, holder: &'static str) -> Subscription {
    Subscription { topic: 3, name: name.into(), next, session, changed_ms: 1000, holder: holder.into() }
}

impl Bench {
    /// Asserts that a change comes to this row, which stands unless it was removed.
    #[track_caller]
    fn subscribes(&mut self, change: SubscriptionChange, want: Subscription) {
        let removed = matches!(change.op, Some(SubscriptionOp::Remove(_)));
        let session = if removed { 0 } else { want.session };
        let effect = Effect::Subscription { topic: TopicId(3), name: want.name.clone(), session };
        assert_eq!(self.run(Kind::Subscription(change)), (Reply::Subscription(Ok(want.clone())), vec![effect]));
        assert_eq!(self.subscription(&want.name), (!removed).then_some(want));
    }

    /// Asserts that a change comes to this answer, and changes nothing.
    #[track_caller]
    fn unchanged(&mut self, change: SubscriptionChange, want: Result<Subscription, WireError>) {
        let before = self.kv.snapshot();
        assert_eq!(self.run(Kind::Subscription(change)), (Reply::Subscription(want), vec![]));
        assert_eq!(self.kv.snapshot(), before);
    }

    fn subscription(&self, name: &str) -> Option<Subscription> {
        self.row(keys().make(Table::Subscriptions, &[&3u64.to_be_bytes(), name.as_bytes()]))
    }
}

/// Topic 3 with events 2 to 5; the two before are gone. The next entry is the 8th.
fn bench() -> Bench {
    let mut bench = Bench::with(&[(3, "a")], &[]);
    (1..=5).for_each(|sequence| drop(bench.append(vec![item(3, 1, sequence, if sequence == 5 { 2 } else { 1 })])));
    bench.run(Kind::Trim(Trim { topic: 3, before: 2 }));
    assert_eq!((bench.topic(3).unwrap().oldest, bench.topic(3).unwrap().next, bench.index), (2, 6, 7));
    bench
}

fn taken(name: &str) -> Result<Subscription, WireError> {
    let message = format!("the durable subscription `{name}` was opened elsewhere since; this one ends");
    Err(WireError::new(Code::TakenOver, message))
}

fn unknown(name: &str) -> Result<Subscription, WireError> {
    let message = format!("no durable subscription `{name}`; `canal subscription ls` lists what there is");
    Err(WireError::new(Code::UnknownSubscription, message))
}

#[test]
fn a_new_one_begins_at_the_nearest_offset_that_there_is() {
    let mut bench = bench();
    bench.subscribes(change("a", "", open(0)), row("a", 2, 8, ""));
    bench.subscribes(change("b", "", open(3)), row("b", 3, 9, ""));
    bench.subscribes(change("c", "", open(u64::MAX)), row("c", 6, 10, ""));
    bench.subscribes(change("b", "", SubscriptionOp::Remove(true)), row("b", 3, 9, ""));
    bench.unchanged(change("b", "", SubscriptionOp::Remove(true)), unknown("b"));
    bench.unchanged(change("b", "", advance(9, 4)), unknown("b"));
}

#[test]
fn a_cursor_is_moved_forward_by_its_session() {
    let mut bench = bench();
    bench.subscribes(change("s", "one", open(0)), row("s", 2, 8, "one"));
    bench.subscribes(change("s", "", advance(8, 4)), row("s", 4, 8, "one"));
    for known in [4, 3, 0] {
        bench.unchanged(change("s", "", advance(8, known)), Ok(row("s", 4, 8, "one")));
    }
    let ahead = WireError::new(Code::OutOfRange, "offset 7 is not there yet; the next event gets 6").with_detail(6);
    bench.unchanged(change("s", "", advance(8, 7)), Err(ahead));
    // opened again it goes on where it was, and the earlier session moves it no more, unless its holder is the same
    bench.subscribes(change("s", "two", open(0)), row("s", 4, 14, "two"));
    for holder in ["", "one"] {
        bench.unchanged(change("s", holder, advance(8, 5)), taken("s"));
    }
    bench.subscribes(change("s", "two", advance(8, 5)), row("s", 5, 14, "two"));
    bench.subscribes(change("s", "", advance(14, 6)), row("s", 6, 14, "two"));
    // without a holder, nobody comes back
    bench.subscribes(change("s", "", open(0)), row("s", 6, 19, ""));
    bench.unchanged(change("s", "", advance(14, 6)), taken("s"));
}

#[test]
fn whoever_lost_its_connection_does_not_take_it_back_from_another() {
    let mut bench = bench();
    let again = |holder| SubscriptionChange { again: true, ..change("s", holder, open(0)) };
    bench.unchanged(again("one"), unknown("s"));
    bench.subscribes(change("s", "one", open(3)), row("s", 3, 9, "one"));
    bench.subscribes(again("one"), row("s", 3, 10, "one"));
    bench.unchanged(again("two"), taken("s"));
    bench.subscribes(change("s", "two", open(0)), row("s", 3, 12, "two"));
    bench.unchanged(again("one"), taken("s"));
}

#[test]
fn one_that_fell_behind_stays_where_it_was() {
    let mut bench = bench();
    bench.subscribes(change("s", "", open(0)), row("s", 2, 8, ""));
    bench.run(Kind::Trim(Trim { topic: 3, before: 4 }));
    assert_eq!(bench.topic(3).unwrap().oldest, 4, "it does not hold retention");
    bench.subscribes(change("s", "", open(0)), row("s", 2, 10, ""));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut bench = bench();
    let refused = |code, message: &str| Err(WireError::new(code, message));
    let elsewhere = SubscriptionChange { topic: 9, ..change("s", "", open(0)) };
    let unknown = "topic 0000000000000009 is not, or no longer, in this group; resolve its name again";
    bench.unchanged(elsewhere, refused(Code::UnknownTopic, unknown));
    let plain = "`a/b` is not a plain name; use letters, digits, `-`, `_` and `.`";
    bench.unchanged(change("a/b", "", open(0)), refused(Code::InvalidArgument, plain));
    let long = "n".repeat(MAX_SUBSCRIPTION_NAME + 1);
    let error = WireError::new(Code::TooLarge, "the name has 129 bytes; at most 128 are allowed").with_detail(128);
    bench.unchanged(change(&long, "", open(0)), Err(error));
    let holder = SubscriptionChange { holder: vec![0; 33].into(), ..change("s", "", open(0)) };
    bench.unchanged(holder, refused(Code::InvalidArgument, "a holder has at most 32 bytes"));
    let newer = SubscriptionChange { op: None, ..change("s", "", open(0)) };
    let message = "a change that this version does not know; update the peer";
    bench.unchanged(newer, refused(Code::InvalidArgument, message));
    for number in 0..MAX_SUBSCRIPTIONS {
        let name = format!("n{number}");
        let key = keys().make(Table::Subscriptions, &[&3u64.to_be_bytes(), name.as_bytes()]);
        bench.put(key, &row(&name, 2, 1, ""));
    }
    let message = "a topic has at most 1024 durable subscriptions; remove one first";
    let full = Err(WireError::new(Code::TooLarge, message).with_detail(1024));
    bench.unchanged(change("s", "", open(0)), full);
    bench.subscribes(change("n7", "", open(0)), row("n7", 2, bench.index + 1, ""));
}
