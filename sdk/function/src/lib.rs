//! The guest library for Canal functions.
