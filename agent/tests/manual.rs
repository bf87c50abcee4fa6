//! The manual page says what the program itself says.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::process::Command;

const AGENT: &str = env!("CARGO_BIN_EXE_plimsoll-agent");

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("COLUMNS", "96").output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_manual_page_holds_every_line_of_the_help() {
    let page = output(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/man-page"), &[AGENT]);
    let page = page.replace("\\&", "").replace("\\-", "-").replace("\\e", "\\");
    let lines: Vec<&str> = page.lines().collect();
    for arguments in [&["--help"][..], &["once", "--help"], &["update", "--help"]] {
        for line in output(AGENT, arguments).lines() {
            let (heading, rest) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
            let is_heading = lines.contains(&&*format!(".SH {}", heading.to_uppercase())) && page.contains(rest)
                || heading == "Usage" && lines.contains(&rest);
            assert!(
                lines.contains(&line) || is_heading || page.contains(&format!("plimsoll-agent - {line}")),
                "{line}"
            );
        }
    }
}
