//! The kernel's log from now on, from /dev/kmsg (Documentation/ABI/testing/dev-kmsg).
//!
//! Each record is one reading: `<priority>,<sequence>,<microseconds>,<flags>;<text>`, then lines of facts that begin with a space.
//! The priority holds the facility: 0 is the kernel, to which no program can write.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use rustix::fs::OFlags;

/// Larger than any record that the kernel gives out.
const RECORD_BYTES: usize = 16 * 1024;
/// Most records that one look takes in; the kernel's buffer seldom holds more.
const MOST_RECORDS: usize = 100_000;

/// Reads what the kernel logs after it was opened.
#[derive(Debug)]
pub struct KernelLog {
    path: PathBuf,
    /// None before [`Self::skip`].
    file: Option<io::Result<File>>,
}

impl KernelLog {
    /// Names the log without opening it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None }
    }

    /// Leaves out everything up to this moment.
    pub fn skip(&mut self) {
        self.file = Some(self.open());
    }

    /// Why the log cannot be read, if so.
    pub fn problem(&self) -> Option<&io::Error> {
        self.file.as_ref()?.as_ref().err()
    }

    /// Gives each message of the kernel since the last call to `take`.
    pub fn read(&mut self, mut take: impl FnMut(&str)) {
        let Some(Ok(file)) = &mut self.file else {
            return;
        };
        let mut record = vec![0; RECORD_BYTES];
        for _ in 0..MOST_RECORDS {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    String::from_utf8_lossy(&record[..length]).lines().filter_map(kernel_text).for_each(&mut take)
                }
                // Records were overwritten before they were read; reading goes on with the oldest there is.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    fn open(&self) -> io::Result<File> {
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let mut file = OpenOptions::new().read(true).custom_flags(nonblocking).open(&self.path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(file)
    }
}

/// The text of a record's first line; none when it does not come from the kernel itself.
fn kernel_text(line: &str) -> Option<&str> {
    let (prefix, text) = line.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    (priority >> 3 == 0).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    fn read(log: &mut KernelLog) -> Vec<String> {
        let mut texts = Vec::new();
        log.read(|text| texts.push(text.to_owned()));
        texts
    }

    #[test]
    fn only_what_the_kernel_says_from_now_on_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        fs::write(&path, "6,1,100,-;before\n").unwrap();
        let mut log = KernelLog::new(&path);
        assert!(read(&mut log).is_empty());
        log.skip();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"3,2,200,-;kernel; says\n SUBSYSTEM=x\n12,3,300,-;a program says\n,;\n;\nx").unwrap();
        assert_eq!(read(&mut log), ["kernel; says"]);
        assert!(read(&mut log).is_empty());
        assert!(log.problem().is_none());
    }

    #[test]
    fn a_log_that_cannot_be_read_says_why() {
        let mut log = KernelLog::new("/nonexistent/kmsg");
        log.skip();
        assert!(read(&mut log).is_empty());
        assert_eq!(log.problem().unwrap().kind(), io::ErrorKind::NotFound);
    }
}
