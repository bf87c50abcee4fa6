//! Processes and containers.

use super::*;

pub const PROCESS: MeasurementSpec =
    MeasurementSpec { name: "process", description: "The largest and the watched processes", tags: &[], fields: &[] };

pub const PROCESSES: MeasurementSpec =
    MeasurementSpec { name: "processes", description: "All processes together", tags: &[], fields: &[] };

pub const CONTAINER: MeasurementSpec =
    MeasurementSpec { name: "container", description: "Containers", tags: &[], fields: &[] };
