//! Size of configured folders.
//!
//! A row tells of a completed walk, once: a chart shows what was measured and when, and a walk that takes longer than the time
//! between two samples leaves a gap instead of a value that nobody has looked at again.

use std::{path::Path, time::Duration};

use plimsoll_nats::dead::chain;
use rustix::io::Errno;

use self::surveyor::{Survey, Surveyor};
use super::{CollectError, Collector};
use crate::{
    config::DirectorySizeConfig,
    context::Context,
    rows::{Rows, Tables},
};

mod surveyor;
mod walk;

/// How long a sample waits for its walk. What takes longer is told with a later sample.
const PATIENCE: Duration = Duration::from_secs(4);

/// Measures folders.
#[derive(Debug)]
pub struct DirectorySize {
    surveyor: Surveyor,
    /// What stood in the way of the last walk of each folder.
    failures: Vec<Option<Errno>>,
    /// Whether the folders are those that are looked for unless others are configured.
    is_default: bool,
}

impl DirectorySize {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        let folders = context.config.directory_size.paths.clone();
        Self {
            failures: vec![None; folders.len()],
            is_default: folders == DirectorySizeConfig::default().paths,
            surveyor: Surveyor::new(context.paths.clone(), folders),
        }
    }
}

impl Collector for DirectorySize {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let Some(first) = self.surveyor.folders().first() else {
            return Ok(());
        };
        let path = first.clone();
        let surveys = self.surveyor.survey(PATIENCE).map_err(|source| CollectError::Thread { path, source })?;
        let folders = self.surveyor.folders().iter().zip(&mut self.failures);
        for ((folder, failure), survey) in folders.zip(surveys) {
            if let Some(survey) = survey {
                *failure = survey.size.err();
                push(tables.only(), folder, &survey);
            }
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let folders = self.surveyor.folders().iter().zip(&self.failures);
        let failures = folders.filter_map(|(folder, failure)| note(folder, (*failure)?, self.is_default));
        let busy =
            self.surveyor.is_busy().then(|| "Folders are being measured; a sample tells them once they are".to_owned());
        failures.chain(busy).collect()
    }
}

/// Why a folder is not told; none where it is merely not there and nobody asked for it.
fn note(folder: &Path, failure: Errno, is_default: bool) -> Option<String> {
    let folder = folder.display();
    match failure {
        Errno::NOENT if is_default => None,
        Errno::NOENT => Some(format!("`{folder}` is not measured: there is no such folder")),
        Errno::ACCESS | Errno::PERM => {
            Some(format!("`{folder}` is not measured: give the agent the capability CAP_DAC_READ_SEARCH"))
        }
        error => Some(format!("`{folder}` is not measured: {}", chain(&error))),
    }
}

fn push(rows: &mut Rows, folder: &Path, survey: &Survey) {
    let Ok(size) = survey.size else {
        return;
    };
    rows.push(
        &[("path", &folder.to_string_lossy())],
        &[
            ("disk_bytes", size.disk_bytes.into()),
            ("apparent_bytes", size.apparent_bytes.into()),
            ("files", size.files.into()),
            ("directories", size.directories.into()),
            ("unreadable", size.unreadable.into()),
            ("partial", (size.unreadable > 0 || size.estimated).into()),
            ("scan_duration_seconds", survey.duration.as_secs_f64().into()),
        ],
    );
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc};

    use plimsoll_nats::{Column, catalog};
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::*;
    use crate::{config::CollectorsConfig, rows::Columns};

    fn collector(folders: &[PathBuf]) -> DirectorySize {
        let directory_size = DirectorySizeConfig { paths: folders.to_vec(), ..DirectorySizeConfig::default() };
        let config = CollectorsConfig { directory_size, ..CollectorsConfig::default() };
        DirectorySize::new(&Context { config: Arc::new(config), ..Context::default() })
    }

    fn sample(collector: &mut DirectorySize) -> Columns {
        let mut tables = Tables::new(catalog::measurement("directory_size"));
        collector.collect(&mut tables).unwrap();
        tables.only().take()
    }

    #[test]
    fn each_folder_has_a_row_and_what_is_not_there_a_note() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "12345").unwrap();
        let missing = dir.path().join("missing");
        let mut collector = collector(&[dir.path().to_owned(), missing.clone()]);
        let columns = sample(&mut collector);
        assert_eq!(columns.tags["path"], [dir.path().to_str().unwrap()]);
        assert_eq!(columns.fields["apparent_bytes"].number(0), Some(5.0));
        assert_eq!(columns.fields["partial"], Column::Bool(vec![Some(false)]));
        assert!(columns.fields["scan_duration_seconds"].number(0).unwrap() >= 0.0);
        let notes = collector.notes();
        assert!(notes.len() == 1 && notes[0].contains(missing.to_str().unwrap()), "{notes:?}");
    }

    #[test]
    fn nothing_is_noted_of_a_default_folder_that_is_not_there() {
        assert_eq!(note(Path::new("/var/lib/docker"), Errno::NOENT, true), None);
        assert!(note(Path::new("/x"), Errno::IO, true).unwrap().contains("/x"));
        let mut none = collector(&[]);
        assert!(sample(&mut none).tags["path"].is_empty());
        assert_eq!(none.notes(), [""; 0]);
    }

    #[test]
    fn a_folder_that_may_not_be_read_is_counted_and_the_sum_is_partial() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("file"), "12345").unwrap();
        fs::write(dir.path().join("open"), "123").unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        let folders = [dir.path().to_owned(), closed.clone()];
        let unprivileged = std::thread::spawn(move || {
            let none = CapabilitySet::empty();
            // Root reads everything by its capabilities. They belong to a thread and what it starts: no other test loses any.
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
            let mut collector = collector(&folders);
            (sample(&mut collector), collector.notes())
        });
        let (columns, notes) = unprivileged.join().unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(columns.tags["path"], [dir.path().to_str().unwrap()]);
        let number = |field: &str| columns.fields[field].number(0);
        assert_eq!((number("unreadable"), number("files"), number("directories")), (Some(1.0), Some(1.0), Some(2.0)));
        assert_eq!(number("apparent_bytes"), Some(3.0));
        assert_eq!(columns.fields["partial"], Column::Bool(vec![Some(true)]));
        assert!(notes.len() == 1 && notes[0].contains("CAP_DAC_READ_SEARCH"), "{notes:?}");
    }
}
