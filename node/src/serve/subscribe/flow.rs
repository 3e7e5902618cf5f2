//! A subscriber's credit: bytes of events that it takes. No IO, no clock.

use super::batch::Encoded;

/// What is left of a subscriber's credit. An event is sent when anything is left; one that is larger than that makes a
/// debt, which is paid before more is sent. So a subscriber holds its credit and one event at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit(i64);

impl Credit {
    /// The credit to begin with.
    pub fn new(bytes: u64) -> Self {
        Self(i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// So many more bytes may be sent.
    pub fn grant(&mut self, bytes: u64) {
        self.0 = self.0.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Bytes left; 0 when nothing may be sent.
    pub fn left(self) -> u64 {
        u64::try_from(self.0).unwrap_or(0)
    }

    /// Takes what may be sent off the front of these events; gives their number.
    pub fn take(&mut self, events: &[Encoded]) -> usize {
        let mut taken = 0;
        for event in events {
            if self.0 <= 0 {
                break;
            }
            self.0 = self.0.saturating_sub_unsigned(event.cost());
            taken += 1;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn events(sizes: &[usize]) -> Vec<Encoded> {
        let encoded = |(size, offset): (&usize, u64)| Encoded { offset, bytes: Bytes::from(vec![0; *size]) };
        sizes.iter().zip(0..).map(encoded).collect()
    }

    #[test]
    fn events_are_sent_while_anything_is_left_and_debts_are_paid_first() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.take(&events(&[40, 40, 40, 1])), 3);
        assert_eq!((credit.left(), credit.take(&events(&[1]))), (0, 0));
        credit.grant(20);
        assert_eq!(credit.take(&events(&[1])), 0, "the debt of 20 is paid, nothing is left");
        credit.grant(1);
        assert_eq!(credit.take(&events(&[1_000, 1])), 1);
        credit.grant(u64::MAX);
        assert_eq!(credit.take(&events(&[1_000_000, 1])), 2, "a grant without bound is one");
    }
}
