//! Largest Triangle Three Buckets: few points that draw nearly the line of many.
//!
//! Source: Sveinn Steinarsson, "Downsampling Time Series for Visual Representation", University of Iceland, 2013, section 4.2.
//! First and last point stay. The others are cut into as many buckets as points are wanted besides; of each bucket the point stays
//! that spans the largest triangle with the one kept before it and the mean of the next bucket.

use super::gaps::Gap;

/// A time in Unix ms and a value.
pub(super) type Point = (i64, f64);

/// Indices of at most `wanted` points, in order: all where there are no more, else exactly `wanted`, first and last among them (the
/// last alone where one is wanted).
pub(super) fn choose(points: &[Point], wanted: usize) -> Vec<usize> {
    let count = points.len();
    if wanted >= count {
        return (0..count).collect();
    }
    match wanted {
        0 => return Vec::new(),
        1 => return vec![count - 1],
        2 => return vec![0, count - 1],
        _ => {}
    }
    let bounds = |bucket: usize| 1 + bucket * (count - 2) / (wanted - 2);
    let mut chosen = Vec::with_capacity(wanted);
    chosen.push(0);
    for bucket in 0..wanted - 2 {
        let (start, end) = (bounds(bucket), bounds(bucket + 1));
        let next = mean(&points[end..bounds(bucket + 2).clamp(end + 1, count)]);
        let before = points[chosen[bucket]];
        let largest = (start..end).map(|index| (index, area(before, points[index], next)));
        // The first of equal ones stays.
        let (index, _) = largest.fold((start, -1.0), |best, found| if found.1 > best.1 { found } else { best });
        chosen.push(index);
    }
    chosen.push(count - 1);
    chosen
}

/// The same with gaps kept: each run of points between gaps is chosen from by itself, with a share by its length, and keeps its ends.
///
/// Where there are so many gaps that two points a run would be too many, the shortest gaps do not divide.
pub(super) fn choose_within(points: &[Point], gaps: &[Gap], wanted: usize) -> Vec<usize> {
    if wanted >= points.len() {
        return (0..points.len()).collect();
    }
    let mut longest: Vec<Gap> = gaps.to_vec();
    longest.sort_by_key(|(before, after)| std::cmp::Reverse(after - before));
    longest.truncate((wanted / 2).saturating_sub(1));
    longest.sort_unstable();
    let mut runs = Vec::new();
    let mut start = 0;
    for (_, after) in longest {
        let end = points.partition_point(|(time, _)| *time < after);
        runs.push(start..end);
        start = end;
    }
    runs.push(start..points.len());
    let shares = shares(&runs.iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), wanted);
    let mut chosen = Vec::with_capacity(wanted);
    for (run, share) in runs.into_iter().zip(shares) {
        chosen.extend(choose(&points[run.clone()], share).into_iter().map(|index| run.start + index));
    }
    chosen
}

/// Splits `wanted` points among runs by their lengths: two or all of each run first, then the rest, by the largest remainders.
fn shares(lengths: &[usize], wanted: usize) -> Vec<usize> {
    let mut shares: Vec<usize> = lengths.iter().map(|length| (*length).min(2)).collect();
    let left = wanted.saturating_sub(shares.iter().sum());
    let rest: Vec<usize> = lengths.iter().map(|length| length.saturating_sub(2)).collect();
    let total: usize = rest.iter().sum();
    if total == 0 {
        return shares;
    }
    let mut remainders: Vec<(usize, usize)> = Vec::with_capacity(rest.len());
    let mut given = 0;
    for (run, length) in rest.iter().enumerate() {
        let exact = length * left;
        shares[run] += exact / total;
        given += exact / total;
        remainders.push((exact % total, run));
    }
    remainders.sort_unstable_by(|a, b| b.cmp(a));
    for (_, run) in remainders.into_iter().take(left.min(total) - given) {
        shares[run] += 1;
    }
    shares
}

fn mean(points: &[Point]) -> (f64, f64) {
    let count = points.len() as f64;
    let sum = points.iter().fold((0.0, 0.0), |sum, (time, value)| (sum.0 + *time as f64, sum.1 + value));
    (sum.0 / count, sum.1 / count)
}

/// Twice the area of the triangle.
fn area(a: Point, b: Point, c: (f64, f64)) -> f64 {
    let (ax, bx) = (a.0 as f64, b.0 as f64);
    ((ax - c.0) * (b.1 - a.1) - (ax - bx) * (c.1 - a.1)).abs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The paper's algorithm, word by word: buckets as lists of points.
    fn naive(points: &[Point], wanted: usize) -> Vec<Point> {
        let (first, last) = (points[0], points[points.len() - 1]);
        let inner = &points[1..points.len() - 1];
        let buckets: Vec<Vec<Point>> = (0..wanted - 2)
            .map(|bucket| {
                let within = |index: usize| {
                    index >= bucket * inner.len() / (wanted - 2) && index < (bucket + 1) * inner.len() / (wanted - 2)
                };
                inner.iter().enumerate().filter(|(index, _)| within(*index)).map(|(_, point)| *point).collect()
            })
            .chain([vec![last]])
            .collect();
        let mut kept = vec![first];
        for pair in buckets.windows(2) {
            let [bucket, next] = pair else { unreachable!() };
            let x = next.iter().map(|p| p.0 as f64).sum::<f64>() / next.len() as f64;
            let y = next.iter().map(|p| p.1).sum::<f64>() / next.len() as f64;
            let a = kept[kept.len() - 1];
            let triangle =
                |b: &Point| 0.5 * ((a.0 as f64 - x) * (b.1 - a.1) - (a.0 as f64 - b.0 as f64) * (y - a.1)).abs();
            let largest = bucket.iter().map(triangle).fold(0.0, f64::max);
            kept.push(*bucket.iter().find(|point| triangle(point) == largest).expect("one is the largest"));
        }
        kept.push(last);
        kept
    }

    fn line() -> impl Strategy<Value = Vec<Point>> {
        prop::collection::vec((1_i64..5000, -1e6..1e6_f64), 3..300).prop_map(|steps| {
            let mut time = 1_790_000_000_000;
            let point = |(step, value): (i64, f64)| {
                time += step;
                (time, value)
            };
            steps.into_iter().map(point).collect()
        })
    }

    proptest! {
        #[test]
        fn points_are_those_that_the_paper_keeps(points in line(), wanted in 3_usize..100) {
            let chosen: Vec<Point> = choose(&points, wanted).into_iter().map(|index| points[index]).collect();
            let expected = if wanted >= points.len() { points } else { naive(&points, wanted) };
            prop_assert_eq!(chosen, expected);
        }

        #[test]
        fn as_many_as_wanted_are_kept_in_order_with_both_ends_of_the_line(points in line(), wanted in 2_usize..100, cuts in prop::collection::vec(0_usize..300, 0..20)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| cut + 1 < points.len()).collect();
            cuts.sort_unstable();
            cuts.dedup();
            let gaps: Vec<Gap> = cuts.iter().map(|cut| (points[*cut].0, points[cut + 1].0)).collect();
            let chosen = choose_within(&points, &gaps, wanted);
            prop_assert_eq!(chosen.len(), wanted.min(points.len()));
            prop_assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!((chosen[0], chosen[chosen.len() - 1]), (0, points.len() - 1));
            if cuts.len() < wanted / 2 {
                for cut in cuts {
                    prop_assert!(chosen.contains(&cut) && chosen.contains(&(cut + 1)), "both ends of a gap stay");
                }
            }
        }
    }

    #[test]
    fn a_spike_survives() {
        let points: Vec<Point> =
            (0..10_000).map(|second| (second * 1000, if second == 7_777 { 100.0 } else { 1.0 })).collect();
        assert!(choose(&points, 50).contains(&7_777));
    }

    #[test]
    fn fewer_points_than_an_algorithm_needs_are_ends() {
        let points: Vec<Point> = (0..5).map(|second| (second, 0.0)).collect();
        assert_eq!(choose(&points, 0), [0; 0]);
        assert_eq!(choose(&points, 1), [4]);
        assert_eq!(choose(&points, 2), [0, 4]);
        assert_eq!(choose(&[], 10), [0; 0]);
    }
}
