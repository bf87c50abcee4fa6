//! How the agent's custom sources do.

use super::*;
use FieldKind::Gauge;
use FieldType::{Bool, Integer};

const JOB: TagSpec = tag("job", "The source's name in the agent's configuration");

const fn up(description: &'static str) -> FieldSpec {
    field("up", Bool, Gauge, "bool", description, ("", ""))
}

const REFUSED: FieldSpec =
    field("refused", Integer, Gauge, "count", "Values and lines that could not be read or sent", ("", ""));

pub const EXEC: MeasurementSpec = MeasurementSpec {
    name: "exec",
    description: "Runs of the commands that `[[exec]]` names",
    tags: &[JOB],
    fields: &[
        up("Whether the command succeeded and printed what can be read"),
        gauge("duration_seconds", "seconds", "Time that the run took", ("", "")),
        count("values", "Values that were sent", ("", "")),
        REFUSED,
    ],
};

pub const SCRAPE: MeasurementSpec = MeasurementSpec {
    name: "scrape",
    description: "Scrapes of the Prometheus exporters that `[[scrape]]` names",
    tags: &[JOB],
    fields: &[
        up("Whether the exporter answered with what can be read"),
        gauge("duration_seconds", "seconds", "Time that the scrape took", ("", "")),
        count("values", "Values that were sent", ("", "")),
        REFUSED,
    ],
};
