//! `plimsoll-agent check` and `once` as their users run them.

use std::{
    io::Write as _,
    process::{Command, Output},
};

use plimsoll_nats::testing::TestServer;
use serde_json::Value;
use tempfile::NamedTempFile;

/// Runs the agent with a configuration file and no variables of its own.
fn agent(config: &str, arguments: &[&str]) -> Output {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(config.as_bytes()).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLIMSOLL_")) {
        command.env_remove(name);
    }
    command.args(arguments).arg("--config").arg(file.path()).output().expect("it runs")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn collector<'a>(report: &'a Value, name: &str) -> &'a Value {
    let collectors = report["collectors"].as_array().expect("collectors");
    collectors.iter().find(|collector| collector["collector"] == name).expect("the collector")
}

/// A broker's address where none listens.
const NOWHERE: &str = "[nats]\nurl = 'nats://127.0.0.1:1'\n";

#[test]
fn this_host_is_told_with_each_collector() {
    let state = tempfile::tempdir().expect("a folder");
    let config = format!(
        "host = 'web-1'\nstate_dir = '{}'\ncollectors.load.enabled = false\n\
         exec = [{{ name = 'queue', command = ['true', 'x'] }}]\nlisten.statsd_udp = '127.0.0.1:8125'\n{NOWHERE}",
        state.path().display()
    );
    let output = agent(&config, &["check", "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!((&report["host"], &report["state_dir"]["writable"]), (&"web-1".into(), &true.into()));
    assert_eq!((&report["broker"]["state"], &report["broker"]["url"]), (&"away".into(), &"nats://127.0.0.1:1".into()));
    let cpu = collector(&report, "cpu");
    assert_eq!((&cpu["state"], &cpu["interval_seconds"], &cpu["error"]), (&"works".into(), &1.0.into(), &Value::Null));
    assert!(cpu["rows"]["cpu"].as_u64().is_some_and(|rows| rows >= 2) && cpu["microseconds"].is_u64(), "{cpu}");
    assert_eq!(collector(&report, "load")["state"], "off");
    let sources: Vec<&Value> = report["sources"].as_array().expect("sources").iter().map(|s| &s["section"]).collect();
    assert_eq!(sources, ["exec", "listen"]);

    let text = String::from_utf8(agent(&config, &["check"]).stdout).expect("text");
    for part in ["web-1", "COLLECTOR", "is away", "\nload            off\n", "queue: true x every 1m", "can be written"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn a_host_that_cannot_be_read_is_told_with_the_reasons() {
    let root = tempfile::tempdir().expect("a folder");
    let config = format!("host_root = '{}'\n{NOWHERE}", root.path().display());
    let output = agent(&config, &["check", "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    let cpu = collector(&report, "cpu");
    assert_eq!(cpu["state"], "fails");
    let stat = root.path().join("proc/stat");
    let error = cpu["error"].as_str().expect("an error");
    assert!(error.contains(&*stat.to_string_lossy()) && error.contains("No such file"), "{error}");
    let sample = json(&agent(&config, &["once", "cpu"]));
    assert_eq!(sample["cpu"], serde_json::json!([]), "`once` reads the same host");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_broker_is_told_to_take_samples() {
    let server = TestServer::start().await;
    server.client().await;
    let config = format!("[nats]\nurl = '{}'\n", server.url());
    let output = tokio::task::spawn_blocking(move || agent(&config, &["check", "--json"])).await.expect("it ends");
    assert_eq!(json(&output)["broker"]["state"], "accepts");
}

#[test]
fn a_wrong_configuration_is_refused_before_anything_is_read() {
    for command in [&["check"][..], &["once"], &["once", "cpu"]] {
        let output = agent("intervall = '1s'", command);
        assert_eq!(output.status.code(), Some(64));
        assert!(output.stdout.is_empty());
        assert!(String::from_utf8_lossy(&output.stderr).contains("`intervall`"));
    }
}
