//! The state machine of one alert: what a judgement of its condition, or silence, makes of its status.

use plimsoll_nats::alert::{AlertState, AlertStatus};

/// Where one alert stands. It begins inactive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alert {
    status: AlertStatus,
    since_ms: Option<i64>,
    open: bool,
    changed_ms: Option<i64>,
}

impl From<&AlertState> for Alert {
    fn from(state: &AlertState) -> Self {
        Self {
            status: state.transition.to,
            since_ms: state.since_ms,
            open: state.open,
            changed_ms: Some(state.transition.at_ms),
        }
    }
}

impl Alert {
    /// The status.
    #[must_use]
    pub fn status(&self) -> AlertStatus {
        self.status
    }

    /// Unix ms since which the condition has held without a break, while pending or firing.
    #[must_use]
    pub fn since_ms(&self) -> Option<i64> {
        self.since_ms
    }

    /// Whether it has fired and not been resolved since.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Event time of its last change in Unix ms; none before the first.
    #[must_use]
    pub fn changed_ms(&self) -> Option<i64> {
        self.changed_ms
    }

    /// Takes in that the condition holds or not at a time. Returns the status before, where it changes.
    pub fn judge(&mut self, at_ms: i64, holds: bool, hold_ms: i64) -> Option<AlertStatus> {
        if !holds {
            return self.cease(at_ms);
        }
        let since = match self.status {
            AlertStatus::Firing => return None,
            AlertStatus::Pending => self.since_ms.unwrap_or(at_ms),
            AlertStatus::Inactive | AlertStatus::Resolved | AlertStatus::NoData => at_ms,
        };
        let status = if at_ms.saturating_sub(since) >= hold_ms { AlertStatus::Firing } else { AlertStatus::Pending };
        if status == self.status {
            return None;
        }
        self.open |= status == AlertStatus::Firing;
        Some(self.change(status, at_ms, Some(since)))
    }

    fn cease(&mut self, at_ms: i64) -> Option<AlertStatus> {
        let status = match self.status {
            AlertStatus::Inactive | AlertStatus::Resolved => return None,
            // Whoever was told that it fires is told that it does no more, also after a silence in between.
            _ if self.open => AlertStatus::Resolved,
            _ => AlertStatus::Inactive,
        };
        self.open = false;
        Some(self.change(status, at_ms, None))
    }

    /// Takes in that the series has fallen silent. Returns the status before, where it changes.
    pub fn lose(&mut self, at_ms: i64) -> Option<AlertStatus> {
        (self.status != AlertStatus::NoData).then(|| self.change(AlertStatus::NoData, at_ms, None))
    }

    fn change(&mut self, to: AlertStatus, at_ms: i64, since_ms: Option<i64>) -> AlertStatus {
        self.since_ms = since_ms;
        self.changed_ms = Some(at_ms);
        std::mem::replace(&mut self.status, to)
    }
}

#[cfg(test)]
mod tests {
    use AlertStatus::{Firing, Inactive, NoData, Pending, Resolved};

    use super::*;

    #[derive(Clone, Copy)]
    enum Step {
        Holds,
        Ceases,
        Silent,
    }

    /// The status after each step, one a second, with a `for` of `hold` seconds.
    fn walk(hold: i64, steps: &[Step]) -> Vec<AlertStatus> {
        let mut alert = Alert::default();
        let step = |(at, step): (usize, &Step)| {
            let at = at as i64 * 1000;
            match step {
                Step::Holds => alert.judge(at, true, hold * 1000),
                Step::Ceases => alert.judge(at, false, hold * 1000),
                Step::Silent => alert.lose(at),
            };
            alert.status()
        };
        steps.iter().enumerate().map(step).collect()
    }

    #[test]
    fn a_condition_fires_once_it_has_held_long_enough() {
        use Step::{Ceases, Holds};
        assert_eq!(walk(0, &[Ceases, Holds, Ceases, Holds]), [Inactive, Firing, Resolved, Firing]);
        assert_eq!(walk(2, &[Holds, Holds, Holds, Ceases]), [Pending, Pending, Firing, Resolved]);
        assert_eq!(walk(2, &[Holds, Ceases, Holds, Holds, Holds]), [Pending, Inactive, Pending, Pending, Firing]);
    }

    #[test]
    fn a_silent_series_is_no_data_and_begins_anew() {
        use Step::{Ceases, Holds, Silent};
        assert_eq!(walk(0, &[Silent, Ceases]), [NoData, Inactive]);
        assert_eq!(walk(1, &[Holds, Silent, Holds, Holds]), [Pending, NoData, Pending, Firing]);
    }

    #[test]
    fn what_fired_before_a_silence_is_resolved_after_it() {
        use Step::{Ceases, Holds, Silent};
        assert_eq!(walk(0, &[Holds, Silent, Ceases, Silent, Ceases]), [Firing, NoData, Resolved, NoData, Inactive]);
        assert_eq!(walk(1, &[Holds, Holds, Silent, Holds, Ceases]), [Pending, Firing, NoData, Pending, Resolved]);
    }
}
