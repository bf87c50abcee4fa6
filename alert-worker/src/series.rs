//! One series under one rule: its window, and what becomes of its alert.

use plimsoll_nats::{
    alert::{AlertState, AlertStatus, SeriesKey, Transition},
    rule::Rule,
};

use crate::{state::Alert, window::Window};

/// A row's time and value, as one rule sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub time_ms: i64,
    pub arrived_ms: Option<i64>,
    pub value: f64,
}

/// A rule's times in ms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub window_ms: i64,
    pub hold_ms: i64,
    pub no_data_ms: i64,
    /// Rows up to this time only fill windows: the rows before them may be missing.
    pub ready_after_ms: i64,
}

/// What one rule knows of one series.
#[derive(Debug)]
pub(crate) struct Series {
    pub key: SeriesKey,
    window: Window,
    /// Time of the newest row, or of the moment from which one has been waited for.
    heard_ms: Option<i64>,
    has_row: bool,
    alert: Alert,
}

impl Series {
    pub fn new(key: SeriesKey, rule: &Rule, limits: &Limits) -> Self {
        let window = Window::new(rule.aggregate, limits.window_ms);
        Self { key, window, heard_ms: None, has_row: false, alert: Alert::default() }
    }

    /// Goes on from a stored state; silence counts from `now_ms`.
    pub fn restored(state: &AlertState, rule: &Rule, limits: &Limits, now_ms: i64) -> Self {
        let mut series = Self::new(state.transition.series.clone(), rule, limits);
        series.alert = Alert::from(state);
        series.heard_ms = Some(now_ms);
        series
    }

    /// Empties the window, and leaves the alert as it stands.
    pub fn restart(&mut self, rule: &Rule, limits: &Limits) {
        self.window = Window::new(rule.aggregate, limits.window_ms);
    }

    /// Whether the alert has ever changed, and may thus be stored.
    pub fn has_changed(&self) -> bool {
        self.alert.changed_ms().is_some()
    }

    /// Takes in a row. The order of the checks is that of the evaluator's header.
    pub fn push(&mut self, sample: Sample, rule: &Rule, limits: &Limits, out: &mut Vec<AlertState>) {
        let arrived = sample.arrived_ms.unwrap_or(sample.time_ms);
        if sample.time_ms.saturating_sub(arrived) > limits.no_data_ms {
            self.heard_ms.get_or_insert(arrived);
            return;
        }
        let newer = !self.has_row || self.heard_ms.is_none_or(|heard| sample.time_ms > heard);
        let decided = self.alert.changed_ms().is_some_and(|changed| sample.time_ms <= changed);
        let replayed = decided || sample.time_ms <= limits.ready_after_ms;
        if newer && self.has_row && !replayed {
            self.detect_silence(sample.time_ms, rule, limits, out);
        }
        if !self.window.insert(sample.time_ms, sample.value) || !newer {
            return;
        }
        self.heard_ms = Some(sample.time_ms);
        self.has_row = true;
        let late = arrived.saturating_sub(sample.time_ms) > limits.no_data_ms;
        if late || replayed {
            return;
        }
        let Some(value) = self.window.value() else { return };
        let holds = rule.compare.holds(value, rule.threshold);
        if let Some(from) = self.alert.judge(sample.time_ms, holds, limits.hold_ms) {
            out.push(self.state(from, sample.time_ms, Some(value), rule));
        }
    }

    /// Takes in that it is `now_ms`. Returns when the series will count as silent, if it does not already.
    pub fn advance(&mut self, now_ms: i64, rule: &Rule, limits: &Limits, out: &mut Vec<AlertState>) -> Option<i64> {
        self.detect_silence(now_ms, rule, limits, out);
        let waiting = self.alert.status() != AlertStatus::NoData;
        self.heard_ms.filter(|_| waiting).map(|heard| heard.saturating_add(limits.no_data_ms))
    }

    fn detect_silence(&mut self, now_ms: i64, rule: &Rule, limits: &Limits, out: &mut Vec<AlertState>) {
        let Some(silent_ms) = self.heard_ms.map(|heard| heard.saturating_add(limits.no_data_ms)) else { return };
        if now_ms <= silent_ms {
            return;
        }
        let at_ms = self.alert.changed_ms().map_or(silent_ms, |changed| silent_ms.max(changed.saturating_add(1)));
        if let Some(from) = self.alert.lose(at_ms) {
            out.push(self.state(from, at_ms, None, rule));
        }
    }

    fn state(&self, from: AlertStatus, at_ms: i64, value: Option<f64>, rule: &Rule) -> AlertState {
        let transition = Transition {
            rule: rule.name.clone(),
            series: self.key.clone(),
            measurement: rule.measurement.clone(),
            field: rule.field.clone(),
            from,
            to: self.alert.status(),
            at_ms,
            value,
            threshold: rule.threshold,
            severity: rule.severity,
            description: rule.description.clone(),
        };
        let (since_ms, open) = (self.alert.since_ms(), self.alert.is_open());
        AlertState { transition, since_ms, open, announced: false }
    }
}
