//! Attributes of /sys: files of one short value each, which the kernel makes anew at each reading
//! (Documentation/filesystems/sysfs.rst).

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::CollectError;

/// Longest value that is looked at; what these attributes hold is far shorter.
const MAX_VALUE_BYTES: usize = 64;

/// Time after which devices are looked for anew: they come and go with their drivers.
const SCAN_INTERVAL: Duration = Duration::from_secs(60);

/// Where the value of an attribute is read into.
pub type Buffer = [u8; MAX_VALUE_BYTES];

/// One attribute. It is kept open, so that a reading is one system call and allocates nothing. An open attribute does not keep
/// its device: once that is gone, readings fail.
#[derive(Debug)]
pub struct Attribute(Source);

#[derive(Debug)]
enum Source {
    Kept(File),
    Named(PathBuf),
}

impl Attribute {
    /// Opens the attribute for all readings to come. Fails when it is not there or may not be read.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        File::open(path).map(|file| Self(Source::Kept(file)))
    }

    /// Opens the attribute at each reading: for those of which a host has more than a process may keep open.
    pub fn named(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        File::open(&path)?;
        Ok(Self(Source::Named(path)))
    }

    /// The value as text, without the spaces around it.
    ///
    /// None when it can't be read at this moment, is empty or is not UTF-8.
    pub fn text<'a>(&self, buffer: &'a mut Buffer) -> Option<&'a str> {
        let length = match &self.0 {
            Source::Kept(file) => file.read_at(buffer, 0).ok()?,
            Source::Named(path) => File::open(path).and_then(|mut file| file.read(buffer)).ok()?,
        };
        let text = std::str::from_utf8(&buffer[..length]).ok()?.trim();
        (!text.is_empty()).then_some(text)
    }

    /// The value as a whole number; none also when it is not one.
    pub fn number(&self) -> Option<i64> {
        self.text(&mut [0; MAX_VALUE_BYTES])?.parse().ok()
    }

    /// The value as a number that cannot be negative.
    pub fn count(&self) -> Option<u64> {
        self.number()?.try_into().ok()
    }

    /// The value as a flag; none when it is neither 0 nor 1.
    pub fn flag(&self) -> Option<bool> {
        match self.number()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// The value of an attribute that does not change, as text.
pub fn text(path: impl AsRef<Path>) -> Option<String> {
    Attribute::open(path).ok()?.text(&mut [0; MAX_VALUE_BYTES]).map(str::to_owned)
}

/// The value of an attribute that does not change, as a whole number.
pub fn number(path: impl AsRef<Path>) -> Option<i64> {
    Attribute::open(path).ok()?.number()
}

/// The entries of a folder in an order that stays; none where it is missing.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>, CollectError> {
    let wrong = |source| CollectError::Read { path: folder.to_owned(), source };
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error)),
    };
    let mut paths = listing.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(wrong)?;
    paths.sort();
    Ok(paths)
}

/// The last part of a path, if it is UTF-8.
pub fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Tells when devices are to be looked for: at first, and then every minute.
#[derive(Debug, Default)]
pub struct Scans {
    last: Option<Instant>,
}

impl Scans {
    /// Whether it is time; the next time is then a minute away.
    pub fn due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= SCAN_INTERVAL);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Writes the files of a made-up tree, with the folders they need.
    pub fn tree(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn an_attribute_is_read_anew_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        fs::write(&path, " -5000\n").unwrap();
        for attribute in [Attribute::open(&path).unwrap(), Attribute::named(&path).unwrap()] {
            fs::write(&path, " -5000\n").unwrap();
            assert_eq!((attribute.number(), attribute.count()), (Some(-5000), None));
            fs::write(&path, "1\n").unwrap();
            assert_eq!((attribute.number(), attribute.flag()), (Some(1), Some(true)));
        }
        assert!(Attribute::open(dir.path().join("absent")).is_err());
        assert!(Attribute::named(dir.path().join("absent")).is_err());
    }

    #[test]
    fn hostile_values_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        let long = "9".repeat(500);
        for bytes in [b"".as_slice(), b"\n", b"x", b"1.5", b"NaN", b"\xff1", b"99999999999999999999", long.as_bytes()] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(Attribute::open(&path).unwrap().number(), None, "{bytes:?}");
        }
        fs::write(&path, "2").unwrap();
        assert_eq!(Attribute::open(&path).unwrap().flag(), None);
        // A folder opens and does not read, as an attribute does whose device answers with an error.
        assert_eq!(Attribute::open(dir.path()).unwrap().number(), None);
    }

    #[test]
    fn a_missing_folder_has_no_entries() {
        assert!(entries(Path::new("/nowhere/at/all")).unwrap().is_empty());
        assert!(matches!(entries(Path::new("/proc/version")), Err(CollectError::Read { .. })));
    }

    #[test]
    fn devices_are_looked_for_at_first_and_not_at_once_again() {
        let mut scans = Scans::default();
        assert!(scans.due());
        assert!(!scans.due());
    }
}
