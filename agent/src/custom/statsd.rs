//! StatsD: `name:value|type|@rate|#tag:value,…`, as Etsy's StatsD has it, with DogStatsD's tags and several values in a line.

mod aggregate;

pub use self::aggregate::{Aggregator, MAX_DISTINCT, MAX_SERIES, MAX_SERIES_BYTES, MAX_TIMINGS};
use super::text::{Cursor, Unexpected};

/// What a line tells of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric<'a> {
    /// The metric's name.
    pub name: &'a str,
    /// Names and values of the tags, in the order of their names.
    pub tags: Vec<(&'a str, &'a str)>,
    /// What has happened to it, in the order of the line.
    pub changes: Vec<Change<'a>>,
}

/// What has happened to a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change<'a> {
    /// A counter went up by so much, its sample rate taken into account.
    Count(f64),
    /// A gauge is so much.
    Gauge(f64),
    /// A gauge went up or down by so much.
    Shift(f64),
    /// A timer, histogram or distribution was told a value, which stands for as many as the second number.
    Timing(f64, f64),
    /// A set has a member.
    Member(&'a str),
}

/// Reads a line; none when it is empty, or an event or service check, which DogStatsD sends on the same socket.
pub fn parse_line(line: &str) -> Result<Option<Metric<'_>>, Unexpected> {
    if line.is_empty() || line.starts_with("_e{") || line.starts_with("_sc|") {
        return Ok(None);
    }
    let mut cursor = Cursor::new(line);
    let name = cursor.until(|c| c == ':' || c == '|');
    if name.is_empty() {
        return Err(Cursor::new(line).unexpected("a metric's name"));
    }
    cursor.require(b':', "`:` and a value")?;
    let values = cursor.clone();
    cursor.until(|c| c == '|');
    cursor.require(b'|', "`|` and a type")?;
    let type_at = cursor.clone();
    let kind = cursor.until(|c| c == '|');
    let (mut rate, mut tags) = (1.0, Vec::new());
    while cursor.eat(b'|') {
        let section = cursor.clone();
        let text = cursor.until(|c| c == '|');
        if let Some(text) = text.strip_prefix('@') {
            rate = text.parse().unwrap_or_default();
            if !(rate > 0.0 && rate <= 1.0) {
                return Err(section.unexpected("a sample rate above 0 and up to 1 after `@`"));
            }
        } else if let Some(text) = text.strip_prefix('#') {
            tags = self::tags(text);
        }
        // Anything else is what later protocols add, such as the container's id.
    }
    let changes =
        changes(values, kind, rate).unwrap_or_else(|| Err(type_at.unexpected("`c`, `g`, `ms`, `h`, `d` or `s`")))?;
    Ok(Some(Metric { name, tags, changes }))
}

/// The changes that the values before `|` tell; none when there is no such type.
fn changes<'a>(mut values: Cursor<'a>, kind: &str, rate: f64) -> Option<Result<Vec<Change<'a>>, Unexpected>> {
    let change: fn(&'a str, f64) -> Option<Change<'a>> = match kind {
        "c" => |text, rate| number(text).map(|value| Change::Count(value / rate)),
        "g" => |text, _| {
            let shift = text.starts_with(['+', '-']);
            number(text).map(|value| if shift { Change::Shift(value) } else { Change::Gauge(value) })
        },
        "ms" | "h" | "d" => |text, rate| number(text).map(|value| Change::Timing(value, 1.0 / rate)),
        "s" => |text, _| (!text.is_empty()).then_some(Change::Member(text)),
        _ => return None,
    };
    let mut changes = Vec::with_capacity(1);
    loop {
        let start = values.clone();
        match change(values.until(|c| c == ':' || c == '|'), rate) {
            Some(change) => changes.push(change),
            None => return Some(Err(start.unexpected(if kind == "s" { "a member" } else { "a number" }))),
        }
        if !values.eat(b':') {
            return Some(Ok(changes));
        }
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

/// Tags as `name:value`; one without a value is true.
fn tags(text: &str) -> Vec<(&str, &str)> {
    let tags = text.split(',').filter(|tag| !tag.is_empty());
    let mut tags: Vec<_> = tags.map(|tag| tag.split_once(':').unwrap_or((tag, "true"))).collect();
    tags.sort_unstable();
    tags.dedup_by(|later, first| later.0 == first.0);
    tags
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metric(line: &str) -> Metric<'_> {
        parse_line(line).unwrap().unwrap()
    }

    #[test]
    fn every_type_is_read() {
        for (line, expected) in [
            ("a:1|c", Change::Count(1.0)),
            ("a:-2.5|c", Change::Count(-2.5)),
            ("a:1|c|@0.1", Change::Count(10.0)),
            ("a:3|g", Change::Gauge(3.0)),
            ("a:+3|g", Change::Shift(3.0)),
            ("a:-3|g", Change::Shift(-3.0)),
            ("a:320|ms", Change::Timing(320.0, 1.0)),
            ("a:320|h|@0.5", Change::Timing(320.0, 2.0)),
            ("a:320|d", Change::Timing(320.0, 1.0)),
            ("a:user-7|s", Change::Member("user-7")),
        ] {
            assert_eq!(metric(line).changes, [expected], "{line}");
        }
    }

    #[test]
    fn tags_and_several_values_are_read() {
        let read = metric("page.views:1:2:3|ms|@0.5|#env:prod,canary,,url:http://x,env:dev|c:ci-123|T1656581400");
        assert_eq!(read.name, "page.views");
        assert_eq!(read.tags, [("canary", "true"), ("env", "dev"), ("url", "http://x")]);
        let values = [1.0, 2.0, 3.0].map(|value| Change::Timing(value, 2.0));
        assert_eq!(read.changes, values);
        for nothing in ["", "_e{5,4}:title|text", "_sc|name|0"] {
            assert_eq!(parse_line(nothing), Ok(None), "{nothing}");
        }
    }

    #[test]
    fn what_is_expected_is_told_with_its_place() {
        for (line, at, expected) in [
            (":1|c", 0, "a metric's name"),
            ("a", 1, "`:` and a value"),
            ("a|c", 1, "`:` and a value"),
            ("a:1", 3, "`|` and a type"),
            ("a:|c", 2, "a number"),
            ("a:x|g", 2, "a number"),
            ("a:inf|g", 2, "a number"),
            ("a:1:|ms", 4, "a number"),
            ("a:|s", 2, "a member"),
            ("a:1|x", 4, "`c`, `g`"),
            ("a:1|", 4, "`c`, `g`"),
            ("a:1|c|@0", 6, "a sample rate"),
            ("a:1|c|@2", 6, "a sample rate"),
            ("a:1|c|@x", 6, "a sample rate"),
        ] {
            let error = parse_line(line).unwrap_err();
            assert!(error.at == at && error.expected.starts_with(expected), "{line}: {error:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            name in "[a-z.]{1,20}",
            values in proptest::collection::vec(-1e9_f64..1e9, 1..5),
            tags in proptest::collection::btree_map("[a-z]{1,5}", "[a-z0-9/:]{1,8}", 0..4),
        ) {
            let texts: Vec<String> = values.iter().map(f64::to_string).collect();
            let written: Vec<String> = tags.iter().map(|(name, value)| format!("{name}:{value}")).collect();
            let line = format!("{name}:{}|c|#{}", texts.join(":"), written.join(","));
            let read = parse_line(&line).unwrap().unwrap();
            prop_assert_eq!(read.name, &name);
            prop_assert_eq!(read.changes, values.into_iter().map(Change::Count).collect::<Vec<_>>());
            prop_assert!(read.tags.into_iter().eq(tags.iter().map(|(name, value)| (name.as_str(), value.as_str()))));
        }

        #[test]
        fn no_text_makes_the_parser_panic(line in "\\PC{0,60}", mixed in "[ab:|@#,.+0-9cgmsä-]{0,40}") {
            for text in [&line, &mixed] {
                if let Err(error) = parse_line(text) {
                    prop_assert!(text.is_char_boundary(error.at));
                }
            }
        }
    }
}
