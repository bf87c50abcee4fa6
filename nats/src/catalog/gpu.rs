//! NVIDIA graphics processors.

use super::*;

pub const GPU: MeasurementSpec =
    MeasurementSpec { name: "gpu", description: "Graphics processors", tags: &[], fields: &[] };

pub const GPU_PROCESS: MeasurementSpec =
    MeasurementSpec { name: "gpu_process", description: "Processes on graphics processors", tags: &[], fields: &[] };
