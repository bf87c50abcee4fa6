//! The settings of samples that are not built in.

use std::{
    collections::HashSet,
    fmt,
    marker::PhantomData,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use plimsoll_nats::{Name, spelling::measurement_problem};
use reqwest::Url;
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use super::{MAX_INTERVAL, MIN_INTERVAL, interval_problem};
use crate::custom::scrape::exclusions;

/// Longest path of a Unix socket in bytes.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Most words of a metric's name that make a measurement.
const MAX_WORDS: u8 = 5;

/// A command whose output is sampled. Commands come from this host's configuration file only.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// Names the command in logs and in the tag `job`; also the measurement of JSON that names none.
    pub name: String,
    /// The program, by absolute path or by its name in `PATH`, and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Time between two runs; default 60 s.
    #[serde(default = "minute", with = "humantime_serde")]
    pub interval: Duration,
    /// Longest run; default 10 s.
    #[serde(default = "ten_seconds", with = "humantime_serde")]
    pub timeout: Duration,
    /// What the command prints; default `influx`.
    #[serde(default)]
    pub format: ExecFormat,
}

/// What a command prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecFormat {
    /// Influx line protocol.
    #[default]
    Influx,
    /// JSON.
    Json,
}

/// A Prometheus exporter that is sampled.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrapeConfig {
    /// Names the exporter in logs and in the tag `job`.
    pub name: String,
    /// Where it serves its metrics, such as `http://127.0.0.1:9187/metrics`.
    pub url: String,
    /// Time between two scrapes; default 15 s.
    #[serde(default = "fifteen_seconds", with = "humantime_serde")]
    pub interval: Duration,
    /// Longest scrape; default 10 s.
    #[serde(default = "ten_seconds", with = "humantime_serde")]
    pub timeout: Duration,
    /// How many words of a metric's name make its measurement, 1 to 5; default 2.
    #[serde(default = "two")]
    pub words: u8,
    /// Globs of metrics that are left out; default none.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// Where programs of this host hand over samples of their own; nothing listens unless it is named.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// UDP address for StatsD, such as `127.0.0.1:8125`.
    pub statsd_udp: Option<SocketAddr>,
    /// Unix datagram socket for StatsD.
    pub statsd_socket: Option<PathBuf>,
    /// UDP address for Influx line protocol, such as `127.0.0.1:8089`.
    pub influx_udp: Option<SocketAddr>,
    /// Unix datagram socket for Influx line protocol.
    pub influx_socket: Option<PathBuf>,
    /// Time over which StatsD is summed up; default 10 s.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Whether other hosts may send to the UDP addresses; default false, which allows loopback addresses only.
    pub allow_remote: bool,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            statsd_udp: None,
            statsd_socket: None,
            influx_udp: None,
            influx_socket: None,
            interval: ten_seconds(),
            allow_remote: false,
        }
    }
}

fn minute() -> Duration {
    Duration::from_secs(60)
}

fn fifteen_seconds() -> Duration {
    Duration::from_secs(15)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn two() -> u8 {
    2
}

/// Reads `[[exec]]`. What a variable holds is text and never a list, so that no variable can name a command.
pub(super) fn exec<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ExecConfig>, D::Error> {
    let expected = "[[exec]] tables in the configuration file: for safety, commands are taken from nowhere else";
    deserializer.deserialize_seq(Tables { expected, item: PhantomData })
}

/// Reads `[[scrape]]`, likewise.
pub(super) fn scrape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ScrapeConfig>, D::Error> {
    let expected = "[[scrape]] tables in the configuration file: exporters are taken from nowhere else";
    deserializer.deserialize_seq(Tables { expected, item: PhantomData })
}

/// A list of tables, and nothing that could be read as one.
struct Tables<T> {
    expected: &'static str,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Tables<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(items)
    }
}

/// What is wrong with the custom sources.
pub(super) fn problems(exec: &[ExecConfig], scrape: &[ScrapeConfig], listen: &ListenConfig) -> Vec<String> {
    let names = |names: Vec<&str>, section: &str| {
        let mut seen = HashSet::new();
        let twice = names.into_iter().filter(|name| !seen.insert(*name));
        twice.map(|name| format!("`{section}.name`: `{name}` is there twice")).collect::<Vec<_>>()
    };
    let mut problems = names(exec.iter().map(|exec| exec.name.as_str()).collect(), "exec");
    problems.extend(names(scrape.iter().map(|scrape| scrape.name.as_str()).collect(), "scrape"));
    exec.iter().for_each(|exec| exec.check(&mut problems));
    scrape.iter().for_each(|scrape| scrape.check(&mut problems));
    listen.check(&mut problems);
    problems
}

impl ExecConfig {
    fn check(&self, problems: &mut Vec<String>) {
        let key = |key: &str| format!("exec.{}.{key}", self.name);
        problems.extend(name_problem("exec", &self.name));
        if let (ExecFormat::Json, Some(why)) = (self.format, measurement_problem(&self.name)) {
            problems.push(format!(
                "`exec.name`: `{}` is {why}, and JSON that names no measurement would be sent as such: expected another name",
                self.name
            ));
        }
        let program = self.command.first().map_or("", String::as_str);
        if program.is_empty() {
            problems.push(format!("`{}`: expected a program and its arguments", key("command")));
        } else if program.contains('/') && !program.starts_with('/') {
            problems.push(format!("`{}`: expected an absolute path, or a name without `/`", key("command")));
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            problems.push(format!("`{}`: expected texts without zero bytes", key("command")));
        }
        problems.extend(interval_problem(&key("interval"), self.interval));
        problems.extend(timeout_problem(&key("timeout"), self.timeout));
    }
}

impl ScrapeConfig {
    fn check(&self, problems: &mut Vec<String>) {
        let key = |key: &str| format!("scrape.{}.{key}", self.name);
        problems.extend(name_problem("scrape", &self.name));
        let url = Url::parse(&self.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if url.is_none_or(|url| !url.has_host()) {
            problems.push(format!("`{}`: expected an address such as `http://127.0.0.1:9187/metrics`", key("url")));
        }
        if !(1..=MAX_WORDS).contains(&self.words) {
            problems.push(format!("`{}`: expected 1 to {MAX_WORDS}", key("words")));
        }
        if let Err(error) = exclusions(&self.exclude) {
            problems.push(format!("`{}`: {error}", key("exclude")));
        }
        problems.extend(interval_problem(&key("interval"), self.interval));
        problems.extend(timeout_problem(&key("timeout"), self.timeout));
    }
}

impl ListenConfig {
    fn check(&self, problems: &mut Vec<String>) {
        for (key, address) in [("statsd_udp", self.statsd_udp), ("influx_udp", self.influx_udp)] {
            let Some(address) = address else { continue };
            if address.port() == 0 {
                problems.push(format!("`listen.{key}`: expected a port other than 0"));
            }
            if !address.ip().is_loopback() && !self.allow_remote {
                problems.push(format!(
                    "`listen.{key}`: `{}` can be reached by other hosts: expected 127.0.0.1, [::1], or `listen.allow_remote = true`",
                    address.ip()
                ));
            }
        }
        for (key, path) in [("statsd_socket", &self.statsd_socket), ("influx_socket", &self.influx_socket)] {
            if path.as_deref().is_some_and(|path| !is_socket_path(path)) {
                problems.push(format!(
                    "`listen.{key}`: expected an absolute path of at most {MAX_SOCKET_PATH_BYTES} bytes"
                ));
            }
        }
        let same_port = self.statsd_udp.is_some() && self.statsd_udp == self.influx_udp;
        if same_port || (self.statsd_socket.is_some() && self.statsd_socket == self.influx_socket) {
            problems.push("`listen`: StatsD and Influx need an address each".to_owned());
        }
        problems.extend(interval_problem("listen.interval", self.interval));
    }
}

fn is_socket_path(path: &Path) -> bool {
    path.is_absolute() && path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES
}

fn name_problem(section: &str, name: &str) -> Option<String> {
    Name::parse(name).err().map(|error| format!("`{section}.name`: {error}"))
}

fn timeout_problem(key: &str, timeout: Duration) -> Option<String> {
    (!(MIN_INTERVAL..=MAX_INTERVAL).contains(&timeout)).then(|| format!("`{key}`: expected 100ms to 1h"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use plimsoll_service::config::{Validate as _, load};

    use super::*;
    use crate::AgentConfig;

    fn load_text(text: &str) -> Result<AgentConfig, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load("agent", &["nats"], Some(file.path())).map_err(|error| error.to_string())
    }

    #[test]
    fn sources_have_defaults() {
        let config = load_text(
            "[[exec]]\nname = 'raid'\ncommand = ['/usr/local/bin/raid', '-v']\n\
             [[scrape]]\nname = 'postgres'\nurl = 'http://127.0.0.1:9187/metrics'\n\
             [listen]\nstatsd_udp = '127.0.0.1:8125'\ninflux_udp = '[::1]:8089'\nstatsd_socket = '/run/plimsoll/statsd.sock'",
        )
        .unwrap();
        let (exec, scrape, listen) = (&config.exec[0], &config.scrape[0], &config.listen);
        assert_eq!((exec.interval, exec.timeout, exec.format), (minute(), ten_seconds(), ExecFormat::Influx));
        assert_eq!((scrape.interval, scrape.timeout, scrape.words), (fifteen_seconds(), ten_seconds(), 2));
        assert_eq!((listen.interval, listen.allow_remote), (ten_seconds(), false));
        assert_eq!(config.problems(), [""; 0]);
    }

    #[test]
    fn the_guides_file_is_read() {
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/user-guide.md");
        let guide = std::fs::read_to_string(guide).unwrap();
        let (_, rest) = guide.split_once("as it stands here. -->\n```toml\n").unwrap();
        let config = load_text(rest.split_once("```").unwrap().0).unwrap();
        assert_eq!((config.exec[0].format, config.scrape[0].words), (ExecFormat::Json, 2));
        assert!(config.listen.statsd_udp.is_some() && config.listen.influx_socket.is_some());
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let error = load_text(
            "[[exec]]\nname = 'a'\ncommand = []\ninterval = '1ms'\ntimeout = '2h'\n\
             [[exec]]\nname = 'a'\ncommand = ['./b']\n\
             [[exec]]\nname = 'Not A Name'\ncommand = ['b']\n\
             [[exec]]\nname = 'cpu'\ncommand = ['b']\nformat = 'json'\n\
             [[scrape]]\nname = 's'\nurl = 'ftp://hunter2@x'\nwords = 9\nexclude = ['[']\n\
             [listen]\nstatsd_udp = '0.0.0.0:8125'\ninflux_udp = '127.0.0.1:0'\nstatsd_socket = 'x.sock'\n\
             interval = '1ms'",
        )
        .unwrap_err();
        for key in [
            "`exec.a.command`: expected a program",
            "`exec.a.command`: expected an absolute path",
            "`exec.a.interval`",
            "`exec.a.timeout`",
            "`exec.name`: `a` is there twice",
            "`exec.name`: `Not A Name`",
            "`exec.name`: `cpu` is a built-in measurement",
            "`scrape.s.url`",
            "`scrape.s.words`",
            "`scrape.s.exclude`",
            "`listen.statsd_udp`: `0.0.0.0` can be reached by other hosts",
            "`listen.influx_udp`: expected a port",
            "`listen.statsd_socket`",
            "`listen.interval`",
        ] {
            assert!(error.contains(key), "{key} is missing in {error}");
        }
        assert!(!error.contains("hunter2"), "{error}");
        assert!(load_text("[listen]\nstatsd_udp = '0.0.0.0:8125'\nallow_remote = true").is_ok());
        let error = load_text("[listen]\nstatsd_udp = '127.0.0.1:1'\ninflux_udp = '127.0.0.1:1'").unwrap_err();
        assert!(error.contains("an address each"), "{error}");
    }

    #[test]
    fn what_is_no_list_of_tables_names_no_command() {
        for text in
            ["exec = \"[{name='x',command=['y']}]\"", "[exec]\nname = 'x'\ncommand = ['y']", "[exec.0]\nname = 'x'"]
        {
            let error = load_text(text).unwrap_err();
            assert!(error.contains("`exec`: expected [[exec]] tables in the configuration file"), "{error}");
        }
        let error = load_text("scrape = 'http://x'").unwrap_err();
        assert!(error.contains("`scrape`: expected [[scrape]] tables"), "{error}");
    }
}
