//! `docs/agent.example.toml`, which `--help` shows: it is valid, and no key is missing.

use std::{io::Write as _, process::Command};

use figment::providers::{Format as _, Toml};
use plimsoll_agent::AgentConfig;
use plimsoll_service::config::{Validate as _, load};
use serde_json::{Value, json};

const EXAMPLE: &str = include_str!("../../docs/agent.example.toml");

/// The example with every key in effect: prose has a space after its `#`.
fn uncommented() -> String {
    EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .fold(String::new(), |text, line| text + line + "\n")
}

/// The keys of the section at `path` as its type knows them: those that the error of an unknown key lists.
fn known_keys(document: &Value, path: &[String]) -> Vec<String> {
    let mut document = document.clone();
    let mut section = &mut document;
    for step in path {
        section = match section {
            Value::Array(items) => &mut items[0],
            section => &mut section[step],
        };
    }
    section["no_such_key"] = json!(1);
    let error = serde_json::from_value::<AgentConfig>(document).expect_err("an unknown key").to_string();
    let (_, known) = error.split_once("expected ").unwrap_or_else(|| panic!("{path:?}: {error}"));
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every key of the example below `path`, each section held against its type.
fn compare(document: &Value, section: &Value, path: &[String], missing: &mut Vec<String>) -> usize {
    let known = known_keys(document, path);
    let mut count = known.len();
    for key in known {
        let below: Vec<String> = path.iter().cloned().chain([key.clone()]).collect();
        match &section[&key] {
            Value::Null => missing.push(below.join(".")),
            Value::Object(_) => count += compare(document, &section[&key], &below, missing),
            Value::Array(items) if items[0].is_object() => {
                let first: Vec<String> = below.iter().cloned().chain(["0".to_owned()]).collect();
                count += compare(document, &items[0], &first, missing);
            }
            _ => {}
        }
    }
    count
}

#[test]
fn the_example_has_every_key() {
    let document: Value = Toml::from_str(&uncommented()).expect("TOML");
    serde_json::from_value::<AgentConfig>(document.clone()).expect("the types know every key of the example");
    let mut missing = Vec::new();
    let count = compare(&document, &document, &[], &mut missing);
    assert!(count > 80, "only {count} keys were looked for");
    assert_eq!(missing, [""; 0], "docs/agent.example.toml lacks keys of the configuration");
}

#[test]
fn the_example_is_valid_as_it_is_and_with_every_key() {
    for text in [EXAMPLE.to_owned(), uncommented()] {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let config: AgentConfig = load("agent", &["nats"], Some(file.path())).expect("valid");
        assert_eq!(config.problems(), [""; 0]);
    }
    let plain: Value = Toml::from_str(EXAMPLE).expect("TOML");
    assert_eq!(plain, json!({}), "a copy of the example changes nothing");
}

#[test]
fn the_help_shows_the_example() {
    let output = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent")).arg("--help").output().expect("it runs");
    let help = String::from_utf8(output.stdout).expect("text");
    for line in EXAMPLE.lines().filter(|line| line.starts_with("#[")) {
        assert!(help.contains(&line[1..]), "{line} is missing");
    }
}
