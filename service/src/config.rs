//! Layered configuration: defaults, then a TOML file, then environment variables, then flags.

use std::path::{Path, PathBuf};

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::de::DeserializeOwned;

/// Why a configuration is not accepted. The text names every problem found.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file is not there.
    #[error("configuration file `{path}` does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
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

/// Reads a service's configuration: `file` where given, then variables.
///
/// Variables are `PLIMSOLL_NATS__URL` for the shared section `nats` and `PLIMSOLL_<SERVICE>__KEY` for the service's own keys,
/// with `__` between levels: `PLIMSOLL_INGEST__COMMIT_INTERVAL=10s`. Each of `sections` is a section that the service shares
/// with others. Defaults are the type's own (`serde(default)`). Fails on a missing file, unknown keys, wrong types, and what
/// [`Validate`] finds.
pub fn load<C: DeserializeOwned + Validate>(
    service: &str,
    sections: &[&str],
    file: Option<&Path>,
) -> Result<C, ConfigError> {
    load_over(&[], service, sections, file)
}

/// Like [`load`], over defaults by dotted key that the type itself does not know.
pub fn load_over<C: DeserializeOwned + Validate>(
    defaults: &[(&str, &str)],
    service: &str,
    sections: &[&str],
    file: Option<&Path>,
) -> Result<C, ConfigError> {
    let defaults =
        defaults.iter().fold(Figment::new(), |figment, (key, value)| figment.merge(Serialized::default(key, value)));
    let config: C = extract(figment(defaults, service, sections, file)?)?;
    let problems = config.problems();
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { problems }) }
}

fn figment(
    mut figment: Figment,
    service: &str,
    sections: &[&str],
    file: Option<&Path>,
) -> Result<Figment, ConfigError> {
    if let Some(path) = file {
        if !path.is_file() {
            return Err(ConfigError::Missing { path: path.to_owned() });
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    for section in sections {
        let prefix = format!("PLIMSOLL_{}__", section.to_uppercase());
        let section = (*section).to_owned();
        figment =
            figment.merge(Env::prefixed(&prefix).map(move |key| format!("{section}.{}", dotted(key.as_str())).into()));
    }
    let prefix = format!("PLIMSOLL_{}__", service.to_uppercase());
    Ok(figment.merge(Env::prefixed(&prefix).map(|key| dotted(key.as_str()).into())))
}

fn dotted(key: &str) -> String {
    key.replace("__", ".")
}

fn extract<C: DeserializeOwned>(figment: Figment) -> Result<C, ConfigError> {
    figment.extract().map_err(|error| ConfigError::Invalid { problems: error.into_iter().map(describe).collect() })
}

/// One line for one figment error, without the value: it may be a secret.
fn describe(error: figment::Error) -> String {
    use figment::error::Kind;
    let place = error.metadata.as_ref().map(|m| m.name.to_string()).unwrap_or_default();
    let key = error.path.join(".");
    let what = match &error.kind {
        Kind::InvalidType(_, expected) => format!("expected {expected}"),
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        rows: u32,
        nats: Section,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Section {
        url: String,
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
    }
}
