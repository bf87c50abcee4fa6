//! The report as text.

use std::fmt;

use super::{BrokerReport, BrokerState, CollectorReport, Report, StateDirReport, shown};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_deref().unwrap_or("a host without a valid id");
        writeln!(f, "plimsoll-agent {} on {host}, asked by user {}", self.version, self.uid)?;
        let file = self.config_file.as_ref().map_or("defaults and variables".into(), |file| file.to_string_lossy());
        writeln!(f, "  configuration  {file}")?;
        writeln!(f, "  host           seen at {}", self.host_root.display())?;
        writeln!(f, "  state folder   {}", self.state_dir)?;
        writeln!(f, "  broker         {}", self.broker)?;
        for source in &self.sources {
            writeln!(f, "  {:14} {}: {}", source.section, source.name, source.what)?;
        }
        writeln!(f, "\n{:16}{:14}{:>6}{:>11}  EVERY", "COLLECTOR", "STATE", "ROWS", "µs")?;
        for collector in &self.collectors {
            write!(f, "{collector}")?;
        }
        Ok(())
    }
}

impl fmt::Display for CollectorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.microseconds.map(|_| self.rows.values().sum::<usize>().to_string()).unwrap_or_default();
        let micros = self.microseconds.map(|micros| micros.to_string()).unwrap_or_default();
        let every = self.interval_seconds.map(|s| shown(std::time::Duration::from_secs_f64(s))).unwrap_or_default();
        let line = format!("{:16}{:14}{rows:>6}{micros:>11}  {every}", self.collector, self.state.shown());
        writeln!(f, "{}", line.trim_end())?;
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        self.error.iter().try_for_each(|error| writeln!(f, "  error: {error}"))
    }
}

impl fmt::Display for StateDirReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match (self.exists, self.writable) {
            (true, true) => "can be written",
            (false, true) => "is made at the start",
            (_, false) => "cannot be written, so that nothing outlives the agent",
        };
        write!(f, "{} {found}", self.path.display())?;
        self.reason.iter().try_for_each(|reason| write!(f, ": {reason}"))
    }
}

impl fmt::Display for BrokerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match self.state {
            BrokerState::Accepts => "takes samples",
            BrokerState::WithoutStream => "answers, and has no stream of samples yet, which the agent makes",
            BrokerState::Away => "is away, samples wait for it",
            BrokerState::Unusable => "cannot be used, the agent would end",
        };
        write!(f, "{} {found}", self.url)?;
        self.reason.iter().try_for_each(|reason| write!(f, ": {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SourceReport, collector::tests::bad_ones};
    use super::*;

    #[test]
    fn a_report_is_a_table_with_reasons_beneath() {
        let mut collectors = bad_ones();
        collectors[3].microseconds = Some(41);
        let report = Report {
            version: "1.2.3",
            host: Some("web-1".to_owned()),
            uid: 0,
            config_file: Some("/etc/plimsoll/agent.toml".into()),
            host_root: "/".into(),
            state_dir: StateDirReport {
                path: "/var/lib/plimsoll-agent".into(),
                exists: true,
                writable: false,
                reason: Some("Permission denied".to_owned()),
            },
            broker: BrokerReport { url: "nats://b:4222".to_owned(), state: BrokerState::Accepts, reason: None },
            collectors,
            sources: vec![SourceReport {
                section: "exec",
                name: "queue".to_owned(),
                what: "queue-length every 1m".to_owned(),
            }],
        };
        let expected = "\
plimsoll-agent 1.2.3 on web-1, asked by user 0
  configuration  /etc/plimsoll/agent.toml
  host           seen at /
  state folder   /var/lib/plimsoll-agent cannot be written, so that nothing outlives the agent: Permission denied
  broker         nats://b:4222 takes samples
  exec           queue: queue-length every 1m

COLLECTOR       STATE           ROWS         µs  EVERY
cpu             fails                            1s
  error: no answer within 0.05 s: what it reads hangs
memory          off
load            fails                            1s
  error: failed to read `/sys/absent`: it is not there
wifi            nothing here       0         41  1s
  There is no wireless interface.
";
        assert_eq!(report.to_string(), expected);
        assert!(!report.is_good());
    }
}
