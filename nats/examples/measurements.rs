//! Writes docs/measurements.md from the catalog: `make docs`. A test compares the two.

use std::fmt::Write as _;

use plimsoll_nats::catalog::{FieldKind, FieldSpec, MEASUREMENTS, MeasurementSpec};

/// Where the page is.
pub const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/measurements.md");

const HEAD: &str = "\
# Measurements

<!-- Written by `make docs` from nats/src/catalog/. Edit that, not this. -->

What agents send without being told to, and `plimsoll`, which the services send. Each measurement is a table of the [lake](user-guide.md#query-with-sql) with the columns `ts`,
`host`, its tags and its fields, and a subject `plimsoll.metrics.<host>.<measurement>`. What a host cannot tell, for want of hardware, kernel
or permission, is nil or has no row: `plimsoll-agent check` says why. Counters only go up, until their source starts anew; gauges go up
and down. The last column names the metrics of [OpenTelemetry](https://opentelemetry.io/docs/specs/semconv/system/system-metrics/) and, after
it, of [node_exporter](https://github.com/prometheus/node_exporter) that hold the same, sometimes in another unit or split by an attribute.

";

fn main() -> std::io::Result<()> {
    std::fs::write(PATH, page())
}

/// The whole page.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("| measurement | what it tells |\n| --- | --- |\n");
    for spec in MEASUREMENTS {
        line(&mut page, &[&format!("[`{name}`](#{name})", name = spec.name), spec.description]);
    }
    for spec in MEASUREMENTS {
        section(&mut page, spec);
    }
    page
}

fn section(page: &mut String, spec: &MeasurementSpec) {
    page.push_str(&format!("\n## {}\n\n{}.\n", spec.name, spec.description));
    if !spec.tags.is_empty() {
        page.push_str("\n| tag | what it is |\n| --- | --- |\n");
        for tag in spec.tags {
            line(page, &[&code(tag.name), tag.description]);
        }
    }
    if !spec.fields.is_empty() {
        page.push_str("\n| field | type | unit | kind | what it tells | known elsewhere as |\n");
        page.push_str("| --- | --- | --- | --- | --- | --- |\n");
        for field in spec.fields {
            self::field(page, field);
        }
    }
}

fn field(page: &mut String, spec: &FieldSpec) {
    let kind = match spec.kind {
        FieldKind::Gauge => "gauge",
        FieldKind::Counter => "counter",
    };
    let names: Vec<String> = [spec.opentelemetry, spec.node_exporter].into_iter().flatten().map(code).collect();
    let cells =
        [&code(spec.name), &*spec.field_type.to_string(), spec.unit, kind, spec.description, &names.join("<br>")];
    line(page, &cells);
}

fn code(name: &str) -> String {
    format!("`{name}`")
}

/// A row of a table.
fn line(page: &mut String, cells: &[&str]) {
    for cell in cells {
        write!(page, "| {} ", cell.replace('|', "\\|")).expect("a text takes everything");
    }
    page.push_str("|\n");
}
