//! What targets do with their bytes before a decoder sees them.

/// Takes parts off the front of an input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a>(pub &'a [u8]);

impl<'a> Parts<'a> {
    /// One byte; 0 behind the end.
    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Eight bytes, little-endian; what is not there is 0.
    pub(super) fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, at| number | u64::from(self.byte()) << (8 * at))
    }

    /// A part with its length before it, in two bytes, little-endian; what there is when there is less. None at the end.
    pub(super) fn part(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let length = usize::from(self.byte()) | usize::from(self.byte()) << 8;
        let (part, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Some(part)
    }
}
