//! The evaluator against a naive model, and what its header promises.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use plimsoll_alert_worker::{
    backtest::backtest,
    evaluator::{Dropped, Evaluator, Row},
};
use plimsoll_nats::{
    Batch, Column, HostId, Name,
    alert::{AlertState, AlertStatus, Transition},
    rule::{Aggregate, Comparison, Rule},
};
use proptest::prelude::*;
use ulid::Ulid;

use AlertStatus::{Firing, Inactive, NoData, Pending, Resolved};

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn host(text: &str) -> HostId {
    HostId::parse(text).expect("a host id")
}

/// A rule on `cpu.usage` above 90 with times in seconds.
fn rule(aggregate: Aggregate, window: u64, hold: u64, no_data_after: u64) -> Rule {
    let mut rule: Rule = serde_json::from_value(serde_json::json!({
        "name": "cpu_high", "measurement": "cpu", "field": "usage", "compare": ">", "threshold": 90,
    }))
    .expect("a rule");
    rule.aggregate = aggregate;
    rule.window = Duration::from_secs(window);
    rule.hold = Duration::from_secs(hold);
    rule.no_data_after = Duration::from_secs(no_data_after);
    rule
}

fn evaluator(rule: &Rule) -> Evaluator {
    Evaluator::new([Arc::new(rule.clone())])
}

/// Pushes rows of one host, (second, value), that arrived at once unless `arrived` says when.
struct Feed {
    evaluator: Evaluator,
    states: Vec<AlertState>,
    seen: usize,
}

impl Feed {
    fn new(evaluator: Evaluator) -> Self {
        Self { evaluator, states: Vec::new(), seen: 0 }
    }

    fn row(&mut self, second: i64, value: f64, arrived: Option<i64>) {
        let (measurement, field, host) = (name("cpu"), name("usage"), host("web-1"));
        let row = Row {
            host: &host,
            measurement: &measurement,
            time_ms: second * 1000,
            arrived_ms: arrived.map(|second| second * 1000),
            tags: &[],
            fields: &[(&field, value)],
        };
        self.evaluator.push(&row, &mut self.states);
    }

    fn advance(&mut self, second: i64) {
        self.evaluator.advance(second * 1000, &mut self.states);
    }

    /// What has changed since the last call: second and status.
    fn new_states(&mut self) -> Vec<(i64, AlertStatus)> {
        let fresh = &self.states[self.seen..];
        self.seen = self.states.len();
        fresh.iter().map(|state| (state.transition.at_ms / 1000, state.transition.to)).collect()
    }
}

/// Recomputes every status from all rows so far, for rows in strict order of time.
fn naive(rule: &Rule, rows: &[(i64, f64)], until: i64) -> Vec<(i64, AlertStatus)> {
    let (window, hold, silence) =
        (rule.window.as_secs() as i64, rule.hold.as_secs() as i64, rule.no_data_after.as_secs() as i64);
    let mut statuses = vec![(i64::MIN, Inactive)];
    let mut open = false;
    let mut since = None;
    for (index, (time, _)) in rows.iter().enumerate() {
        if index > 0 && time - rows[index - 1].0 > silence {
            statuses.push((rows[index - 1].0 + silence, NoData));
            since = None;
        }
        let within: Vec<f64> =
            rows[..=index].iter().filter(|(t, _)| *t > time - window).map(|(_, value)| *value).collect();
        let value = match rule.aggregate {
            Aggregate::Last => within[within.len() - 1],
            Aggregate::Avg => within.iter().sum::<f64>() / within.len() as f64,
            Aggregate::Min => within.iter().copied().fold(f64::INFINITY, f64::min),
            Aggregate::Max => within.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
        let status = statuses[statuses.len() - 1].1;
        if value > rule.threshold {
            let since = *since.get_or_insert(*time);
            let fires = status == Firing || time - since >= hold;
            open |= fires;
            statuses.push((*time, if fires { Firing } else { Pending }));
        } else {
            since = None;
            let to = match status {
                _ if open => Resolved,
                Resolved => Resolved,
                _ => Inactive,
            };
            open = false;
            statuses.push((*time, to));
        }
    }
    if let Some((time, _)) = rows.last()
        && until - time > silence
    {
        statuses.push((time + silence, NoData));
    }
    statuses.dedup_by_key(|(_, status)| *status);
    statuses.split_off(1)
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let aggregate =
        prop_oneof![Just(Aggregate::Last), Just(Aggregate::Avg), Just(Aggregate::Min), Just(Aggregate::Max)];
    (aggregate, 1_u64..8, 0_u64..6, 1_u64..10)
        .prop_map(|(aggregate, window, hold, silence)| rule(aggregate, window, hold, silence))
}

/// Rows in strict order of time with gaps, whose values are around the threshold.
fn any_rows() -> impl Strategy<Value = Vec<(i64, f64)>> {
    let step = prop_oneof![9 => 1_i64..3, 1 => 3_i64..30];
    proptest::collection::vec((step, 80_i32..100), 1..120).prop_map(|steps| {
        let mut clock = 1_000;
        let mut row = |(step, value): (i64, i32)| {
            clock += step;
            (clock, f64::from(value))
        };
        steps.into_iter().map(&mut row).collect()
    })
}

fn batch(rows: &[(i64, f64)], seq: u64) -> Batch {
    let values = rows.iter().map(|(_, value)| Some(*value)).collect();
    Batch {
        host: host("web-1"),
        measurement: name("cpu"),
        epoch: Ulid::nil(),
        seq,
        times: rows.iter().map(|(second, _)| second * 1000).collect(),
        tags: BTreeMap::new(),
        fields: BTreeMap::from([(name("usage"), Column::Float(values))]),
    }
}

fn brief(states: &[AlertState]) -> Vec<(i64, AlertStatus)> {
    states.iter().map(|state| (state.transition.at_ms / 1000, state.transition.to)).collect()
}

proptest! {
    #[test]
    fn transitions_equal_the_naive_model(rule in any_rule(), rows in any_rows(), wait in 0_i64..20) {
        let until = rows[rows.len() - 1].0 + wait;
        let mut feed = Feed::new(evaluator(&rule));
        rows.iter().for_each(|(second, value)| feed.row(*second, *value, None));
        feed.advance(until);
        prop_assert_eq!(feed.new_states(), naive(&rule, &rows, until));
    }

    #[test]
    fn a_backtest_equals_live_evaluation_in_batches(rule in any_rule(), rows in any_rows(), size in 1_usize..30) {
        let (measurement, field, host) = (name("cpu"), name("usage"), host("web-1"));
        let fields: Vec<_> = rows.iter().map(|(_, value)| [(&field, *value)]).collect();
        let until = rows[rows.len() - 1].0 + 100;
        let each = rows.iter().zip(&fields).map(|((second, _), fields)| Row {
            host: &host, measurement: &measurement, time_ms: second * 1000, arrived_ms: None, tags: &[], fields,
        });
        let past: Vec<Transition> = backtest(rule.clone(), each, until * 1000);

        let (mut live, mut states) = (evaluator(&rule), Vec::new());
        for (seq, rows) in rows.chunks(size).enumerate() {
            let arrived = rows[rows.len() - 1].0 * 1000;
            // A batch is evaluated as it comes only if none of its rows is old on arrival.
            let arrived = if arrived - rows[0].0 * 1000 > 1000 { None } else { Some(arrived) };
            live.advance(rows[0].0 * 1000, &mut states);
            live.push_batch(&batch(rows, seq as u64), arrived, &mut states);
        }
        live.advance(until * 1000, &mut states);
        let live: Vec<Transition> = states.into_iter().map(|state| state.transition).collect();
        prop_assert_eq!(live, past);
    }

    /// Another member takes over at any row: what it stores beyond the first one's states is what the first would have stored.
    #[test]
    fn a_take_over_repeats_and_forgets_nothing(rule in any_rule(), rows in any_rows(), at in any::<prop::sample::Index>()) {
        let until = rows[rows.len() - 1].0 + 100;
        let mut alone = Feed::new(evaluator(&rule));
        rows.iter().for_each(|(second, value)| alone.row(*second, *value, None));
        alone.advance(until);

        let at = at.index(rows.len());
        let mut first = Feed::new(evaluator(&rule));
        rows[..=at].iter().for_each(|(second, value)| first.row(*second, *value, None));

        let now = rows[at].0;
        let begun = now - (rule.window + rule.hold + rule.no_data_after).as_secs() as i64;
        let mut second = Evaluator::new([Arc::new(rule)]).covered_after(begun * 1000);
        if let Some(state) = first.states.last() {
            prop_assert!(second.restore(state, now * 1000));
        }
        let mut second = Feed::new(second);
        rows.iter().filter(|(time, _)| *time > begun).for_each(|(time, value)| second.row(*time, *value, None));
        second.advance(until);
        let mut both = brief(&first.states);
        both.extend(brief(&second.states));
        prop_assert_eq!(both, brief(&alone.states));
    }
}

#[test]
fn a_late_row_enters_the_window_and_decides_nothing_itself() {
    let mut feed = Feed::new(evaluator(&rule(Aggregate::Max, 10, 0, 60)));
    feed.row(100, 50.0, None);
    feed.row(95, 99.0, None);
    feed.row(90, 99.0, None);
    assert_eq!(feed.new_states(), []);
    feed.row(101, 50.0, None);
    assert_eq!(feed.new_states(), [(101, Firing)]);
    feed.row(106, 50.0, None);
    assert_eq!(feed.new_states(), [(106, Resolved)]);
}

#[test]
fn rows_that_are_old_on_arrival_never_fire() {
    let mut feed = Feed::new(evaluator(&rule(Aggregate::Last, 10, 0, 60)));
    feed.row(1000, 99.0, Some(1061));
    feed.row(1001, 99.0, Some(1062));
    assert_eq!(feed.new_states(), []);
    feed.row(1002, 99.0, Some(1062));
    assert_eq!(feed.new_states(), [(1002, Firing)]);
}

#[test]
fn a_host_whose_clock_is_behind_is_no_data_and_does_not_flap() {
    let mut feed = Feed::new(evaluator(&rule(Aggregate::Last, 10, 0, 60)));
    feed.row(1000, 99.0, Some(1000));
    feed.advance(1061);
    assert_eq!(feed.new_states(), [(1000, Firing), (1060, NoData)]);
    for second in 1001..1300 {
        feed.row(second, 99.0, Some(second + 120));
        feed.advance(second + 120);
    }
    assert_eq!(feed.new_states(), []);
}

#[test]
fn a_row_from_the_far_future_is_ignored() {
    let mut feed = Feed::new(evaluator(&rule(Aggregate::Last, 10, 0, 60)));
    feed.row(1601, 99.0, Some(1000));
    feed.row(1000, 50.0, Some(1000));
    feed.row(1001, 99.0, Some(1001));
    assert_eq!(feed.new_states(), [(1001, Firing)]);
}

#[test]
fn a_row_from_the_future_blinds_no_series() {
    let mut evaluator = evaluator(&rule(Aggregate::Last, 10, 0, 60));
    let mut states = Vec::new();
    let mut push = |evaluator: &mut Evaluator, host_name: &str, second: i64, arrived: i64, value: f64| {
        let batch = Batch { host: host(host_name), ..batch(&[(second, value)], 0) };
        evaluator.push_batch(&batch, Some(arrived * 1000), &mut states);
    };
    push(&mut evaluator, "s1", 1000, 1000, 50.0);
    push(&mut evaluator, "s2", 1000, 1000, 50.0);
    push(&mut evaluator, "s1", 1540, 1000, 50.0);
    push(&mut evaluator, "s1", 1001, 1001, 99.0);
    push(&mut evaluator, "s2", 1001, 1001, 99.0);
    assert_eq!(brief(&states), [(1001, Firing), (1001, Firing)]);
    evaluator.advance(1_062_000, &mut states);
    assert_eq!(brief(&states[2..]), [(1061, NoData), (1061, NoData)]);
}

#[test]
fn a_host_whose_clock_is_ahead_is_no_data_and_does_not_flap() {
    let mut feed = Feed::new(evaluator(&rule(Aggregate::Last, 10, 0, 60)));
    feed.advance(999);
    for second in 1000..1300 {
        feed.row(second + 120, 99.0, Some(second));
        feed.advance(second);
    }
    assert_eq!(feed.new_states(), [(1060, NoData)]);
}

#[test]
fn a_vanished_series_is_no_data_even_if_nothing_of_it_is_replayed() {
    let rule = rule(Aggregate::Last, 10, 0, 60);
    let mut first = Feed::new(evaluator(&rule));
    first.row(1000, 99.0, None);
    let mut second = evaluator(&rule).covered_after(9_000_000);
    assert!(second.restore(&first.states[0], 9_100_000));
    let mut second = Feed::new(second);
    second.advance(9160);
    assert_eq!(second.new_states(), []);
    second.advance(9161);
    assert_eq!(second.new_states(), [(9160, NoData)]);
}

#[test]
fn silence_of_many_series_is_noticed_in_time() {
    let mut evaluator = evaluator(&rule(Aggregate::Last, 10, 0, 60));
    let mut states = Vec::new();
    let batch = |host_name: &str, second: i64| Batch { host: host(host_name), ..batch(&[(second, 1.0)], 0) };
    evaluator.push_batch(&batch("a", 1000), None, &mut states);
    evaluator.advance(1_050_000, &mut states);
    evaluator.push_batch(&batch("b", 995), None, &mut states);
    evaluator.advance(1_056_000, &mut states);
    assert_eq!(brief(&states), [(1055, NoData)]);
    evaluator.push_batch(&batch("b", 1057), None, &mut states);
    evaluator.advance(1_061_000, &mut states);
    evaluator.advance(1_118_000, &mut states);
    let seen: Vec<_> =
        states.iter().map(|s| (&*s.transition.series.host, s.transition.at_ms / 1000, s.transition.to)).collect();
    assert_eq!(seen, [("b", 1055, NoData), ("b", 1057, Inactive), ("a", 1060, NoData), ("b", 1117, NoData)]);
}

#[test]
fn bools_count_and_nil_and_text_do_not() {
    let flag = Rule { threshold: 0.5, field: name("up"), ..rule(Aggregate::Last, 10, 0, 60) };
    let flag = Rule { compare: Comparison::Below, ..flag };
    let mut evaluator = evaluator(&flag);
    let rows = [(1000, 0.0), (1001, 0.0), (1002, 0.0)];
    let with = |column| Batch { fields: BTreeMap::from([(name("up"), column)]), ..batch(&rows, 0) };
    let mut states = Vec::new();
    evaluator.push_batch(&with(Column::Text(vec![Some("0".to_owned()); 3])), None, &mut states);
    evaluator.push_batch(&with(Column::Float(vec![None; 3])), None, &mut states);
    assert_eq!(states, []);
    evaluator.push_batch(&with(Column::Bool(vec![Some(true), Some(false), Some(true)])), None, &mut states);
    assert_eq!(brief(&states), [(1001, Firing), (1002, Resolved)]);
}

#[test]
fn hosts_and_tags_are_selected() {
    let web = Rule { hosts: "web-*".to_owned(), ..rule(Aggregate::Last, 10, 0, 60) };
    let web = Rule { tags: BTreeMap::from([(name("core"), "total".to_owned())]), ..web };
    let mut evaluator = evaluator(&web);
    let cores = vec!["0".to_owned(), "total".to_owned()];
    let tagged = |host_name: &str| Batch {
        host: host(host_name),
        tags: BTreeMap::from([(name("core"), cores.clone())]),
        ..batch(&[(1000, 99.0), (1000, 99.0)], 0)
    };
    let mut states = Vec::new();
    assert!(!evaluator.watches(&host("db-1"), &name("cpu")));
    assert!(!evaluator.watches(&host("web-1"), &name("memory")));
    evaluator.push_batch(&tagged("db-1"), None, &mut states);
    evaluator.push_batch(&tagged("web-1"), None, &mut states);
    assert_eq!(brief(&states), [(1000, Firing)]);
    assert_eq!(states[0].transition.series.tags[&name("core")], "total");
}

#[test]
fn a_changed_rule_restarts_its_windows_and_keeps_its_states() {
    let before = rule(Aggregate::Max, 10, 0, 60);
    let mut feed = Feed::new(evaluator(&before));
    feed.row(1000, 99.0, None);
    assert_eq!(feed.new_states(), [(1000, Firing)]);
    let higher = Rule { threshold: 95.0, ..before.clone() };
    assert_eq!(feed.evaluator.set_rules([Arc::new(higher)]), []);
    feed.row(1001, 50.0, None);
    assert_eq!(feed.new_states(), [], "the window still holds 99");
    let longer = Rule { window: Duration::from_secs(20), ..before };
    assert_eq!(feed.evaluator.set_rules([Arc::new(longer)]), []);
    feed.row(1002, 50.0, None);
    assert_eq!(feed.new_states(), [(1002, Resolved)], "the window began anew");
}

#[test]
fn states_that_no_rule_accounts_for_are_dropped() {
    let before = rule(Aggregate::Last, 10, 0, 60);
    let disabled = Rule { enabled: false, ..before.clone() };
    let elsewhere = Rule { hosts: "db-*".to_owned(), ..before.clone() };
    let other = Rule { field: name("idle"), ..before.clone() };
    for after in [vec![], vec![disabled], vec![elsewhere], vec![other]] {
        let mut feed = Feed::new(evaluator(&before));
        feed.row(1000, 99.0, None);
        let series = feed.states[0].transition.series.clone();
        let dropped = feed.evaluator.set_rules(after.iter().cloned().map(Arc::new));
        assert_eq!(dropped, [Dropped { rule: Arc::new(before.clone()), series }], "{after:?}");
        assert!(!Evaluator::new(after.into_iter().map(Arc::new)).restore(&feed.states[0], 0));
    }
}
