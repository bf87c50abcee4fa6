//! Influx line protocol: `measurement,tag=value field=1.5,other=2i 1465839830100400200`.
//!
//! As InfluxData's reference "Line protocol" has it: a comma or space in a measurement, and also `=` in a tag or field, follows a
//! backslash; floats stand alone, integers end in `i` or `u`, texts are in `"`, with `\"` and `\\` inside; the time is in ns. One line is
//! one point: a text holds no line break. Not a number and infinity are not part of the protocol.

use std::borrow::Cow;

use super::{
    points::{FieldValue, Point},
    text::{Cursor, Unexpected},
};

const NS_PER_MS: i64 = 1_000_000;

/// The unit of a line's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// What the protocol says of itself.
    #[default]
    Nanoseconds,
    /// 1 µs.
    Microseconds,
    /// 1 ms.
    Milliseconds,
    /// 1 s.
    Seconds,
}

impl Precision {
    /// The Unix ms of a time; none where that is past what 64 bits hold.
    fn to_ms(self, time: i64) -> Option<i64> {
        match self {
            Self::Nanoseconds => Some(time.div_euclid(NS_PER_MS)),
            Self::Microseconds => Some(time.div_euclid(1000)),
            Self::Milliseconds => Some(time),
            Self::Seconds => time.checked_mul(1000),
        }
    }
}

/// Reads a line whose time is in ns; none when it is empty or a comment.
pub fn parse_line(line: &str) -> Result<Option<Point<'_>>, Unexpected> {
    parse_line_in(Precision::Nanoseconds, line)
}

/// Reads a line; none when it is empty or a comment.
pub fn parse_line_in(precision: Precision, line: &str) -> Result<Option<Point<'_>>, Unexpected> {
    let mut cursor = Cursor::new(line);
    cursor.skip_blanks();
    if matches!(cursor.peek(), None | Some(b'#')) {
        return Ok(None);
    }
    let measurement = name(&mut cursor, &[',', ' '], "a measurement")?;
    let mut tags = Vec::new();
    while cursor.eat(b',') {
        let key = name(&mut cursor, &[',', '=', ' '], "a tag's name")?;
        cursor.require(b'=', "`=` and the tag's value")?;
        tags.push((key, escaped(&mut cursor, &[',', '=', ' '])));
    }
    cursor.require(b' ', "`,` and a tag, or a space and a field")?;
    cursor.skip_blanks();
    let mut fields = Vec::new();
    loop {
        let key = name(&mut cursor, &[',', '=', ' '], "a field's name")?;
        cursor.require(b'=', "`=` and the field's value")?;
        fields.push((key, value(&mut cursor)?));
        if !cursor.eat(b',') {
            break;
        }
    }
    let time_ms = time(&mut cursor, precision)?;
    Ok(Some(Point { measurement, tags, fields, time_ms }))
}

/// Reads a text that is not empty, up to one of `ends`.
fn name<'a>(cursor: &mut Cursor<'a>, ends: &[char], expected: &'static str) -> Result<Cow<'a, str>, Unexpected> {
    let missing = cursor.unexpected(expected);
    let name = escaped(cursor, ends);
    if name.is_empty() { Err(missing) } else { Ok(name) }
}

/// Reads up to one of `ends` that no backslash precedes. A backslash before anything else is itself.
fn escaped<'a>(cursor: &mut Cursor<'a>, ends: &[char]) -> Cow<'a, str> {
    let mut text = Cow::Borrowed("");
    loop {
        push(&mut text, cursor.until(|c| c == '\\' || ends.contains(&c)));
        if !cursor.eat(b'\\') {
            return text;
        }
        let escapes = cursor.rest().chars().next().filter(|next| ends.contains(next));
        match escapes {
            Some(next) => {
                let after = &cursor.rest()[..next.len_utf8()];
                cursor.pass(after.len());
                push(&mut text, after);
            }
            None => push(&mut text, "\\"),
        }
    }
}

/// Appends a part, borrowing the first.
fn push<'a>(text: &mut Cow<'a, str>, part: &'a str) {
    if text.is_empty() {
        *text = Cow::Borrowed(part);
    } else if !part.is_empty() {
        text.to_mut().push_str(part);
    }
}

fn value<'a>(cursor: &mut Cursor<'a>) -> Result<FieldValue<'a>, Unexpected> {
    if cursor.peek() == Some(b'"') {
        return quoted(cursor).map(FieldValue::Text);
    }
    let start = cursor.clone();
    let text = cursor.until(|c| c == ',' || c == ' ');
    match text {
        "t" | "T" | "true" | "True" | "TRUE" => return Ok(FieldValue::Bool(true)),
        "f" | "F" | "false" | "False" | "FALSE" => return Ok(FieldValue::Bool(false)),
        _ => {}
    }
    if let Some(digits) = text.strip_suffix(['i', 'u']) {
        let integer = digits.parse().map(FieldValue::Integer);
        return integer.map_err(|_| start.unexpected("an integer of 64 bits with sign"));
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let float = text.parse().ok().filter(|_| is_number).map(FieldValue::Float);
    float.ok_or_else(|| start.unexpected("a number, an integer such as `1i`, a text in `\"`, `true` or `false`"))
}

fn quoted<'a>(cursor: &mut Cursor<'a>) -> Result<Cow<'a, str>, Unexpected> {
    let start = cursor.unexpected("a `\"` at the end of the text");
    cursor.pass(1);
    let mut text = Cow::Borrowed("");
    loop {
        push(&mut text, cursor.until(|c| c == '\\' || c == '"'));
        if cursor.eat(b'"') {
            return Ok(text);
        }
        if !cursor.eat(b'\\') {
            return Err(start);
        }
        if cursor.eat(b'"') {
            push(&mut text, "\"");
        } else {
            cursor.eat(b'\\');
            push(&mut text, "\\");
        }
    }
}

/// Reads the time, in ms; none where the line ends without one.
fn time(cursor: &mut Cursor<'_>, precision: Precision) -> Result<Option<i64>, Unexpected> {
    if !cursor.rest().is_empty() {
        cursor.require(b' ', "`,` and a field, or a space and the time")?;
    }
    cursor.skip_blanks();
    if cursor.rest().is_empty() {
        return Ok(None);
    }
    let start = cursor.clone();
    let time: Option<i64> = cursor.until(|c| c == ' ').parse().ok().and_then(|time| precision.to_ms(time));
    let expected = match precision {
        Precision::Nanoseconds => "a time in ns",
        Precision::Microseconds => "a time in µs",
        Precision::Milliseconds => "a time in ms",
        Precision::Seconds => "a time in s",
    };
    let time = time.ok_or_else(|| start.unexpected(expected))?;
    cursor.skip_blanks();
    cursor.end("the end of the line")?;
    Ok(Some(time))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn point(line: &str) -> Point<'_> {
        parse_line(line).unwrap().unwrap()
    }

    fn owned(text: &str) -> Cow<'static, str> {
        Cow::Owned(text.to_owned())
    }

    #[test]
    fn the_examples_of_the_reference_are_read() {
        let read = point("weather,location=us-midwest,season=summer temperature=82,bug_count=-3i 1465839830100400200");
        assert_eq!(read.measurement, "weather");
        assert_eq!(read.tags, [(owned("location"), owned("us-midwest")), (owned("season"), owned("summer"))]);
        let fields = [(owned("temperature"), FieldValue::Float(82.0)), (owned("bug_count"), FieldValue::Integer(-3))];
        assert_eq!(read.fields, fields);
        assert_eq!(read.time_ms, Some(1_465_839_830_100));

        let read = point(r#"my\ mea\,sure,a\=\ b=c\,d f\,1="a \"b\" \\ c, d=e",ok=T,no=false,u=7u,e=-1.5e-3"#);
        assert_eq!(read.measurement, "my mea,sure");
        assert_eq!(read.tags, [(owned("a= b"), owned("c,d"))]);
        let text = FieldValue::Text(owned(r#"a "b" \ c, d=e"#));
        assert_eq!(read.fields[0], (owned("f,1"), text));
        let values: Vec<_> = read.fields.into_iter().skip(1).map(|(_, value)| value).collect();
        let expected =
            [FieldValue::Bool(true), FieldValue::Bool(false), FieldValue::Integer(7), FieldValue::Float(-0.0015)];
        assert_eq!(values, expected);
        assert_eq!(read.time_ms, None);

        assert_eq!(point(r"a\b\\c=d x=1").measurement, r"a\b\\c=d");
        assert_eq!(point("m x=1  -1500000 ").time_ms, Some(-2));
        for nothing in ["", "   ", "# a comment", "  # x=1"] {
            assert_eq!(parse_line(nothing), Ok(None), "{nothing}");
        }
    }

    #[test]
    fn times_are_of_the_unit_that_the_reader_says() {
        let ms = |precision, line| parse_line_in(precision, line).map(|point| point.and_then(|point| point.time_ms));
        assert_eq!(ms(Precision::Microseconds, "m x=1 -1"), Ok(Some(-1)));
        assert_eq!(ms(Precision::Milliseconds, "m x=1 1790000000123"), Ok(Some(1_790_000_000_123)));
        assert_eq!(ms(Precision::Seconds, "m x=1 1790000000"), Ok(Some(1_790_000_000_000)));
        let error = ms(Precision::Seconds, "m x=1 9223372036854775807").unwrap_err();
        assert_eq!(error, Unexpected { at: 6, expected: "a time in s" });
    }

    #[test]
    fn what_is_expected_is_told_with_its_place() {
        for (line, at, expected) in [
            (",a=b x=1", 0, "a measurement"),
            ("m,=b x=1", 2, "a tag's name"),
            ("m,a x=1", 3, "`=` and the tag's value"),
            ("m,a=b=c x=1", 5, "`,` and a tag, or a space and a field"),
            ("m", 1, "`,` and a tag, or a space and a field"),
            ("m ", 2, "a field's name"),
            ("m =1", 2, "a field's name"),
            ("m x", 3, "`=` and the field's value"),
            ("m x=", 4, "a number"),
            ("m x=nan", 4, "a number"),
            ("m x=inf", 4, "a number"),
            ("m x=1i2", 4, "a number"),
            ("m x=9223372036854775808i", 4, "an integer"),
            ("m x=18446744073709551615u", 4, "an integer"),
            ("m x=1.5i", 4, "an integer"),
            ("m x=\"open", 4, "a `\"` at the end"),
            ("m x=\"a\"b", 7, "`,` and a field, or a space and the time"),
            ("m x=1,", 6, "a field's name"),
            ("m x=1 now", 6, "a time in ns"),
            ("m x=1 1 2", 8, "the end of the line"),
        ] {
            let error = parse_line(line).unwrap_err();
            assert_eq!(error.at, at, "{line}: {error:?}");
            assert!(error.expected.starts_with(expected), "{line}: {error:?}");
        }
    }

    fn escape(text: &str, specials: &str) -> String {
        text.chars().flat_map(|c| specials.contains(c).then_some('\\').into_iter().chain([c])).collect()
    }

    fn written(point: &Point<'_>) -> String {
        let mut line = escape(&point.measurement, ", ");
        for (name, value) in &point.tags {
            line += &format!(",{}={}", escape(name, ",= "), escape(value, ",= "));
        }
        let fields = point.fields.iter().map(|(name, value)| {
            let value = match value {
                FieldValue::Float(value) => format!("{value:?}"),
                FieldValue::Integer(value) => format!("{value}i"),
                FieldValue::Bool(value) => value.to_string(),
                FieldValue::Text(text) => format!("\"{}\"", escape(text, "\"\\")),
            };
            format!("{}={value}", escape(name, ",= "))
        });
        line += &format!(" {}", fields.collect::<Vec<_>>().join(","));
        if let Some(ms) = point.time_ms {
            line += &format!(" {}", ms * NS_PER_MS);
        }
        line
    }

    fn any_value() -> impl Strategy<Value = FieldValue<'static>> {
        prop_oneof![
            any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(FieldValue::Float),
            any::<i64>().prop_map(FieldValue::Integer),
            any::<bool>().prop_map(FieldValue::Bool),
            "[^\r\n]{0,20}".prop_map(|text| FieldValue::Text(text.into())),
        ]
    }

    prop_compose! {
        /// A backslash in a name may precede what it would escape, so that there is none.
        fn any_point()(
            measurement in "[^#\\s\\\\][^\\t\r\n\\\\]{0,10}",
            tags in proptest::collection::vec(("[^\r\n\\\\]{1,10}", "[^\r\n\\\\]{0,10}"), 0..4),
            fields in proptest::collection::vec(("[^\t\r\n\\\\]{1,10}", any_value()), 1..5),
            time_ms in proptest::option::of(-1_000_000_000_000_i64..4_000_000_000_000),
        ) -> Point<'static> {
            Point {
                measurement: measurement.into(),
                tags: tags.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
                fields: fields.into_iter().map(|(name, value)| (name.into(), value)).collect(),
                time_ms,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(point in any_point()) {
            let line = written(&point);
            prop_assert_eq!(parse_line(&line), Ok(Some(point)), "{}", line);
        }

        #[test]
        fn no_text_makes_the_parser_panic(line in "\\PC{0,60}", mixed in "[ab\\\\,= \"i0-9ä]{0,40}") {
            for text in [&line, &mixed] {
                if let Err(error) = parse_line(text) {
                    prop_assert!(text.is_char_boundary(error.at));
                    let _ = error.in_line(0, text);
                }
            }
        }
    }
}
