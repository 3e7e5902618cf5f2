//! What raft-rs sees of a log that is cut and begun anew.
