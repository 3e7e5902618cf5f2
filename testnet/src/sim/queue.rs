//! What will happen, in the order of its time; what is due at the same time happens in the order in which it was put in.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Microseconds since the beginning of a run.
pub type Micros = u64;

struct Due<T> {
    at: Micros,
    number: u64,
    what: T,
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Everything that will happen.
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<Due<T>>>,
    numbers: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), numbers: 0 }
    }
}

impl<T> Queue<T> {
    /// Puts something in.
    pub fn push(&mut self, at: Micros, what: T) {
        self.numbers += 1;
        self.heap.push(Reverse(Due { at, number: self.numbers, what }));
    }

    /// What happens next, and when.
    pub fn pop(&mut self) -> Option<(Micros, T)> {
        self.heap.pop().map(|Reverse(due)| (due.at, due.what))
    }

    /// When something happens next.
    pub fn next_at(&self) -> Option<Micros> {
        self.heap.peek().map(|Reverse(due)| due.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_together_happens_in_the_order_it_was_put_in() {
        let mut queue = Queue::default();
        for (at, what) in [(5, "c"), (1, "a"), (5, "d"), (2, "b"), (5, "e")] {
            queue.push(at, what);
        }
        assert_eq!(queue.next_at(), Some(1));
        let order: Vec<&str> = std::iter::from_fn(|| queue.pop()).map(|(_, what)| what).collect();
        assert_eq!(order, ["a", "b", "c", "d", "e"]);
    }
}
