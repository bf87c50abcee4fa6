//! Sensors and power.

use super::*;

pub const TEMPERATURE: MeasurementSpec = MeasurementSpec {
    name: "temperature",
    description: "Temperature sensors, where the host has some",
    tags: &[tag("sensor", "Chip and label of the sensor")],
    fields: &[
        gauge("temperature_celsius", "celsius", "Current reading", ("hw.temperature", "node_hwmon_temp_celsius")),
        gauge(
            "critical_celsius",
            "celsius",
            "Reading at which the hardware is in danger, where known",
            ("hw.temperature.limit", "node_hwmon_temp_crit_celsius"),
        ),
    ],
};

pub const FAN: MeasurementSpec = MeasurementSpec { name: "fan", description: "Fans", tags: &[], fields: &[] };

pub const POWER: MeasurementSpec = MeasurementSpec { name: "power", description: "Power", tags: &[], fields: &[] };

pub const THROTTLE: MeasurementSpec =
    MeasurementSpec { name: "throttle", description: "Processor throttling", tags: &[], fields: &[] };
