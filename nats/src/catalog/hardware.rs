//! Sensors and power.

use super::*;

pub const TEMPERATURE: MeasurementSpec = MeasurementSpec {
    name: "temperature",
    description: "Temperature sensors, where the host has some",
    tags: &[tag(
        "sensor",
        "Chip and label of the sensor, and its device where several have these; or kind of thermal zone",
    )],
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

pub const FAN: MeasurementSpec = MeasurementSpec {
    name: "fan",
    description: "Fans, where the host has some that a chip watches",
    tags: &[tag("fan", "Chip and label of the fan, and its device where several have these")],
    fields: &[
        gauge(
            "speed_rpm",
            "rpm",
            "Revolutions per minute; nil while the fan is faulty",
            ("hw.fan.speed", "node_hwmon_fan_rpm"),
        ),
        gauge(
            "minimum_rpm",
            "rpm",
            "Speed below which the chip raises an alarm, where one is set",
            ("hw.fan.speed.limit", "node_hwmon_fan_min_rpm"),
        ),
        flag("alarm", "Whether the chip raises an alarm, where it can", ("hw.status", "node_hwmon_fan_alarm")),
        flag(
            "fault",
            "Whether the fan is broken or not connected, where the chip can tell",
            ("hw.status", "node_hwmon_fan_fault"),
        ),
    ],
};

pub const POWER: MeasurementSpec = MeasurementSpec {
    name: "power",
    description: "Power drawn and supplied: by processors, as sensors measure it, and by batteries and other supplies",
    tags: &[
        tag("source", "What draws or supplies, such as `package-0`, `power_meter power1` or `BAT0`"),
        tag(
            "kind",
            "`rapl` of processors, `sensor`, or the kind of supply: `battery`, `mains`, `usb`, `ups`, `wireless`",
        ),
    ],
    fields: &[
        gauge(
            "power_watts",
            "watts",
            "Power now; of `rapl` the mean since the previous sample; of a battery in or out, as `status` says",
            ("hw.power", "node_hwmon_power_average_watt"),
        ),
        field(
            "energy_joules_total",
            FieldType::Float,
            FieldKind::Counter,
            "joules",
            "Energy drawn, of `rapl`",
            ("hw.energy", "node_rapl_package_joules_total"),
        ),
        gauge("voltage_volts", "volts", "Voltage of a supply", ("hw.voltage", "node_power_supply_voltage_volt")),
        flag(
            "online",
            "Whether a supply other than a battery is plugged in",
            ("hw.status", "node_power_supply_online"),
        ),
        text(
            "status",
            "What a battery does: `charging`, `discharging`, `full`, `not charging`, `unknown`",
            ("hw.status", ""),
        ),
        percent("capacity_percent", "Charge of a battery", ("hw.battery.charge", "node_power_supply_capacity")),
        gauge("stored_watt_hours", "watt_hours", "Energy in a battery", ("", "node_power_supply_energy_watthour")),
        gauge("full_watt_hours", "watt_hours", "Energy in it when it is full", ("", "node_power_supply_energy_full")),
        gauge(
            "design_watt_hours",
            "watt_hours",
            "Energy in it when it was new and full",
            ("", "node_power_supply_energy_full_design"),
        ),
        total(
            "cycles_total",
            "count",
            "Times that a battery was emptied and filled",
            ("", "node_power_supply_cyclecount"),
        ),
    ],
};

pub const THROTTLE: MeasurementSpec = MeasurementSpec {
    name: "throttle",
    description: "How often Intel processors ran slower to stay cool",
    tags: &[
        tag("package", "Number of the package, which is what sits in one socket"),
        tag("core", "Number of the core in the package, or `package` for what befell the whole of it"),
    ],
    fields: &[
        total("throttles_total", "count", "Times that it began to throttle", ("", "node_cpu_core_throttles_total")),
        field(
            "throttled_seconds_total",
            FieldType::Float,
            FieldKind::Counter,
            "seconds",
            "Time spent throttled; nil before Linux 5.5",
            ("", ""),
        ),
    ],
};
