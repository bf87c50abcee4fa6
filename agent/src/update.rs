//! Replaces the agent by a newer release.
