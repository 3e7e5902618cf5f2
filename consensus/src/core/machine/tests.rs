//! What a committed entry does, to the byte.
