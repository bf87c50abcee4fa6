//! Files of /proc and /sys that are kept open and read again and again.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf, str::FromStr};

use rustix::io::Errno;

use super::{CollectError, ParseError};

/// A file whose text the kernel makes anew at each reading from its start.
#[derive(Debug)]
pub struct ProcFile {
    path: PathBuf,
    file: Option<File>,
    buffer: Vec<u8>,
    text: String,
}

impl ProcFile {
    /// Names a file without opening it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None, buffer: vec![0; 4096], text: String::new() }
    }

    /// The file's text at this moment. Bytes that are not UTF-8 are replaced.
    ///
    /// Fails when the file cannot be opened or read; the next call opens it anew.
    pub fn read(&mut self) -> Result<&str, CollectError> {
        self.load().map_err(|source| CollectError::Read { path: self.path.clone(), source })?;
        Ok(&self.text)
    }

    /// The same, or none when there is no such file, or one that the kernel answers with "not supported".
    pub fn read_if_present(&mut self) -> Result<Option<&str>, CollectError> {
        match self.load() {
            Ok(()) => Ok(Some(&self.text)),
            Err(source) if is_absence(&source) => Ok(None),
            Err(source) => Err(CollectError::Read { path: self.path.clone(), source }),
        }
    }

    /// The text of the last reading; empty when it failed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The error of a text of this file.
    pub fn unparsed(&self, source: ParseError) -> CollectError {
        CollectError::Parse { path: self.path.clone(), source }
    }

    fn load(&mut self) -> io::Result<()> {
        self.text.clear();
        match self.fill() {
            Ok(length) => {
                self.text.push_str(&String::from_utf8_lossy(&self.buffer[..length]));
                Ok(())
            }
            Err(error) => {
                self.file = None;
                Err(error)
            }
        }
    }

    /// Reads until the kernel says that nothing follows: a short reading is not the end of a file in /proc.
    fn fill(&mut self) -> io::Result<usize> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(File::open(&self.path)?),
        };
        let mut length = 0;
        loop {
            if length == self.buffer.len() {
                self.buffer.resize(length * 2, 0);
            }
            match file.read_at(&mut self.buffer[length..], length as u64) {
                Ok(0) => return Ok(length),
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error())
}

/// Longest value of an attribute that is read.
const ATTRIBUTE_BYTES: usize = 128;

/// A file of /sys that holds one short value.
#[derive(Debug)]
pub struct Attribute {
    path: PathBuf,
    file: Option<File>,
    value: [u8; ATTRIBUTE_BYTES],
}

impl Attribute {
    /// Names a file without opening it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None, value: [0; ATTRIBUTE_BYTES] }
    }

    /// The value at this moment without the white space around it; none when the file cannot be read or its device says nothing.
    pub fn read(&mut self) -> Option<&str> {
        let length = self.fill()?;
        str::from_utf8(&self.value[..length]).ok().map(str::trim_ascii)
    }

    /// The value as a number, if it is one.
    pub fn number<T: FromStr>(&mut self) -> Option<T> {
        self.read()?.parse().ok()
    }

    /// Reads what is open; what has gone stale, as when a device went and another came by its name, is opened anew.
    fn fill(&mut self) -> Option<usize> {
        if let Some(file) = &self.file
            && let Ok(length) = file.read_at(&mut self.value, 0)
        {
            return Some(length);
        }
        self.file = None;
        let file = File::open(&self.path).ok()?;
        let length = file.read_at(&mut self.value, 0).ok()?;
        self.file = Some(file);
        Some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_one_value_and_may_be_absent_or_no_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("speed");
        let mut speed = Attribute::new(&path);
        assert_eq!(speed.number::<u64>(), None);
        std::fs::write(&path, "1000\n").unwrap();
        assert_eq!(speed.number(), Some(1000));
        std::fs::write(&path, "-1\n").unwrap();
        assert_eq!((speed.number::<u64>(), speed.number::<i64>()), (None, Some(-1)));
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(speed.read(), None);
    }

    #[test]
    fn a_file_is_read_anew_each_time_and_grows_past_the_buffer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        let mut file = ProcFile::new(&path);
        assert_eq!(file.read().unwrap().len(), 10_000);
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        assert_eq!(file.read().unwrap(), "a\u{fffd}");
    }

    #[test]
    fn a_file_that_comes_later_is_opened_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("late");
        let mut file = ProcFile::new(&path);
        assert!(matches!(file.read(), Err(CollectError::Read { .. })));
        assert_eq!(file.read_if_present().unwrap(), None);
        std::fs::write(&path, "here").unwrap();
        assert_eq!(file.read_if_present().unwrap(), Some("here"));
        assert_eq!(file.read().unwrap(), "here");
    }
}
