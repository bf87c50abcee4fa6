//! `GET /api/measurements`: what is built in and what is stored.

use std::collections::BTreeMap;

use axum::{Json, extract::State, http::Uri};
use plimsoll_lake::query::StoredMeasurement;
use plimsoll_nats::{
    batch::FieldType,
    catalog::{self, FieldKind, FieldSpec, MeasurementSpec},
};
use serde::Serialize;

use crate::{app::App, params::Params, problem::ApiError};

/// All measurements by name.
#[derive(Debug, Serialize)]
pub struct MeasurementsAnswer {
    complete: bool,
    measurements: Vec<MeasurementAnswer>,
}

#[derive(Debug, Default, Serialize)]
struct MeasurementAnswer {
    name: String,
    description: Option<&'static str>,
    stored: bool,
    rows: u64,
    tags: Vec<TagAnswer>,
    fields: Vec<FieldAnswer>,
}

#[derive(Debug, Serialize)]
struct TagAnswer {
    name: String,
    description: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct FieldAnswer {
    name: String,
    r#type: FieldType,
    kind: Option<FieldKind>,
    unit: Option<&'static str>,
    description: Option<&'static str>,
    opentelemetry: Option<&'static str>,
    node_exporter: Option<&'static str>,
    stored: bool,
}

/// Answers with all measurements that are built in or stored.
pub async fn list(State(app): State<App>, uri: Uri) -> Result<Json<MeasurementsAnswer>, ApiError> {
    Params::of(&uri).finish()?;
    let current = app.feed.is_current();
    let (complete, stored) = app.timed("measurements", app.reader.measurements(&app.tail)).await?;
    let mut measurements: BTreeMap<String, MeasurementAnswer> =
        catalog::MEASUREMENTS.iter().map(|spec| (spec.name.to_owned(), built_in(spec))).collect();
    for found in stored {
        merge(measurements.entry(found.name.to_string()).or_default(), &found);
    }
    let measurements = measurements.into_values().collect();
    Ok(Json(MeasurementsAnswer { complete: complete && current, measurements }))
}

fn built_in(spec: &MeasurementSpec) -> MeasurementAnswer {
    let tags = spec.tags.iter().map(|tag| TagAnswer { name: tag.name.to_owned(), description: Some(tag.description) });
    MeasurementAnswer {
        name: spec.name.to_owned(),
        description: Some(spec.description),
        tags: tags.collect(),
        fields: spec.fields.iter().map(built_in_field).collect(),
        ..MeasurementAnswer::default()
    }
}

fn built_in_field(spec: &FieldSpec) -> FieldAnswer {
    FieldAnswer {
        name: spec.name.to_owned(),
        r#type: spec.field_type,
        kind: Some(spec.kind),
        unit: Some(spec.unit),
        description: Some(spec.description),
        opentelemetry: spec.opentelemetry,
        node_exporter: spec.node_exporter,
        stored: false,
    }
}

/// Adds what is stored: its types count, since a column never changes its type.
fn merge(answer: &mut MeasurementAnswer, found: &StoredMeasurement) {
    answer.name = found.name.to_string();
    (answer.stored, answer.rows) = (true, found.rows);
    for tag in &found.tags {
        if !answer.tags.iter().any(|known| known.name == **tag) {
            answer.tags.push(TagAnswer { name: tag.to_string(), description: None });
        }
    }
    for (field, field_type) in &found.fields {
        match answer.fields.iter_mut().find(|known| known.name == **field) {
            Some(known) => (known.stored, known.r#type) = (true, *field_type),
            None => answer.fields.push(FieldAnswer {
                name: field.to_string(),
                r#type: *field_type,
                kind: None,
                unit: None,
                description: None,
                opentelemetry: None,
                node_exporter: None,
                stored: true,
            }),
        }
    }
}
