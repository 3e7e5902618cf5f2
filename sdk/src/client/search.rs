//! Whom to ask next. No IO: a queue of places, each asked once a round and never while it still owes an answer.

use std::collections::VecDeque;

use crate::pool::Place;

#[derive(Debug, Default)]
pub(super) struct Search {
    queue: VecDeque<Place>,
    /// Asked in this round.
    tried: Vec<Place>,
    /// Asked, in any round, and not answered yet.
    waiting: Vec<Place>,
}

impl Search {
    /// Begins a round: everybody may be asked again.
    pub(super) fn round(&mut self, places: Vec<Place>) {
        self.tried.clear();
        self.queue = places.into();
    }

    /// A hint that this place should be asked before the others.
    pub(super) fn first(&mut self, place: Place) {
        self.queue.push_front(place);
    }

    /// One more place, behind the others.
    pub(super) fn last(&mut self, place: Place) {
        self.queue.push_back(place);
    }

    /// Whether nobody is left to ask in this round.
    pub(super) fn is_exhausted(&self) -> bool {
        !self.queue.iter().any(|place| self.may_ask(place))
    }

    /// Whom to ask now.
    pub(super) fn next(&mut self) -> Option<Place> {
        while let Some(place) = self.queue.pop_front() {
            if self.may_ask(&place) {
                self.tried.push(place.clone());
                self.waiting.push(place.clone());
                return Some(place);
            }
        }
        None
    }

    /// This place has answered, or never will.
    pub(super) fn done(&mut self, place: &Place) {
        self.waiting.retain(|other| !other.same(place));
    }

    fn may_ask(&self, place: &Place) -> bool {
        !self.tried.iter().chain(&self.waiting).any(|other| other.same(place))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn drain(search: &mut Search) -> Vec<String> {
        std::iter::from_fn(|| search.next()).map(|place| place.addresses[0].clone()).collect()
    }

    #[test]
    fn each_place_is_asked_once_a_round_and_hints_come_first() {
        let mut search = Search::default();
        search.round(vec![Place::address("a"), Place::address("b")]);
        let a = search.next().unwrap();
        search.done(&a);
        search.last(Place::address("c"));
        search.first(Place::address("b"));
        search.first(Place::address("a"));
        assert!(!search.is_exhausted());
        assert_eq!(drain(&mut search), ["b", "c"]);
        assert!(search.is_exhausted());
    }

    #[test]
    fn who_owes_an_answer_is_not_asked_again_in_the_next_round() {
        let mut search = Search::default();
        search.round(vec![Place::address("a"), Place::address("b")]);
        assert_eq!(drain(&mut search), ["a", "b"]);
        search.done(&Place::address("b"));
        search.round(vec![Place::address("a"), Place::address("b")]);
        assert_eq!(drain(&mut search), ["b"]);
    }
}
