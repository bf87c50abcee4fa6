//! The rows of graphics processors.

use super::{
    card::Card,
    processes::Process,
    reading::{Gauges, Identity, Reading},
};
use crate::rows::{Rows, Value, percent};

/// The tag `instance` of a whole processor.
const WHOLE: &str = "gpu";

/// Adds the row of a processor that answered, and one for each of its instances.
pub fn push(rows: &mut Rows, card: &Card, reading: &Reading) {
    let Some(identity) = &card.identity else {
        return;
    };
    push_row(rows, card, identity, WHOLE, &reading.gauges);
    for instance in &reading.instances {
        push_row(rows, card, identity, &instance.uuid, &instance.gauges);
    }
}

/// Adds the row of a processor of which is known only that it is lost or suspended.
pub fn push_silent(rows: &mut Rows, card: &Card) {
    if let Some(identity) = &card.identity
        && (card.is_lost() || card.is_suspended())
    {
        push_row(rows, card, identity, WHOLE, &Gauges::default());
    }
}

/// Adds the row of a process.
pub fn push_process(rows: &mut Rows, card: &Card, process: &Process, name: &str) {
    let Some(identity) = &card.identity else {
        return;
    };
    let utilization = process.utilization;
    rows.push(
        &[
            ("uuid", &identity.uuid),
            ("instance", process.instance.as_deref().unwrap_or(WHOLE)),
            ("pid", &process.pid.to_string()),
            ("name", name),
            ("type", process.kind),
        ],
        &[
            ("memory_used_bytes", process.used_bytes.into()),
            ("usage_percent", utilization.map(|used| used.usage_percent).into()),
            ("memory_busy_percent", utilization.map(|used| used.memory_busy_percent).into()),
            ("encoder_percent", utilization.map(|used| used.encoder_percent).into()),
            ("decoder_percent", utilization.map(|used| used.decoder_percent).into()),
        ],
    );
}

fn push_row(rows: &mut Rows, card: &Card, identity: &Identity, instance: &str, gauges: &Gauges) {
    let is_whole = instance == WHOLE;
    let memory_used = gauges.memory_used_bytes.zip(gauges.memory_total_bytes);
    let [graphics, sm, memory, video] = gauges.clocks_hertz;
    let throttling = gauges.throttling.as_ref();
    rows.push(
        &[("uuid", &identity.uuid), ("name", &identity.name), ("instance", instance)],
        &[
            ("index", identity.index.map(u64::from).filter(|_| is_whole).into()),
            ("pci_address", Value::Text(Some(&card.address))),
            ("available", (!card.is_lost()).into()),
            ("suspended", card.is_suspended().into()),
            ("mig_enabled", Value::Bool(gauges.mig_enabled)),
            ("usage_percent", gauges.usage_percent.into()),
            ("memory_busy_percent", gauges.memory_busy_percent.into()),
            ("encoder_percent", gauges.encoder_percent.into()),
            ("decoder_percent", gauges.decoder_percent.into()),
            ("memory_total_bytes", gauges.memory_total_bytes.into()),
            ("memory_used_bytes", gauges.memory_used_bytes.into()),
            ("memory_free_bytes", gauges.memory_free_bytes.into()),
            ("memory_used_percent", memory_used.and_then(|(used, total)| percent(used, total)).into()),
            ("temperature_celsius", gauges.temperature_celsius.into()),
            ("power_watts", gauges.power_watts.into()),
            ("power_limit_watts", gauges.power_limit_watts.into()),
            ("energy_joules_total", gauges.energy_joules_total.into()),
            ("graphics_clock_hertz", graphics.into()),
            ("sm_clock_hertz", sm.into()),
            ("memory_clock_hertz", memory.into()),
            ("video_clock_hertz", video.into()),
            ("fan_percent", gauges.fan_percent.into()),
            ("fan_speed_rpm", gauges.fan_speed_rpm.into()),
            ("pcie_received_bytes_per_second", gauges.pcie_received_bytes_per_second.into()),
            ("pcie_sent_bytes_per_second", gauges.pcie_sent_bytes_per_second.into()),
            ("pcie_link_generation", gauges.pcie_link_generation.into()),
            ("pcie_link_width", gauges.pcie_link_width.into()),
            ("throttle_reasons", throttling.map(|throttling| throttling.reasons.as_str()).into()),
            ("thermal_throttling", Value::Bool(throttling.map(|throttling| throttling.thermal))),
            ("power_throttling", Value::Bool(throttling.map(|throttling| throttling.power))),
            ("ecc_corrected_volatile_total", gauges.ecc.corrected_volatile.into()),
            ("ecc_uncorrected_volatile_total", gauges.ecc.uncorrected_volatile.into()),
            ("ecc_corrected_aggregate_total", gauges.ecc.corrected_aggregate.into()),
            ("ecc_uncorrected_aggregate_total", gauges.ecc.uncorrected_aggregate.into()),
            ("xid_errors_total", card.xids.filter(|_| is_whole).into()),
        ],
    );
}
