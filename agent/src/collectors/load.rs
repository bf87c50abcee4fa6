//! Load averages, from /proc/loadavg.

use super::{CollectError, Collector, ParseError, proc_file::ProcFile};
use crate::{context::Context, rows::Tables};

/// Load averages and tasks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadAverages {
    averages: [f64; 3],
    runnable: u64,
    tasks: u64,
}

/// Reads load averages and tasks.
#[derive(Debug)]
pub struct Load {
    file: ProcFile,
}

impl Load {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { file: ProcFile::new(context.paths.proc("loadavg")) }
    }
}

impl Collector for Load {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let load = parse(self.file.read()?).map_err(|error| self.file.unparsed(error))?;
        let [load1, load5, load15] = load.averages;
        rows.push(
            &[],
            &[
                ("load1", load1.into()),
                ("load5", load5.into()),
                ("load15", load15.into()),
                ("runnable_tasks", load.runnable.into()),
                ("tasks", load.tasks.into()),
            ],
        );
        Ok(())
    }
}

/// Takes /proc/loadavg apart; fails when it has other than three averages and `runnable/tasks`.
pub fn parse(text: &str) -> Result<LoadAverages, ParseError> {
    let wrong = || ParseError { line: 1, expected: "`load1 load5 load15 runnable/tasks`" };
    let mut words = text.split_ascii_whitespace();
    let mut average = || words.next()?.parse().ok().filter(|load: &f64| load.is_finite());
    let averages = [average().ok_or_else(wrong)?, average().ok_or_else(wrong)?, average().ok_or_else(wrong)?];
    let (runnable, tasks) = words.next().and_then(|word| word.split_once('/')).ok_or_else(wrong)?;
    Ok(LoadAverages {
        averages,
        runnable: runnable.parse().map_err(|_| wrong())?,
        tasks: tasks.parse().map_err(|_| wrong())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_text_is_taken_apart() {
        let load = parse("0.20 1.18 12.12 1/80 11206\n").unwrap();
        assert_eq!(load, LoadAverages { averages: [0.20, 1.18, 12.12], runnable: 1, tasks: 80 });
    }

    #[test]
    fn hostile_texts_are_refused() {
        for text in
            ["", "0.1 0.2", "0.1 0.2 0.3", "0.1 0.2 0.3 1-80", "nan inf 0.3 1/80", "0.1 0.2 0.3 -1/80", "a b c 1/2"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
