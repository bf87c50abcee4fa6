//! Layered configuration: defaults, then a TOML file, then environment variables, then flags.

use std::{
    io,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider,
    error::Kind,
    providers::{Env, Format, Serialized, Toml},
    util::nest,
    value::{Dict, Map, Value},
};
use serde::{Deserialize, de::DeserializeOwned};

/// Why a configuration is not accepted. The text names every problem found.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file is not there.
    #[error("configuration file `{path}` does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The named file can't be read.
    #[error("failed to read the configuration file `{path}`")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The named file is not TOML. What stands there is not shown: it may be a secret.
    #[error("configuration file `{path}` is not TOML at line {line}, column {column}: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong or was expected.
        problem: String,
    },
    /// A file or variable has an unknown key or a value of the wrong type.
    #[error("configuration is wrong:{}", lines(.problems))]
    Invalid {
        /// One line a problem.
        problems: Vec<String>,
    },
}

fn lines(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// A configuration that can check itself beyond what its types say.
pub trait Validate {
    /// Every problem found, each naming its key, what was expected, and never a secret's value.
    fn problems(&self) -> Vec<String>;
}

/// Reads a service's configuration: `file` where given, then variables. See [`Layers`] for the names of variables.
///
/// Defaults are the type's own (`serde(default)`). Fails on a missing file, unknown keys, wrong types, and what [`Validate`]
/// finds.
pub fn load<C: DeserializeOwned + Validate>(
    service: &str,
    sections: &[&str],
    file: Option<&Path>,
) -> Result<C, ConfigError> {
    Layers::read(&[], service, sections, file)?.extract()
}

/// What is configured, before it takes its type: defaults, then a file, then variables.
pub struct Layers(Figment);

impl Layers {
    /// Reads `file` where given, and variables, over `defaults` by dotted key that the type itself does not know.
    ///
    /// Variables are `PLIMSOLL_NATS__URL` for the shared section `nats` and `PLIMSOLL_<SERVICE>__KEY` for the service's own
    /// keys, with `__` between levels: `PLIMSOLL_INGEST__COMMIT_INTERVAL=10s`. Each of `sections` is a section that the service
    /// shares with others. Fails when the file can't be read or is not TOML.
    pub fn read(
        defaults: &[(&str, &str)],
        service: &str,
        sections: &[&str],
        file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let mut figment = defaults
            .iter()
            .fold(Figment::new(), |figment, (key, value)| figment.merge(Serialized::default(key, value)));
        if let Some(path) = file {
            figment = figment.merge(read_toml(path)?);
        }
        let of_sections = sections.iter().flat_map(|section| variables(section, &format!("{section}.")));
        Ok(Self(figment).with(of_sections.chain(variables(service, ""))))
    }

    fn with(self, layers: impl IntoIterator<Item = Layer>) -> Self {
        Self(layers.into_iter().fold(self.0, Figment::merge))
    }

    /// Whether a default, the file or a variable sets the dotted key, or one below it.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains(key)
    }

    /// The configuration. Fails on unknown keys, wrong types, and what [`Validate`] finds.
    pub fn extract<C: DeserializeOwned + Validate>(self) -> Result<C, ConfigError> {
        // Lossy is what reads a number or a bool from a variable's text.
        let config: C = self
            .0
            .extract_lossy()
            .map_err(|error| ConfigError::Invalid { problems: error.into_iter().map(describe).collect() })?;
        let problems = config.problems();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { problems }) }
    }
}

fn read_toml(path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ConfigError::Missing { path: path.to_owned() },
        _ => ConfigError::Unreadable { path: path.to_owned(), source },
    })?;
    let values = Toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let last_line = before.rsplit('\n').next().unwrap_or_default();
        ConfigError::Syntax {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: last_line.chars().count() + 1,
            problem: error.message().replace('\n', ", "),
        }
    })?;
    Ok(Layer { name: path.display().to_string(), values })
}

/// The variables of a service or section, their keys put below `parent`.
fn variables(section: &str, parent: &str) -> Vec<Layer> {
    let prefix = format!("PLIMSOLL_{}__", section.to_uppercase());
    Env::prefixed(&prefix).iter().map(|(key, text)| variable(&prefix, parent, key.as_str(), text)).collect()
}

/// One variable. Its value stays the text that it is: `123456` may be a password.
fn variable(prefix: &str, parent: &str, key: &str, text: String) -> Layer {
    let path = format!("{parent}{}", key.replace("__", "."));
    Layer {
        name: format!("{prefix}{}", key.to_uppercase()),
        values: nest(&path, Value::from(text)).into_dict().unwrap_or_default(),
    }
}

/// Values with the place that they come from.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// One line for one figment error, without the value: it may be a secret.
fn describe(error: figment::Error) -> String {
    let place = error.metadata.as_ref().map(|m| m.name.to_string()).unwrap_or_default();
    let key = error.path.join(".");
    let what = match &error.kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => format!("expected {expected}"),
        Kind::UnknownVariant(_, known) => format!("expected one of {}", known.join(", ")),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "expected a smaller number".to_owned(),
        Kind::UnknownField(field, known) => format!("unknown key `{field}`, known are {}", known.join(", ")),
        Kind::MissingField(field) => format!("key `{field}` is missing"),
        other => other.to_string(),
    };
    match (key.is_empty(), place.is_empty()) {
        (true, true) => what,
        (true, false) => format!("{what} (from {place})"),
        (false, true) => format!("`{key}`: {what}"),
        (false, false) => format!("`{key}`: {what} (from {place})"),
    }
}

/// Reads a list of texts from a TOML list, or from one text separated by commas, as a variable holds it.
///
/// For `#[serde(deserialize_with = "plimsoll_service::config::list")]`.
pub fn list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum List {
        Text(String),
        Texts(Vec<String>),
    }
    Ok(match List::deserialize(deserializer)? {
        List::Text(text) => text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect(),
        List::Texts(texts) => texts,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::SocketAddr,
        num::{NonZeroU32, NonZeroUsize},
        time::Duration,
    };

    use secrecy::{ExposeSecret, SecretString};
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        rows: u32,
        host: Option<String>,
        size: i64,
        count: Option<usize>,
        connections: Option<NonZeroUsize>,
        replicas: Option<NonZeroU32>,
        enabled: bool,
        http: Option<SocketAddr>,
        #[serde(with = "humantime_serde")]
        interval: Duration,
        #[serde(with = "humantime_serde")]
        pause: Option<Duration>,
        colour: Option<Colour>,
        nats: Section,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Section {
        url: String,
        password: Option<SecretString>,
        password_file: Option<PathBuf>,
        store: Option<Store>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Store {
        region: String,
        tls: bool,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Colour {
        Red,
    }

    impl Validate for Sample {
        fn problems(&self) -> Vec<String> {
            if self.rows > 10 { vec!["`rows`: expected at most 10".to_owned()] } else { vec![] }
        }
    }

    fn load_text(text: &str) -> Result<Sample, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        load("sample", &["nats"], Some(file.path()))
    }

    /// What is read from variables of the service, and of the section where they start with `NATS__`.
    fn load_variables(variables: &[(&str, &str)]) -> Result<Sample, ConfigError> {
        let layers = variables.iter().map(|(key, text)| {
            let (prefix, parent, key) = match key.strip_prefix("NATS__") {
                Some(key) => ("PLIMSOLL_NATS__", "nats.", key),
                None => ("PLIMSOLL_SAMPLE__", "", *key),
            };
            variable(prefix, parent, &key.to_lowercase(), (*text).to_owned())
        });
        Layers(Figment::new()).with(layers).extract()
    }

    #[test]
    fn a_file_is_read() {
        let sample = load_text("rows = 3\n[nats]\nurl = 'nats://x'\n").expect("valid");
        assert_eq!((sample.rows, sample.nats.url.as_str()), (3, "nats://x"));
    }

    #[test]
    fn problems_name_the_key_and_not_the_value() {
        let unknown = load_text("rowz = 3").expect_err("unknown key").to_string();
        assert!(unknown.contains("rowz") && unknown.contains("rows"), "{unknown}");
        let wrong = load_text("rows = 'secret'").expect_err("wrong type").to_string();
        assert!(wrong.contains("rows") && !wrong.contains("secret"), "{wrong}");
        assert!(load_text("rows = 11").expect_err("invalid").to_string().contains("at most 10"));
        let missing = load::<Sample>("sample", &[], Some(Path::new("/nowhere"))).expect_err("no file");
        assert!(missing.to_string().contains("/nowhere"));
        let folder = load::<Sample>("sample", &[], Some(Path::new("/"))).expect_err("a folder");
        assert!(folder.to_string().contains("failed to read"), "{folder}");
    }

    #[test]
    fn a_syntax_error_shows_the_place_and_not_the_line() {
        let error =
            load_text("rows = 3\n[nats]\npassword = 'hunter2\nurl = 'nats://x'").expect_err("not TOML").to_string();
        assert!(error.contains("line 3, column ") && !error.contains("hunter2"), "{error}");
        let error = load_text("password = hunter2").expect_err("not TOML").to_string();
        assert!(error.contains("line 1, column 12: ") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn text_in_a_variable_stays_as_it_is() {
        for text in ["1001", "007", "1.50", "true", "'quoted'", "\"quoted\"", "[a]", "{a=1}", " spaced ", "", "a#b"] {
            let variables =
                [("HOST", text), ("NATS__URL", text), ("NATS__PASSWORD", text), ("NATS__PASSWORD_FILE", text)];
            let sample = load_variables(&variables).expect(text);
            assert_eq!(sample.host.as_deref(), Some(text));
            assert_eq!(sample.nats.url, text);
            assert_eq!(sample.nats.password.expect("is set").expose_secret(), text);
            assert_eq!(sample.nats.password_file.expect("is set").to_str(), Some(text));
        }
    }

    #[test]
    fn variables_take_the_type_of_their_key() {
        let sample = load_variables(&[
            ("ROWS", "3"),
            ("SIZE", "-10737418240"),
            ("COUNT", "5"),
            ("CONNECTIONS", "4"),
            ("REPLICAS", "3"),
            ("ENABLED", "true"),
            ("HTTP", "127.0.0.1:80"),
            ("INTERVAL", "1m 5s"),
            ("PAUSE", "500ms"),
            ("COLOUR", "red"),
            ("NATS__STORE__REGION", "1"),
            ("NATS__STORE__TLS", "false"),
        ])
        .expect("valid");
        assert_eq!((sample.rows, sample.size, sample.count, sample.enabled), (3, -10_737_418_240, Some(5), true));
        assert_eq!((sample.connections, sample.replicas), (NonZeroUsize::new(4), NonZeroU32::new(3)));
        assert_eq!(sample.http, Some(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert_eq!((sample.interval, sample.pause), (Duration::from_secs(65), Some(Duration::from_millis(500))));
        assert_eq!(sample.colour, Some(Colour::Red));
        let store = sample.nats.store.expect("is set");
        assert_eq!((store.region.as_str(), store.tls), ("1", false));
    }

    #[test]
    fn a_wrong_variable_is_named_without_its_value() {
        let wrong = [
            ("ROWS", "hunter2"),
            ("ROWS", "-271828"),
            ("ROWS", "27182818284"),
            ("SIZE", "2.71828"),
            ("CONNECTIONS", "0"),
            ("ENABLED", "hunter2"),
            ("HTTP", "hunter2"),
            ("INTERVAL", "hunter2"),
            ("PAUSE", "hunter2"),
            ("COLOUR", "hunter2"),
            ("NATS__STORE__TLS", "hunter2"),
            ("NATS__STORE", "hunter2"),
        ];
        for (name, text) in wrong {
            let error = load_variables(&[(name, text)]).expect_err(text).to_string();
            let key = name.to_lowercase().replace("__", ".");
            assert!(
                error.contains(&format!("`{key}"))
                    && error.contains("(from PLIMSOLL_")
                    && error.contains(&format!("{name})")),
                "{name}={text}: {error}"
            );
            assert!(text == "0" || !error.contains(text), "{error}");
        }
        let error = load_variables(&[("NATS__ULR", "hunter2")]).expect_err("unknown").to_string();
        assert!(
            error.contains("`ulr`") && error.contains("PLIMSOLL_NATS__ULR") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn a_key_is_known_to_be_set() {
        let layers = Layers(Figment::new()).with([variable("PLIMSOLL_NATS__", "nats.", "url", "x".to_owned())]);
        assert!(layers.contains("nats.url") && layers.contains("nats") && !layers.contains("nats.password"));
    }
}
