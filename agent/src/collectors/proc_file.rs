//! A file of /proc that is kept open and read again and again.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf};

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
        match self.fill() {
            Ok(length) => {
                self.text.clear();
                self.text.push_str(&String::from_utf8_lossy(&self.buffer[..length]));
                Ok(&self.text)
            }
            Err(source) => {
                self.file = None;
                Err(CollectError::Read { path: self.path.clone(), source })
            }
        }
    }

    /// The text of the last reading.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The error of a text of this file.
    pub fn unparsed(&self, source: ParseError) -> CollectError {
        CollectError::Parse { path: self.path.clone(), source }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        std::fs::write(&path, "here").unwrap();
        assert_eq!(file.read().unwrap(), "here");
    }
}
