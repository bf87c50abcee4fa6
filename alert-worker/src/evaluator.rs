//! Evaluates threshold rules over rows in event time. Pure: no clock, no I/O; live alerts and backtests run it alike.
//!
//! # Semantics
//!
//! A rule watches every series (host and tag set) of its measurement that its host glob and tag filter select and that has
//! a number in its field; a bool counts as 0 or 1, nil and text are no value. With each row that is newer than all before,
//! the rule's aggregate over `(t - window, t]`, `t` being the row's time, is compared with the threshold; a window that is
//! not full yet is judged by the rows that it has. From that follows the status:
//!
//! | status | condition holds | condition does not hold |
//! | --- | --- | --- |
//! | inactive, resolved | pending, or firing where `for` is 0 | as it was |
//! | pending | firing once `t - since >= for` | inactive |
//! | firing | as it was | resolved |
//! | no data | pending, or firing where `for` is 0 | resolved if it fired before the silence, else inactive |
//!
//! A pending alert that fired before a silence is likewise resolved when its condition ceases. `for` is decided by rows
//! only: between rows nobody knows whether the condition still holds.
//!
//! **Silence.** A series without a row for longer than `no_data_after` is no data, whatever it was, as of the moment at
//! which that time had passed. [`Evaluator::advance`] notices, or the next row does; the transition is the same. A vanished
//! series is never resolved.
//!
//! **Old rows.** A row that is not newer than the newest enters the window in its place and counts from the next newer row
//! on; one that is older than the window is ignored. A row that arrived more than `no_data_after` after its time is too old
//! to decide anything: it fills the window and never changes a status.
//!
//! **Rows from the future.** A row that is more than `no_data_after` or [`MAX_AHEAD`] ahead of its arrival is ignored: the
//! rows of now that come after it must not be old beside it.
//!
//! A host whose clock is off by more than `no_data_after` is no data either way, and does not flap. Rows of a backtest carry
//! no time of arrival and count as having arrived in time.
//!
//! **Taking over.** After [`Evaluator::restore`] rows up to a series' last transition are decided already, and rows up to
//! `covered_after + window` lack rows before them: both only fill windows. So a replay repeats no transition.
//!
//! The transitions of a series have strictly rising times, and do not depend on how rows are cut into batches.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use globset::GlobSet;
use plimsoll_nats::{
    Batch, HostId, Name,
    alert::{AlertState, SeriesId, SeriesKey},
    rule::Rule,
};

use crate::series::{Limits, Sample, Series};

/// How far ahead of its arrival a row may be under any rule; ingest stores no row beyond that either.
pub const MAX_AHEAD: Duration = Duration::from_secs(10 * 60);

/// One row of one series.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The host that was sampled.
    pub host: &'a HostId,
    /// What was sampled.
    pub measurement: &'a Name,
    /// Event time in Unix ms.
    pub time_ms: i64,
    /// When the broker stored it, Unix ms; none in a backtest.
    pub arrived_ms: Option<i64>,
    /// All tags of the series, in ascending order of their names.
    pub tags: &'a [(&'a Name, &'a str)],
    /// The fields that have a number; those that no rule watches may be left out.
    pub fields: &'a [(&'a Name, f64)],
}

/// A series that is no longer watched by a rule, although its state may be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropped {
    /// The rule as it was when it watched the series.
    pub rule: Arc<Rule>,
    /// The series.
    pub series: SeriesKey,
}

/// The states of all series under a set of rules.
#[derive(Debug, Default)]
pub struct Evaluator {
    watches: Vec<Watch>,
    by_measurement: HashMap<Name, Vec<usize>>,
    scratch: Vec<u8>,
}

/// One rule and the series that it has seen.
#[derive(Debug)]
struct Watch {
    rule: Arc<Rule>,
    hosts: GlobSet,
    limits: Limits,
    series: HashMap<SeriesId, Series>,
    /// No series falls silent before this time.
    quiet_until_ms: i64,
}

impl Evaluator {
    /// An evaluator of the enabled ones among `rules`, which [`Rule::validate`] accepts; others are left out.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = Arc<Rule>>) -> Self {
        let mut evaluator = Self::default();
        evaluator.set_rules(rules);
        evaluator
    }

    /// Says that rows up to this time may be missing. Rules known now judge no row before their window lies behind it.
    #[must_use]
    pub fn covered_after(mut self, time_ms: i64) -> Self {
        for watch in &mut self.watches {
            watch.limits.ready_after_ms = time_ms.saturating_add(watch.limits.window_ms);
        }
        self
    }

    /// Goes on from a stored state; the silence of the series counts from `now_ms` or its next row.
    ///
    /// Returns false when no rule watches the series any more.
    pub fn restore(&mut self, state: &AlertState, now_ms: i64) -> bool {
        let transition = &state.transition;
        let watch = self.watches.iter_mut().find(|watch| watch.rule.name == transition.rule);
        let Some(watch) = watch.filter(|watch| {
            let tags = transition.series.tags.iter().map(|(name, value)| (name, value.as_str()));
            watch.watches_field_of(&transition.measurement, &transition.field)
                && watch.selects(&transition.series.host, tags)
        }) else {
            return false;
        };
        let series = Series::restored(state, &watch.rule, &watch.limits, now_ms);
        watch.series.insert(transition.series.id(), series);
        watch.quiet_until_ms = i64::MIN;
        true
    }

    /// Whether some rule looks at this measurement of this host.
    #[must_use]
    pub fn watches(&self, host: &HostId, measurement: &Name) -> bool {
        let mut watching = self.by_measurement.get(measurement).into_iter().flatten();
        watching.any(|index| self.watches.get(*index).is_some_and(|watch| watch.hosts.is_match(&**host)))
    }

    /// Takes in one row, and adds the transitions that it causes to `out`.
    pub fn push(&mut self, row: &Row<'_>, out: &mut Vec<AlertState>) {
        debug_assert!(row.tags.is_sorted(), "the id of a series depends on the order of its tags");
        let ahead = row.arrived_ms.is_some_and(|arrived| row.time_ms.saturating_sub(arrived) > millis(MAX_AHEAD));
        let Some(watching) = self.by_measurement.get(row.measurement).filter(|_| !ahead) else { return };
        let mut id = None;
        for index in watching {
            let Some(watch) = self.watches.get_mut(*index) else { continue };
            let Some(value) = row.fields.iter().find(|(name, _)| **name == watch.rule.field).map(|(_, value)| *value)
            else {
                continue;
            };
            if watch.selects(row.host, row.tags.iter().copied()) {
                let id = id.get_or_insert_with(|| SeriesId::of(row.host, row.tags.iter().copied(), &mut self.scratch));
                watch.push(*id, row, value, out);
            }
        }
    }

    /// Takes in all rows of a batch, which the broker stored at `arrived_ms` where that is known.
    pub fn push_batch(&mut self, batch: &Batch, arrived_ms: Option<i64>, out: &mut Vec<AlertState>) {
        if !self.watches(&batch.host, &batch.measurement) {
            return;
        }
        let (mut tags, mut fields) = (Vec::new(), Vec::new());
        for (row, time_ms) in batch.times.iter().copied().enumerate() {
            tags.clear();
            tags.extend(batch.tags.iter().filter_map(|(name, values)| Some((name, values.get(row)?.as_str()))));
            fields.clear();
            fields.extend(batch.fields.iter().filter_map(|(name, column)| Some((name, column.number(row)?))));
            let (host, measurement) = (&batch.host, &batch.measurement);
            self.push(&Row { host, measurement, time_ms, arrived_ms, tags: &tags, fields: &fields }, out);
        }
    }

    /// Takes in that it is `now_ms`, and adds to `out` which series have fallen silent.
    pub fn advance(&mut self, now_ms: i64, out: &mut Vec<AlertState>) {
        for watch in &mut self.watches {
            watch.advance(now_ms, out);
        }
    }

    /// Puts other rules in place, and returns the series that are no longer watched.
    ///
    /// A rule whose window or aggregate differs restarts its windows and keeps its states. One that is gone or disabled
    /// drops its states, as does one with another measurement or field; another host glob or tag filter drops the
    /// states of the series that it no longer selects.
    pub fn set_rules(&mut self, rules: impl IntoIterator<Item = Arc<Rule>>) -> Vec<Dropped> {
        let mut before: BTreeMap<Name, Watch> =
            self.watches.drain(..).map(|watch| (watch.rule.name.clone(), watch)).collect();
        let mut dropped = Vec::new();
        for rule in rules.into_iter().filter(|rule| rule.enabled) {
            let Some(mut watch) = Watch::new(rule) else { continue };
            if let Some(old) = before.remove(&watch.rule.name) {
                watch.inherit(old, &mut dropped);
            }
            self.watches.push(watch);
        }
        for watch in before.into_values() {
            dropped.extend(dropped_series(&watch.rule, watch.series));
        }
        self.by_measurement.clear();
        for (index, watch) in self.watches.iter().enumerate() {
            self.by_measurement.entry(watch.rule.measurement.clone()).or_default().push(index);
        }
        dropped
    }
}

impl Watch {
    fn new(rule: Arc<Rule>) -> Option<Self> {
        let limits = Limits {
            window_ms: millis(rule.window),
            hold_ms: millis(rule.hold),
            no_data_ms: millis(rule.no_data_after),
            ready_after_ms: i64::MIN,
        };
        let hosts = rule.host_matcher()?;
        Some(Self { rule, hosts, limits, series: HashMap::new(), quiet_until_ms: i64::MIN })
    }

    fn inherit(&mut self, old: Self, dropped: &mut Vec<Dropped>) {
        if !self.watches_field_of(&old.rule.measurement, &old.rule.field) {
            dropped.extend(dropped_series(&old.rule, old.series));
            return;
        }
        let restart = self.rule.window != old.rule.window || self.rule.aggregate != old.rule.aggregate;
        self.limits.ready_after_ms = if restart { i64::MIN } else { old.limits.ready_after_ms };
        for (id, mut series) in old.series {
            let tags = series.key.tags.iter().map(|(name, value)| (name, value.as_str()));
            if !self.selects(&series.key.host, tags) {
                dropped.extend(dropped_series(&old.rule, [(id, series)]));
                continue;
            }
            if restart {
                series.restart(&self.rule, &self.limits);
            }
            self.series.insert(id, series);
        }
    }

    fn watches_field_of(&self, measurement: &Name, field: &Name) -> bool {
        self.rule.measurement == *measurement && self.rule.field == *field
    }

    fn selects<'a>(&self, host: &HostId, tags: impl Iterator<Item = (&'a Name, &'a str)> + Clone) -> bool {
        self.hosts.is_match(&**host)
            && self.rule.tags.iter().all(|(name, value)| tags.clone().any(|(n, v)| n == name && v == value))
    }

    fn push(&mut self, id: SeriesId, row: &Row<'_>, value: f64, out: &mut Vec<AlertState>) {
        let (rule, limits) = (&self.rule, &self.limits);
        let series = self.series.entry(id).or_insert_with(|| {
            let tags = row.tags.iter().map(|(name, value)| ((*name).clone(), (*value).to_owned())).collect();
            Series::new(SeriesKey { host: row.host.clone(), tags }, rule, limits)
        });
        series.push(Sample { time_ms: row.time_ms, arrived_ms: row.arrived_ms, value }, rule, limits, out);
        // The first row of a series, or the first after a silence, may bring the moment forward.
        let heard_ms = row.arrived_ms.map_or(row.time_ms, |arrived| arrived.min(row.time_ms));
        self.quiet_until_ms = self.quiet_until_ms.min(heard_ms.saturating_add(limits.no_data_ms));
    }

    fn advance(&mut self, now_ms: i64, out: &mut Vec<AlertState>) {
        // Rows only put the moment off, so that most calls need not look at any series.
        if now_ms <= self.quiet_until_ms {
            return;
        }
        let (rule, limits) = (&self.rule, &self.limits);
        let silent = self.series.values_mut().filter_map(|series| series.advance(now_ms, rule, limits, out));
        self.quiet_until_ms = silent.min().unwrap_or(now_ms);
    }
}

fn dropped_series(
    rule: &Arc<Rule>,
    series: impl IntoIterator<Item = (SeriesId, Series)>,
) -> impl Iterator<Item = Dropped> {
    let changed = series.into_iter().filter(|(_, series)| series.has_changed());
    changed.map(|(_, series)| Dropped { rule: Arc::clone(rule), series: series.key })
}

/// A duration in whole ms.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
