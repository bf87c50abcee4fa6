//! docs/measurements.md says what the catalog says.

#[allow(dead_code, reason = "its `main` writes the page")]
#[path = "../examples/measurements.rs"]
mod measurements;

use plimsoll_nats::catalog::MEASUREMENTS;

#[test]
fn the_page_is_not_stale() {
    let written = std::fs::read_to_string(measurements::PATH).expect("docs/measurements.md is there");
    let expected = measurements::page();
    let differs = written.lines().zip(expected.lines()).find(|(written, expected)| written != expected);
    assert!(written == expected, "docs/measurements.md is stale: run `make docs`; first difference: {differs:?}");
}

#[test]
fn the_page_names_every_field_and_its_tables_are_whole() {
    let page = measurements::page();
    for spec in MEASUREMENTS {
        assert!(page.contains(&format!("\n## {}\n", spec.name)), "{}", spec.name);
        for name in spec.tags.iter().map(|tag| tag.name).chain(spec.fields.iter().map(|field| field.name)) {
            assert!(page.contains(&format!("\n| `{name}` |")), "{}.{name}", spec.name);
        }
    }
    // A table ends where its lines do, and each of its lines has as many cells as the one above.
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    let lines: Vec<&str> = page.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair.iter().all(|line| line.starts_with('|'))) {
        assert_eq!(cells(pair[0]), cells(pair[1]), "{}", pair[1]);
    }
}
