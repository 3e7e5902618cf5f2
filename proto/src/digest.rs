//! Digests of what a run read.
//!
//! Where a run reads and where its outcome is applied, the same bytes must give the same digest, on every peer and
//! in every later version: they stand in the log, in [`crate::log::ReadCheck`] and [`crate::log::ScanCheck`].

use bytes::Bytes;

/// Length of a digest in bytes: 128 bits, so that a wrong match is out of reach and a check stays small.
pub const LENGTH: usize = 16;

fn cut(hash: blake3::Hash) -> Bytes {
    hash.as_bytes().first_chunk::<LENGTH>().map(|first| Bytes::copy_from_slice(first)).unwrap_or_default()
}

/// Digest of a row's value: the first 16 bytes of its BLAKE3; empty when there is no row.
pub fn value(value: Option<&[u8]>) -> Bytes {
    value.map(|bytes| cut(blake3::hash(bytes))).unwrap_or_default()
}

/// Digest of the rows of a range, in key order: the first 16 bytes of the BLAKE3 over every row's key and value,
/// each behind its length (u32, little-endian). Keys and values are far below 4 GiB by
/// [`crate::limits::MAX_STATE_KEY`] and [`crate::limits::MAX_STATE_VALUE`].
pub fn rows<'a>(rows: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Bytes {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in rows {
        for part in [key.as_bytes(), value] {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            hasher.update(&length.to_le_bytes());
            hasher.update(part);
        }
    }
    cut(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn digests_are_pinned() {
        assert_eq!(hex(&value(None)), "");
        // the first half of BLAKE3 of nothing and of "abc", as its own test vectors have them
        assert_eq!(hex(&value(Some(b""))), "af1349b9f5f9a1a6a0404dea36dcc949");
        assert_eq!(hex(&value(Some(b"abc"))), "6437b3ac38465133ffb63b75273a8db5");
        assert_eq!(hex(&rows([])), "af1349b9f5f9a1a6a0404dea36dcc949");
        let bytes = b"\x01\0\0\0a\x02\0\0\0xy\x02\0\0\0bc\0\0\0\0";
        assert_eq!(rows([("a", b"xy".as_slice()), ("bc", b"")]), value(Some(bytes)));
    }

    #[test]
    fn rows_do_not_run_into_each_other() {
        assert_ne!(rows([("ab", b"c".as_slice())]), rows([("a", b"bc".as_slice())]));
        assert_ne!(rows([("a", b"".as_slice()), ("b", b"")]), rows([("a", b"\x01\0\0\0b".as_slice())]));
    }
}
