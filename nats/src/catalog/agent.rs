//! The agent itself.

use super::*;

pub const AGENT: MeasurementSpec =
    MeasurementSpec { name: "agent", description: "The agent itself", tags: &[], fields: &[] };
