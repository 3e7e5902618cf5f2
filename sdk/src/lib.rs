//! The client library of Canal.
