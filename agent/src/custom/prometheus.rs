//! The text of a Prometheus exporter: the exposition format 0.0.4 and OpenMetrics 1.0.
//!
//! A sample is a line `name{label="value",…} value`, after which a time and, in OpenMetrics, an exemplar may follow; both are passed
//! over. Lines with `#` are comments or say what a metric is, which nothing here depends on; `# EOF` ends the text. Names in `"`, as
//! Prometheus 3 has them, are read too.

use std::borrow::Cow;

use super::text::{Cursor, SyntaxError, Unexpected, lines};

/// Name and value of a label.
pub type Label<'a> = (Cow<'a, str>, Cow<'a, str>);

/// A value of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// The sample's name, with endings such as `_bucket`.
    pub name: Cow<'a, str>,
    /// Names and values of the labels.
    pub labels: Vec<Label<'a>>,
    /// The value, which may be not a number or infinite.
    pub value: f64,
}

/// Each sample of a text, and what can't be read of it.
pub fn parse(text: &[u8]) -> impl Iterator<Item = Result<Sample<'_>, SyntaxError>> {
    let until_end = lines(text).take_while(|(_, line)| !line.is_ok_and(|line| line.trim_end() == "# EOF"));
    until_end.filter_map(|(index, line)| match line {
        Ok(line) => parse_line(line).map_err(|error| error.in_line(index, line)).transpose(),
        Err(error) => Some(Err(error)),
    })
}

fn parse_line(line: &str) -> Result<Option<Sample<'_>>, Unexpected> {
    let mut cursor = Cursor::new(line);
    cursor.skip_blanks();
    if matches!(cursor.peek(), None | Some(b'#')) {
        return Ok(None);
    }
    let start = cursor.unexpected("a metric's name");
    let mut name = Cow::Borrowed(cursor.until(|c| c == '{' || c == ' ' || c == '\t'));
    if !is_name(&name, true) && !name.is_empty() {
        return Err(start);
    }
    cursor.skip_blanks();
    let labels = if cursor.eat(b'{') { labels(&mut cursor, &mut name)? } else { Vec::new() };
    if name.is_empty() {
        return Err(start);
    }
    cursor.skip_blanks();
    let value = number(&mut cursor, "a value")?;
    cursor.skip_blanks();
    if !matches!(cursor.peek(), None | Some(b'#')) {
        number(&mut cursor, "a time or the end of the line")?;
        cursor.skip_blanks();
    }
    if cursor.peek() != Some(b'#') {
        cursor.end("the end of the line")?;
    }
    Ok(Some(Sample { name, labels, value }))
}

/// Reads labels up to and with `}`. A text in `"` that no value follows is the metric's name.
fn labels<'a>(cursor: &mut Cursor<'a>, metric: &mut Cow<'a, str>) -> Result<Vec<Label<'a>>, Unexpected> {
    let mut labels = Vec::new();
    loop {
        cursor.skip_blanks();
        if cursor.eat(b'}') {
            return Ok(labels);
        }
        let start = cursor.unexpected("a label or `}`");
        let quotes = cursor.peek() == Some(b'"');
        let name = if quotes {
            quoted(cursor)?
        } else {
            Cow::Borrowed(cursor.until(|c| matches!(c, '=' | ' ' | '\t' | ',' | '}' | '"')))
        };
        if name.is_empty() || !(quotes || is_name(&name, false)) {
            return Err(start);
        }
        cursor.skip_blanks();
        if cursor.eat(b'=') {
            cursor.skip_blanks();
            labels.push((name, quoted(cursor)?));
        } else if quotes && metric.is_empty() {
            *metric = name;
        } else {
            return Err(cursor.unexpected("`=` and the label's value"));
        }
        cursor.skip_blanks();
        if !cursor.eat(b',') && cursor.peek() != Some(b'}') {
            return Err(cursor.unexpected("`,` or `}`"));
        }
    }
}

fn quoted<'a>(cursor: &mut Cursor<'a>) -> Result<Cow<'a, str>, Unexpected> {
    let start = cursor.unexpected("a `\"` at the end of the text");
    cursor.require(b'"', "a text in `\"`")?;
    let mut text = Cow::Borrowed("");
    loop {
        let part = cursor.until(|c| c == '\\' || c == '"');
        match &mut text {
            Cow::Borrowed("") => text = Cow::Borrowed(part),
            text => text.to_mut().push_str(part),
        }
        if cursor.eat(b'"') {
            return Ok(text);
        }
        if !cursor.eat(b'\\') {
            return Err(start);
        }
        let escape = cursor.peek();
        let character = match escape {
            Some(b'n') => "\n",
            Some(b'"') => "\"",
            // Before anything else the backslash stands for itself, as Prometheus reads it.
            _ => "\\",
        };
        text.to_mut().push_str(character);
        cursor.pass(usize::from(matches!(escape, Some(b'n' | b'"' | b'\\'))));
    }
}

fn number(cursor: &mut Cursor<'_>, expected: &'static str) -> Result<f64, Unexpected> {
    let start = cursor.clone();
    cursor.until(|c| c == ' ' || c == '\t').parse().map_err(|_| start.unexpected(expected))
}

fn is_name(text: &str, of_metric: bool) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || (of_metric && c == ':');
    text.chars().all(is_part) && !text.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(name: &str, labels: &[(&str, &str)], value: f64) -> Sample<'static> {
        let text = |text: &str| Cow::Owned(text.to_owned());
        let labels = labels.iter().map(|(name, value)| (text(name), text(value)));
        Sample { name: text(name), labels: labels.collect(), value }
    }

    fn all(text: &str) -> Vec<Sample<'_>> {
        parse(text.as_bytes()).collect::<Result<_, _>>().unwrap()
    }

    /// Written after the examples in the descriptions of both formats.
    const TEXT: &str = r#"# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400",}    3 1395066363000

# Escaping in label values:
msdos_file_access_time_seconds{path="C:\\DIR\\FILE.TXT",error="Cannot find file:\n\"FILE.TXT\""} 1.458255915e9
metric_without_timestamp_and_labels 12.47
something_weird{problem="division by zero"} +Inf -3982045
# TYPE rpc_duration_seconds summary
rpc_duration_seconds { quantile = "0.01" , a="b" } 3102
rpc_duration_seconds_sum	1.7560473e+07
"#;

    #[test]
    fn the_exposition_format_is_read() {
        assert_eq!(
            all(TEXT),
            [
                sample("http_requests_total", &[("method", "post"), ("code", "200")], 1027.0),
                sample("http_requests_total", &[("method", "post"), ("code", "400")], 3.0),
                sample(
                    "msdos_file_access_time_seconds",
                    &[("path", "C:\\DIR\\FILE.TXT"), ("error", "Cannot find file:\n\"FILE.TXT\"")],
                    1_458_255_915.0
                ),
                sample("metric_without_timestamp_and_labels", &[], 12.47),
                sample("something_weird", &[("problem", "division by zero")], f64::INFINITY),
                sample("rpc_duration_seconds", &[("quantile", "0.01"), ("a", "b")], 3102.0),
                sample("rpc_duration_seconds_sum", &[], 17_560_473.0),
            ]
        );
    }

    #[test]
    fn openmetrics_is_read_to_its_end() {
        let text = "# TYPE foo histogram\n# UNIT foo seconds\nfoo_bucket{le=\"0.01\"} 8 1520879607.789 # {id=\"a b\"} 0.0 1.5\n\
                    foo_bucket{le=\"+Inf\"} 17 # {id=\"#\"} 0.67\nfoo_created 1520430000.123\nbuild_info{v=\"1\"} 1.0\n\
                    {\"my.metric\",\"l.1\"=\"x\"} NaN\n# EOF\nrest 1\n";
        let read = all(text);
        let expected = [
            sample("foo_bucket", &[("le", "0.01")], 8.0),
            sample("foo_bucket", &[("le", "+Inf")], 17.0),
            sample("foo_created", &[], 1_520_430_000.123),
            sample("build_info", &[("v", "1")], 1.0),
        ];
        assert_eq!(read[..4], expected);
        assert!(read[4].value.is_nan());
        assert_eq!((&*read[4].name, &*read[4].labels[0].0, read.len()), ("my.metric", "l.1", 5));
    }

    #[test]
    fn what_is_expected_is_told_with_its_place_and_the_rest_is_read() {
        for (line, column, expected) in [
            ("<html>", 1, "a metric's name"),
            ("9a 1", 1, "a metric's name"),
            ("{} 1", 1, "a metric's name"),
            ("a", 2, "a value"),
            ("a x", 3, "a value"),
            ("a{b} 1", 4, "`=` and the label's value"),
            ("a{b=c} 1", 5, "a text in `\"`"),
            ("a{b=\"c} 1", 5, "a `\"` at the end of the text"),
            ("a{b=\"c\"d=\"e\"} 1", 8, "`,` or `}`"),
            ("a{b=\"c\", 1", 11, "`=` and the label's value"),
            ("a{,} 1", 3, "a label or `}`"),
            ("a{b=\"c\"", 8, "`,` or `}`"),
            ("a 1 then", 5, "a time or the end of the line"),
            ("a 1 2 3", 7, "the end of the line"),
        ] {
            let text = format!("ok 1\n{line}\nok 2\n");
            let read: Vec<_> = parse(text.as_bytes()).collect();
            assert!(read[0].is_ok() && read[2].is_ok() && read.len() == 3, "{line}: {read:?}");
            let error = read[1].clone().unwrap_err();
            if line == "a{b=\"c\", 1" {
                assert_eq!(error.line, 2, "{error}");
                continue;
            }
            assert_eq!(error, SyntaxError { line: 2, column, expected }, "{line}");
        }
    }

    fn written(sample: &Sample<'_>) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels = sample.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value)));
        format!("{}{{{}}} {:?}", sample.name, labels.collect::<Vec<_>>().join(","), sample.value)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,20}",
            labels in proptest::collection::vec(("[a-zA-Z_][a-zA-Z0-9_]{0,10}", "[^\r]{0,20}"), 0..5),
            value in any::<f64>().prop_filter("a number", |value| !value.is_nan()),
        ) {
            let labels: Vec<_> = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
            let sample = sample(&name, &labels, value);
            let text = written(&sample);
            prop_assert_eq!(parse(text.as_bytes()).collect::<Vec<_>>(), [Ok(sample)], "{}", text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}", mixed in "[ab{}\",=\\\\ #\n0-9ä]{0,60}") {
            parse(text.as_bytes()).for_each(drop);
            parse(mixed.as_bytes()).for_each(drop);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            parse(&bytes).for_each(drop);
        }
    }
}
