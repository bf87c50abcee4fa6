//! Samples that wait on disk while the broker is away.
