//! Pressure stall information, from /proc/pressure (Documentation/accounting/psi.rst).

use super::{CollectError, Collector, ParseError, proc_file::ProcFile};
use crate::{
    context::Context,
    rows::{Tables, Value},
};

const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];

/// How tasks waited for one resource; none where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stalls {
    some: Option<Stall>,
    full: Option<Stall>,
}

/// Time that some or all tasks waited.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stall {
    avg10_percent: f64,
    total_microseconds: u64,
}

/// Reads the pressure on each resource.
#[derive(Debug)]
pub struct Pressure {
    files: [(&'static str, ProcFile); 3],
    unknown: bool,
}

impl Pressure {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        let file = |resource| (resource, ProcFile::new(context.paths.proc("pressure").join(resource)));
        Self { files: RESOURCES.map(file), unknown: false }
    }
}

impl Collector for Pressure {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let mut failure = None;
        self.unknown = false;
        for (resource, file) in &mut self.files {
            match read(file) {
                Ok(Some(mut stalls)) => {
                    // Means nothing for a whole host, and newer kernels write zeroes (psi.rst).
                    stalls.full = stalls.full.filter(|_| *resource != "cpu");
                    rows.push(&[("resource", *resource)], &fields(&stalls));
                }
                Ok(None) => self.unknown = true,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if rows.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn notes(&self) -> Vec<String> {
        let note =
            "Pressure is unknown: the kernel is older than 4.20, built without CONFIG_PSI, or booted without `psi=1`.";
        self.unknown.then(|| note.to_owned()).into_iter().collect()
    }
}

/// None where the kernel keeps no such figures: it has no file, or one that cannot be read.
fn read(file: &mut ProcFile) -> Result<Option<Stalls>, CollectError> {
    match file.read_if_present()?.map(parse).transpose() {
        Ok(stalls) => Ok(stalls),
        Err(error) => Err(file.unparsed(error)),
    }
}

fn fields(stalls: &Stalls) -> [(&'static str, Value<'static>); 4] {
    let percent = |stall: Option<Stall>| stall.map(|stall| stall.avg10_percent).into();
    let seconds = |stall: Option<Stall>| stall.map(|stall| stall.total_microseconds as f64 / 1e6).into();
    [
        ("some_avg10_percent", percent(stalls.some)),
        ("full_avg10_percent", percent(stalls.full)),
        ("some_seconds_total", seconds(stalls.some)),
        ("full_seconds_total", seconds(stalls.full)),
    ]
}

/// Takes a file of /proc/pressure apart.
///
/// Fails without a line `some`, and on a line `some` or `full` without its ten-second average or total.
pub fn parse(text: &str) -> Result<Stalls, ParseError> {
    let mut stalls = Stalls::default();
    for (index, line) in text.lines().enumerate() {
        let (slot, figures) = match line.split_once(' ') {
            Some(("some", figures)) => (&mut stalls.some, figures),
            Some(("full", figures)) => (&mut stalls.full, figures),
            _ => continue,
        };
        let stall = Stall::parse(figures)
            .ok_or(ParseError { line: index + 1, expected: "`avg10=` and `total=` with numbers" })?;
        *slot = Some(stall);
    }
    match stalls.some {
        Some(_) => Ok(stalls),
        None => Err(ParseError { line: 0, expected: "a line `some`" }),
    }
}

impl Stall {
    fn parse(figures: &str) -> Option<Self> {
        let (mut average, mut total) = (None, None);
        for figure in figures.split_ascii_whitespace() {
            match figure.split_once('=')? {
                ("avg10", value) => average = Some(value.parse().ok()?),
                ("total", value) => total = Some(value.parse().ok()?),
                _ => {}
            }
        }
        Some(Self { avg10_percent: average?, total_microseconds: total? })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use plimsoll_nats::{Column, catalog};
    use proptest::prelude::*;

    use super::*;
    use crate::context::HostPaths;

    /// As of 6.18.
    const MEMORY: &str = "\
some avg10=0.24 avg60=0.99 avg300=0.96 total=192430005
full avg10=0.12 avg60=0.95 avg300=0.87 total=100978201
";
    const CPU: &str = "\
some avg10=1.53 avg60=0.59 avg300=2.48 total=2750406299
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
";
    /// Before 5.13 the processor has no second line.
    const OLD_CPU: &str = "some avg10=12.50 avg60=0.59 avg300=2.48 total=1500000\n";

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Pressure) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc/pressure")).unwrap();
        for (resource, text) in files {
            fs::write(dir.path().join("proc/pressure").join(resource), text).unwrap();
        }
        let pressure = Pressure::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        (dir, pressure)
    }

    fn tables() -> Tables {
        Tables::new(catalog::measurement("pressure"))
    }

    #[test]
    fn a_recorded_text_is_taken_apart() {
        let stalls = parse(MEMORY).unwrap();
        assert_eq!(stalls.some, Some(Stall { avg10_percent: 0.24, total_microseconds: 192_430_005 }));
        assert_eq!(stalls.full, Some(Stall { avg10_percent: 0.12, total_microseconds: 100_978_201 }));
        assert_eq!(parse(OLD_CPU).unwrap().full, None);
    }

    #[test]
    fn each_resource_has_a_row_and_the_processor_no_full() {
        let (_dir, mut pressure) = host(&[("cpu", CPU), ("memory", MEMORY), ("io", MEMORY)]);
        let mut tables = tables();
        pressure.collect(&mut tables).unwrap();
        let columns = tables.only().take();
        assert_eq!(columns.tags["resource"], ["cpu", "memory", "io"]);
        let full = Column::Float(vec![None, Some(100.978_201), Some(100.978_201)]);
        assert_eq!(columns.fields["full_seconds_total"], full);
        assert_eq!(columns.fields["some_avg10_percent"], Column::Float(vec![Some(1.53), Some(0.24), Some(0.24)]));
        assert!(pressure.notes().is_empty());
    }

    #[test]
    fn a_kernel_without_pressure_yields_a_note_and_no_rows() {
        let (_dir, mut pressure) = host(&[]);
        let mut tables = tables();
        pressure.collect(&mut tables).unwrap();
        assert!(tables.only().is_empty());
        assert!(pressure.notes()[0].contains("psi=1"));
    }

    #[test]
    fn one_broken_file_spoils_no_other() {
        let (dir, mut pressure) = host(&[("cpu", "what"), ("memory", MEMORY)]);
        let mut tables = tables();
        pressure.collect(&mut tables).unwrap();
        assert_eq!(tables.only().take().tags["resource"], ["memory"]);
        fs::write(dir.path().join("proc/pressure/memory"), "some avg10=x").unwrap();
        assert!(matches!(pressure.collect(&mut tables), Err(CollectError::Parse { .. })));
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        for (text, line) in [("", 0), ("full avg10=0 total=0", 0), ("\nsome avg10=0", 2), ("some avg10=0 total=-1", 1)]
        {
            assert_eq!(parse(text).unwrap_err().line, line, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "((some|full)?( (avg10|total)?=?[0-9.-]{0,22}){0,4}\n){0,4}") {
            let _ = parse(&text);
        }
    }
}
