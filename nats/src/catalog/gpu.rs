//! NVIDIA graphics processors.

use super::*;

const UTILIZATION: &str = "hw.gpu.utilization";
const MEMORY_USAGE: &str = "hw.gpu.memory.usage";
const ERRORS: &str = "hw.errors";

pub const GPU: MeasurementSpec = MeasurementSpec {
    name: "gpu",
    description: "NVIDIA graphics processors; what one does not support or tell is nil",
    tags: &[
        tag("uuid", "Identifier that the processor keeps"),
        tag("name", "Name of the product"),
        tag("instance", "`gpu` for the processor as a whole, else the UUID of a part that MIG has set apart"),
    ],
    fields: &[
        count("index", "Number that `nvidia-smi` shows, which may change when the host boots", ("", "")),
        text("pci_address", "Domain, bus, device and function", ("", "")),
        flag(
            "available",
            "Whether it is there; false once it has fallen off the bus or must be reset",
            ("hw.status", ""),
        ),
        flag("suspended", "Whether the kernel has suspended it, so that nothing else is told", ("hw.status", "")),
        flag("mig_enabled", "Whether it is divided into instances (MIG)", ("", "")),
        percent("usage_percent", "Time that at least one kernel ran", (UTILIZATION, "")),
        percent("memory_busy_percent", "Time that memory was read or written", ("", "")),
        percent("encoder_percent", "Use of the video encoder", (UTILIZATION, "")),
        percent("decoder_percent", "Use of the video decoder", (UTILIZATION, "")),
        bytes("memory_total_bytes", "Memory", ("hw.gpu.memory.limit", "")),
        bytes("memory_used_bytes", "Memory that programs use", (MEMORY_USAGE, "")),
        bytes("memory_free_bytes", "Memory that nothing uses", ("", "")),
        percent("memory_used_percent", "Used in percent of all memory", ("hw.gpu.memory.utilization", "")),
        gauge("temperature_celsius", "celsius", "Temperature of the chip", ("hw.temperature", "")),
        gauge("power_watts", "watts", "Power now", ("hw.power", "")),
        gauge("power_limit_watts", "watts", "Power to which it is held", ("", "")),
        field(
            "energy_joules_total",
            FieldType::Float,
            FieldKind::Counter,
            "joules",
            "Energy drawn since the driver was loaded",
            ("hw.energy", ""),
        ),
        gauge("graphics_clock_hertz", "hertz", "Clock of graphics", ("", "")),
        gauge("sm_clock_hertz", "hertz", "Clock of the multiprocessors", ("", "")),
        gauge("memory_clock_hertz", "hertz", "Clock of the memory", ("", "")),
        gauge("video_clock_hertz", "hertz", "Clock of video encoder and decoder", ("", "")),
        percent(
            "fan_percent",
            "Intended speed of the fastest fan in percent of its highest",
            ("hw.fan.speed_ratio", ""),
        ),
        gauge("fan_speed_rpm", "rpm", "Intended speed of the fastest fan", ("hw.fan.speed", "")),
        gauge("pcie_received_bytes_per_second", "bytes_per_second", "Traffic over PCIe to it", ("hw.gpu.io", "")),
        gauge("pcie_sent_bytes_per_second", "bytes_per_second", "Traffic over PCIe from it", ("hw.gpu.io", "")),
        count("pcie_link_generation", "Generation of PCIe at which it runs now", ("", "")),
        count("pcie_link_width", "Lanes of PCIe that it uses now", ("", "")),
        text("throttle_reasons", "Why clocks are held down, separated by commas; `none` when they are not", ("", "")),
        flag("thermal_throttling", "Whether clocks are held down by heat", ("", "")),
        flag("power_throttling", "Whether clocks are held down by the power limit or the supply", ("", "")),
        total(
            "ecc_corrected_volatile_total",
            "count",
            "Memory errors corrected since the driver was loaded",
            (ERRORS, ""),
        ),
        total(
            "ecc_uncorrected_volatile_total",
            "count",
            "Memory errors not corrected since the driver was loaded",
            (ERRORS, ""),
        ),
        total("ecc_corrected_aggregate_total", "count", "Memory errors corrected in its life", (ERRORS, "")),
        total("ecc_uncorrected_aggregate_total", "count", "Memory errors not corrected in its life", (ERRORS, "")),
        total("xid_errors_total", "count", "XID errors since the agent started", (ERRORS, "")),
    ],
};

pub const GPU_PROCESS: MeasurementSpec = MeasurementSpec {
    name: "gpu_process",
    description: "Processes on NVIDIA graphics processors",
    tags: &[
        tag("uuid", "Identifier of the processor"),
        tag("instance", "`gpu`, or the UUID of the part that MIG has set apart"),
        tag("pid", "Number of the process"),
        tag("name", "Name of the process"),
        tag("type", "What it does: `compute`, `graphics` or `compute,graphics`"),
    ],
    fields: &[
        bytes("memory_used_bytes", "Memory of the processor that it uses", (MEMORY_USAGE, "")),
        percent("usage_percent", "Time that its kernels ran", (UTILIZATION, "")),
        percent("memory_busy_percent", "Time that memory was read or written for it", ("", "")),
        percent("encoder_percent", "Its use of the video encoder", (UTILIZATION, "")),
        percent("decoder_percent", "Its use of the video decoder", (UTILIZATION, "")),
    ],
};
