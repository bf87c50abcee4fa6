//! Rollups and retention on a real lake.

mod apart;
mod fixture;
mod history;
mod retention;
