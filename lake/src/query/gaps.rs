//! Where a line must not be drawn on, because nothing was measured.

/// How many times its usual interval a series may be silent before that is a gap.
pub(super) const GAP_FACTOR: f64 = 2.5;

/// Times of the two points between which nothing was measured.
pub type Gap = (i64, i64);

/// The longest pause that is none, in ms, of points with these times: 2.5 times their median distance. None where there are too few
/// points to tell.
fn longest_pause(times: &[i64]) -> Option<f64> {
    let mut distances: Vec<i64> =
        times.windows(2).map(|pair| pair[1] - pair[0]).filter(|distance| *distance > 0).collect();
    if distances.is_empty() {
        return None;
    }
    let middle = distances.len() / 2;
    let (_, median, _) = distances.select_nth_unstable(middle);
    Some(*median as f64 * GAP_FACTOR)
}

/// The gaps between points in the order of their times.
pub(super) fn between_points(times: &[i64]) -> Vec<Gap> {
    let Some(pause) = longest_pause(times) else { return Vec::new() };
    pairs(times, |distance| distance as f64 > pause)
}

/// The gaps between buckets of a length, each with the number of its values.
///
/// Where buckets usually hold several values, one without any is a gap. Where they hold one, a bucket may be empty only because it
/// is shorter than the series' interval, and the distances tell.
pub(super) fn between_buckets(times: &[i64], counts: &[u64], step_ms: i64) -> Vec<Gap> {
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    match counts.get(counts.len() / 2) {
        Some(usual) if *usual > 1 => pairs(times, |distance| distance > step_ms),
        _ => between_points(times),
    }
}

/// The gaps between buckets of which nobody knows how many values they hold: where they usually follow each other, an empty one is a gap.
pub(super) fn between_steps(times: &[i64], step_ms: i64) -> Vec<Gap> {
    let pause = longest_pause(times).unwrap_or(f64::INFINITY);
    let pause = if pause <= step_ms as f64 * GAP_FACTOR { step_ms as f64 } else { pause };
    pairs(times, |distance| distance as f64 > pause)
}

fn pairs(times: &[i64], is_gap: impl Fn(i64) -> bool) -> Vec<Gap> {
    let pairs = times.windows(2).map(|pair| (pair[0], pair[1]));
    pairs.filter(|(before, after)| is_gap(after - before)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_of_more_than_two_and_a_half_intervals_is_a_gap() {
        assert_eq!(between_points(&[0, 10, 20, 45, 55]), []);
        assert_eq!(between_points(&[0, 10, 20, 46, 56]), [(20, 46)]);
        assert_eq!(between_points(&[0, 0, 0, 10, 10, 20, 90]), [(20, 90)], "points of the same time say nothing");
        assert_eq!(between_points(&[0, 1_000_000]), [], "two points are a line");
        assert_eq!(between_points(&[5]), []);
    }

    #[test]
    fn an_empty_bucket_is_a_gap_where_buckets_hold_several_values() {
        assert_eq!(between_buckets(&[0, 60, 180, 240], &[60, 60, 60, 60], 60), [(60, 180)]);
        // A value every 15 into buckets of 10: none is missing.
        assert_eq!(between_buckets(&[0, 10, 30, 40, 60, 70], &[1; 6], 10), []);
        assert_eq!(between_buckets(&[0, 10, 30, 40, 90, 100], &[1; 6], 10), [(40, 90)]);
        assert_eq!(between_buckets(&[], &[], 10), []);
        assert_eq!(between_steps(&[0, 60, 120, 240], 60), [(120, 240)]);
        assert_eq!(between_steps(&[0, 300, 600, 900, 1800], 60), [(900, 1800)]);
    }
}
