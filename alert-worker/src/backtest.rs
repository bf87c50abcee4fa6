//! Backtests: which transitions a rule would have caused over rows of the past.

use std::sync::Arc;

use plimsoll_nats::{alert::Transition, rule::Rule};

use crate::evaluator::{Evaluator, Row};

/// Runs one rule over rows, which come in order of time within each series, and returns its transitions.
///
/// A series that is silent at `until_ms` by the rule's `no_data_after` ends as no data. A disabled rule is run as well; one
/// that [`Rule::validate`] refuses has no transitions.
pub fn backtest<'a>(rule: Rule, rows: impl IntoIterator<Item = Row<'a>>, until_ms: i64) -> Vec<Transition> {
    let mut evaluator = Evaluator::new([Arc::new(Rule { enabled: true, ..rule })]);
    let mut states = Vec::new();
    for row in rows {
        evaluator.push(&row, &mut states);
    }
    evaluator.advance(until_ms, &mut states);
    states.into_iter().map(|state| state.transition).collect()
}
