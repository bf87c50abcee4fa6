//! The service as its users see it: a real broker, a real lake, real HTTP and WebSocket clients.

mod counters;
mod events;
mod faults;
mod fleet;
mod harness;
mod live;
mod parameters;
mod queries;
mod report;
mod rules;
