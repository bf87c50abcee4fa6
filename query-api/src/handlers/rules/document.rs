//! A rule as a JSON document, and which of its keys are wrong.

use plimsoll_nats::rule::Rule;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use crate::problem::{ApiError, ParameterError};

const NAME: &str = "a name such as `busy_cpu`: `[a-z][a-z0-9_]{0,62}`";
const DURATION: &str = "a duration such as `30s` or `5m`";

/// Keys that a rule must have, with what is expected of their values.
const REQUIRED: [(&str, &str); 5] = [
    ("name", NAME),
    ("measurement", NAME),
    ("field", NAME),
    ("compare", "`>`, `>=`, `<` or `<=`"),
    ("threshold", "a number in the field's unit"),
];
/// Keys that a rule may have, with what is expected of their values.
const OPTIONAL: [(&str, &str); 10] = [
    ("description", "text"),
    ("hosts", "a glob such as `web-*`"),
    ("tags", "an object of names and texts"),
    ("aggregate", "`last`, `avg`, `min` or `max`"),
    ("window", DURATION),
    ("for", DURATION),
    ("no_data_after", DURATION),
    ("severity", "`info`, `warning` or `critical`"),
    ("notify", "a list of channels such as `{\"type\": \"webhook\", \"url\": \"https://…\"}`"),
    ("enabled", "true or false"),
];

fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    REQUIRED.into_iter().chain(OPTIONAL)
}

/// The rule of a document. Fails with the keys that are wrong: all missing and unknown ones, else the first value of a wrong
/// type, else all values out of bounds.
pub(super) fn parse(body: &[u8]) -> Result<Rule, ApiError> {
    let wrong = |key: &str, expected: String| ApiError::document(vec![ParameterError::new(key, expected)]);
    let document: Value = serde_json::from_slice(body).map_err(|error| {
        wrong("body", format!("JSON: this is none at line {}, column {}", error.line(), error.column()))
    })?;
    let Value::Object(document) = document else { return Err(wrong("body", "a JSON object".to_owned())) };
    check_keys(&document)?;
    // Read again from the text: the value has forgotten which keys came twice.
    let rule: Rule = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(body))
        .map_err(|error| ApiError::document(vec![wrong_value(error.path())]))?;
    rule.validate().map_err(|errors| {
        let expected = |text: &str| text.strip_prefix("expected ").unwrap_or(text).to_owned();
        let errors = errors.into_iter().map(|error| ParameterError::new(error.field, expected(&error.expected)));
        ApiError::document(errors.collect())
    })?;
    Ok(rule)
}

fn check_keys(document: &Map<String, Value>) -> Result<(), ApiError> {
    let missing = REQUIRED.into_iter().filter(|(key, _)| !document.contains_key(*key));
    let mut errors: Vec<_> =
        missing.map(|(key, expected)| ParameterError::new(key, format!("{expected}; the key is missing"))).collect();
    let known: Vec<&str> = keys().map(|(key, _)| key).collect();
    let unknown = document.keys().filter(|key| !known.contains(&key.as_str()));
    errors.extend(unknown.map(|key| ParameterError::new(key, format!("only {}", known.join(", ")))));
    if errors.is_empty() { Ok(()) } else { Err(ApiError::document(errors)) }
}

/// What was expected at a path of the document. Where that is the document as a whole, a key came twice.
fn wrong_value(path: &serde_path_to_error::Path) -> ParameterError {
    let found = path.iter().next().and_then(|segment| match segment {
        Segment::Map { key } => keys().find(|(known, _)| known == key),
        _ => None,
    });
    match found {
        Some((_, expected)) => ParameterError::new(path.to_string(), expected),
        None => ParameterError::new("body", "each key once"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A rule with all of its keys.
    fn rule() -> Value {
        let rule = json!({
            "name": "busy", "measurement": "cpu", "field": "usage_percent", "compare": ">", "threshold": 90,
            "notify": [{ "type": "webhook", "url": "https://example.org" }],
        });
        serde_json::to_value(parse(rule.to_string().as_bytes()).expect("a rule")).expect("JSON")
    }

    fn told(document: &str) -> Vec<(String, String)> {
        let error = parse(document.as_bytes()).expect_err("refused");
        error.errors().iter().map(|error| (error.parameter.clone(), error.expected.clone())).collect()
    }

    fn wrong(document: &Value) -> Vec<String> {
        told(&document.to_string()).into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn all_keys_of_a_rule_are_known() {
        let rule = rule();
        let mut present: Vec<&str> = rule.as_object().expect("an object").keys().map(String::as_str).collect();
        let mut known: Vec<&str> = keys().map(|(key, _)| key).collect();
        present.sort_unstable();
        known.sort_unstable();
        assert_eq!(present, known);
    }

    #[test]
    fn a_wrong_value_is_named_by_its_key_without_words_of_the_implementation() {
        for key in keys().map(|(key, _)| key) {
            let mut rule = rule();
            rule[key] = json!({ "UNFIT": [] });
            let told = told(&rule.to_string());
            assert_eq!(told.len(), 1, "{told:?}");
            let (path, expected) = &told[0];
            assert!(path == key || path.starts_with(&format!("{key}.")), "{key}: {path}");
            for word in ["f64", "struct", "enum", "variant", "sequence", "map", "expected"] {
                assert!(!expected.contains(word), "{key}: {expected}");
            }
        }
        let mut rule = rule();
        rule["notify"] = json!([{ "type": "webhook", "url": "https://example.org" }, { "type": "pigeon" }]);
        assert_eq!(wrong(&rule), ["notify[1].type"]);
    }

    #[test]
    fn missing_and_unknown_keys_are_told_together() {
        let mut rule = rule();
        let document = rule.as_object_mut().expect("an object");
        document.remove("compare");
        let threshold = document.remove("threshold").expect("was there");
        document.insert("treshold".to_owned(), threshold);
        assert_eq!(wrong(&rule), ["compare", "threshold", "treshold"]);
    }

    #[test]
    fn only_an_object_with_each_key_once_is_a_rule() {
        let values: Vec<Value> = rule().as_object().expect("an object").values().cloned().collect();
        let twice = rule().to_string().replacen('{', "{\"name\":\"other\",", 1);
        for document in [&*Value::from(values).to_string(), "[]", "1", "{", &twice] {
            assert_eq!(told(document)[0].0, "body", "{document}");
        }
    }

    #[test]
    fn what_was_expected_is_said_once() {
        let mut rule = rule();
        rule["window"] = "0s".into();
        let told = told(&rule.to_string());
        assert!(told[0].0 == "window" && told[0].1.starts_with("a duration"), "{told:?}");
    }
}
