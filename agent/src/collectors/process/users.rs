//! Names of users, from the host's /etc/passwd.

use std::{collections::HashMap, fs, io::Read as _, os::unix::fs::MetadataExt as _, path::PathBuf};

/// Most bytes that are read of the file.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// What changes when a file is written or replaced.
type Stamp = (u64, u64, i64, i64);

/// The users of the host by id, read anew when the file changes.
#[derive(Debug)]
pub struct Users {
    path: PathBuf,
    stamp: Option<Stamp>,
    names: HashMap<u32, String>,
}

impl Users {
    /// Names the file without reading it.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, stamp: None, names: HashMap::new() }
    }

    /// Reads the file if it is another than at the last call. There are no names where it cannot be read.
    pub fn refresh(&mut self) {
        let stamp =
            fs::metadata(&self.path).ok().map(|meta| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()));
        if stamp != self.stamp {
            self.names = self.read().map(|bytes| parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default();
            self.stamp = stamp;
        }
    }

    /// The name of a user.
    #[must_use]
    pub fn name(&self, uid: u32) -> Option<&str> {
        self.names.get(&uid).map(String::as_str)
    }

    fn read(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(&self.path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Takes passwd(5) apart; the first of two users with one id counts, as for the C library. Other lines are left out.
fn parse(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', '+', '-'])) {
        let mut words = line.split(':');
        if let (Some(name), Some(uid)) = (words.next(), words.nth(1).and_then(|word| word.parse().ok())) {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_an_id_counts_and_other_lines_do_not() {
        let names = parse(
            "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\n#bin:x:1:1\n+::::::\nx\na:b\n\nnobody:x:65534:65534::/:\nminus:x:-1:0",
        );
        let mut sorted: Vec<(u32, &str)> = names.iter().map(|(uid, name)| (*uid, name.as_str())).collect();
        sorted.sort_unstable();
        assert_eq!(sorted, [(0, "root"), (65_534, "nobody")]);
    }

    #[test]
    fn a_changed_file_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut users = Users::new(dir.path().join("passwd"));
        users.refresh();
        assert_eq!(users.name(5), None);
        fs::write(dir.path().join("passwd"), "a:x:5:5").unwrap();
        users.refresh();
        assert_eq!(users.name(5), Some("a"));
        fs::write(dir.path().join("new"), "b:x:5:5").unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("passwd")).unwrap();
        users.refresh();
        assert_eq!(users.name(5), Some("b"));
        fs::remove_file(dir.path().join("passwd")).unwrap();
        users.refresh();
        assert_eq!(users.name(5), None);
    }
}
