//! What a command prints as JSON: an object, or a list of objects.
//!
//! An object with the key `fields` is a point: `{"measurement": "…", "tags": {…}, "fields": {…}}`, where `measurement` and `tags` may be
//! left out. Any other object is the fields of one. The measurement is the command's name unless the object tells its own. Objects and
//! lists inside fields are flattened: `{"a": {"b": 1}, "c": [2]}` has the fields `a_b` and `c_0`. Numbers are floats, whether they have a
//! fraction or not: a field that once happens to be whole must not become an integer for ever. Null is no value.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::points::{Field, FieldValue, Point, Tag};

/// The points of a document, and for what is none its place in the list and what was expected.
pub fn points<'a>(document: &'a Value, name: &'a str) -> Vec<Result<Point<'a>, (usize, &'static str)>> {
    let items = match document {
        Value::Array(items) => items.as_slice(),
        item => std::slice::from_ref(item),
    };
    items.iter().enumerate().map(|(index, item)| point(item, name).map_err(|expected| (index, expected))).collect()
}

fn point<'a>(item: &'a Value, name: &'a str) -> Result<Point<'a>, &'static str> {
    let Value::Object(object) = item else { return Err("an object, or a list of objects") };
    let mut point = Point { measurement: name.into(), tags: Vec::new(), fields: Vec::new(), time_ms: None };
    let Some(Value::Object(fields)) = object.get("fields") else {
        flatten(None, object, &mut point.fields);
        return Ok(point);
    };
    flatten(None, fields, &mut point.fields);
    for (key, value) in object {
        match (key.as_str(), value) {
            ("fields", _) => {}
            ("measurement", Value::String(measurement)) => point.measurement = measurement.into(),
            ("measurement", _) => return Err("a text as `measurement`"),
            ("tags", Value::Object(tags)) => point.tags = self::tags(tags)?,
            ("tags", _) => return Err("an object as `tags`"),
            _ => return Err("nothing but `measurement` and `tags` beside `fields`"),
        }
    }
    Ok(point)
}

fn tags(tags: &Map<String, Value>) -> Result<Vec<Tag<'_>>, &'static str> {
    let tag = |(name, value): (&'_ String, &'_ Value)| match value {
        Value::String(text) => Ok((name.clone().into(), text.clone().into())),
        Value::Number(_) | Value::Bool(_) => Ok((name.clone().into(), value.to_string().into())),
        Value::Null => Ok((name.clone().into(), "".into())),
        Value::Array(_) | Value::Object(_) => Err("a text, number or bool as a tag's value"),
    };
    tags.iter().map(tag).collect()
}

fn flatten<'a>(parent: Option<&str>, object: &'a Map<String, Value>, fields: &mut Vec<Field<'a>>) {
    for (key, value) in object {
        match parent {
            None => flatten_value(Cow::Borrowed(key), value, fields),
            Some(parent) => flatten_value(format!("{parent}_{key}").into(), value, fields),
        }
    }
}

fn flatten_value<'a>(name: Cow<'a, str>, value: &'a Value, fields: &mut Vec<Field<'a>>) {
    match value {
        Value::Null => {}
        Value::Bool(value) => fields.push((name, FieldValue::Bool(*value))),
        Value::Number(value) => fields.extend(value.as_f64().map(|value| (name, FieldValue::Float(value)))),
        Value::String(text) => fields.push((name, FieldValue::Text(text.into()))),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                flatten_value(format!("{name}_{index}").into(), item, fields);
            }
        }
        Value::Object(object) => flatten(Some(&name), object, fields),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_are_read() {
        let document = json!([
            {"a": {"b": 1, "c": [true, {"d": "x"}]}, "n": null, "big": 12_345_678_901_u64},
            {"measurement": "other", "tags": {"t": "u", "n": 7, "b": true, "nil": null}, "fields": {"x": -1.5}},
            {"fields": 3},
        ]);
        let read: Vec<Point<'_>> = points(&document, "name").into_iter().map(Result::unwrap).collect();
        let mut fields = read[0].fields.clone();
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        let expected = [
            ("a_b".into(), FieldValue::Float(1.0)),
            ("a_c_0".into(), FieldValue::Bool(true)),
            ("a_c_1_d".into(), FieldValue::Text("x".into())),
            ("big".into(), FieldValue::Float(12_345_678_901.0)),
        ];
        assert_eq!((&*read[0].measurement, fields.as_slice()), ("name", expected.as_slice()));
        assert_eq!((&*read[1].measurement, read[1].tags.len()), ("other", 4));
        assert!(read[1].tags.contains(&("n".into(), "7".into())));
        assert_eq!(read[1].fields, [("x".into(), FieldValue::Float(-1.5))]);
        assert_eq!(read[2].fields, [("fields".into(), FieldValue::Float(3.0))]);
    }

    #[test]
    fn what_is_no_point_spoils_no_other() {
        let document = json!([
            3,
            {"fields": {"x": 1}, "tags": []},
            {"fields": {"x": 1}, "tags": {"a": {}}},
            {"fields": {"x": 1}, "measurement": 3},
            {"fields": {"x": 1}, "time": 3},
            {"x": 1},
        ]);
        let read = points(&document, "name");
        for (index, item) in read.iter().enumerate().take(5) {
            assert_eq!(item.as_ref().unwrap_err().0, index);
        }
        assert!(read[5].is_ok());
        assert!(points(&json!("text"), "name")[0].is_err());
        assert!(points(&json!([]), "name").is_empty());
    }

    proptest! {
        #[test]
        fn plain_objects_come_back(fields in proptest::collection::btree_map("[a-eg-z]{1,8}", -1e12_f64..1e12, 1..10)) {
            let document = serde_json::to_value(&fields).unwrap();
            let point = points(&document, "name").remove(0).unwrap();
            let mut read: Vec<_> = point.fields.into_iter().collect();
            read.sort_by(|(a, _), (b, _)| a.cmp(b));
            let expected: Vec<_> = fields.into_iter().map(|(name, value)| (name.into(), FieldValue::Float(value))).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
