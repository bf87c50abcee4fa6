//! What answers requests: one file a resource.

pub mod alerts;
pub mod clients;
pub mod events;
pub mod fleet;
pub mod interval;
pub mod live;
pub mod measurements;
pub mod metrics;
pub mod rules;
pub mod stats;

use plimsoll_lake::{
    Tier,
    query::{QueryError, TierChoice, TierPart, parse_tier},
};
use plimsoll_nats::{HostId, Name, catalog};

use crate::{app::App, params::Params, problem::ApiError};

/// What a measurement's name must look like, for an error message.
pub(crate) const EXPECTED_MEASUREMENT: &str = "a measurement such as `cpu`: see /api/measurements";
/// What a list of fields must look like, for an error message.
pub(crate) const EXPECTED_FIELDS: &str = "fields joined by commas, such as `usage_percent,idle_percent`";

/// A comma list of fields, each once; none when one is not a name.
pub(crate) fn parse_fields(text: &str) -> Option<Vec<Name>> {
    let mut fields = Vec::new();
    for field in text.split(',') {
        let field = Name::parse(field.trim()).ok()?;
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    Some(fields)
}

/// The host of a path. A text that is no host id names no known host.
pub(crate) fn parse_host(text: &str) -> Result<HostId, ApiError> {
    HostId::parse(text).map_err(|_| ApiError::unknown_host(text))
}

/// Takes the parameter `tier`: which tables are read.
pub(crate) fn take_tier(params: &mut Params) -> TierChoice {
    let parse = |text: &str| match text {
        "auto" => Some(TierChoice::Auto),
        text => parse_tier(text).map(TierChoice::Only),
    };
    params.optional("tier", "`auto`, `raw`, `1m` or `1h`", parse).unwrap_or_default()
}

/// The name of the coarsest tier that has answered.
pub(crate) fn coarsest(tiers: &[TierPart]) -> &'static str {
    tiers.iter().map(|part| part.tier).max().unwrap_or(Tier::Raw).label()
}

/// A quantile such as `p95`, as a number from 0 to 1.
pub(crate) fn parse_quantile(text: &str) -> Option<f64> {
    let digits =
        text.strip_prefix('p').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))?;
    digits.parse::<f64>().ok().filter(|percent| *percent <= 100.0).map(|percent| percent / 100.0)
}

/// The unit of a built-in field, or of how much it rises a second.
pub(crate) fn unit_of(measurement: &str, field: &str, rate: bool) -> Option<String> {
    unit(measurement, field).map(|unit| if rate { format!("{unit}_per_second") } else { unit.to_owned() })
}

/// The unit of a built-in field.
pub(crate) fn unit(measurement: &str, field: &str) -> Option<&'static str> {
    catalog::measurement(measurement)?.fields.iter().find(|spec| spec.name == field).map(|spec| spec.unit)
}

impl App {
    /// Whether the host has a record or has sent a sample since the service started.
    pub(crate) fn knows_host(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some() || self.feed.has_seen(host)
    }

    /// Runs a query and notes how long it took.
    pub(crate) async fn timed<T>(
        &self,
        query: &'static str,
        work: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, QueryError> {
        let running = self.metrics.query(query);
        let outcome = work.await;
        running.end(&outcome);
        outcome
    }

    /// Turns a query's failure into an answer: a built-in measurement that nobody has sent yet is empty, not unknown.
    ///
    /// Fails with every other error, on an unknown host, and on fields that the built-in measurement does not have.
    pub(crate) fn empty_or(&self, error: QueryError, host: &HostId, fields: Option<&[Name]>) -> Result<(), ApiError> {
        let QueryError::UnknownMeasurement { measurement } = &error else { return Err(error.into()) };
        let Some(spec) = catalog::measurement(measurement) else { return Err(error.into()) };
        if !self.knows_host(host) {
            return Err(ApiError::unknown_host(host));
        }
        let known = |field: &Name| spec.fields.iter().any(|known| known.name == &**field);
        match fields.into_iter().flatten().find(|field| !known(field)) {
            Some(field) => Err(QueryError::UnknownField {
                measurement: measurement.clone(),
                field: field.clone(),
                known: spec.fields.iter().filter_map(|field| Name::parse(field.name).ok()).collect(),
            }
            .into()),
            None => Ok(()),
        }
    }
}
