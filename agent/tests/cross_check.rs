//! A sample of this host, field by field, against what other programs and Python read: see `tests/cross_check/`.
#![cfg(target_os = "linux")]

use std::process::{Command, Output};

use plimsoll_nats::catalog::MEASUREMENTS;

fn cross_check(arguments: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cross_check");
    let unread: Vec<&str> = MEASUREMENTS.iter().filter(|spec| spec.fields.is_empty()).map(|spec| spec.name).collect();
    let mut command = Command::new("python3");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLIMSOLL_")) {
        command.env_remove(name);
    }
    command.args(["-B", script, env!("CARGO_BIN_EXE_plimsoll-agent"), "--without", &unread.join(",")]);
    command.args(arguments).output().expect("python3 is installed")
}

fn differences(output: &Output) -> Vec<String> {
    let lines = String::from_utf8_lossy(&output.stderr);
    lines.lines().filter_map(|line| Some(line.strip_prefix("DIFFERS ")?.to_owned())).collect()
}

#[test]
fn every_field_is_what_others_read() {
    let output = cross_check(&[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for certain in ["cpu: ", "memory: ", "load: ", "filesystem: "] {
        let line = said.lines().find(|line| line.starts_with(certain)).unwrap_or_default();
        assert!(line.contains("compared ") && !line.ends_with("nothing"), "{said}");
    }
}

#[test]
fn what_is_false_or_has_no_check_is_found() {
    let altered = ["memory.total_bytes", "cpu.usage_percent", "filesystem.read_only", "load.load1", "memory.made_up"];
    let output = cross_check(&["--alter", &altered.join(",")]);
    assert_eq!(output.status.code(), Some(1));
    let found = differences(&output);
    for field in altered {
        assert!(found.iter().any(|difference| difference.starts_with(field)), "{field} is not among {found:#?}");
    }
    assert!(found.iter().any(|difference| difference.starts_with("memory.made_up has no check")), "{found:#?}");
    let others = found.iter().filter(|difference| !altered.iter().any(|field| difference.starts_with(field)));
    assert_eq!(others.count(), 0, "{found:#?}");
}
