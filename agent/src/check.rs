//! Tells which collectors work on this host, and why others don't.
