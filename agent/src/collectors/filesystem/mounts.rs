//! Which file systems are mounted, from /proc/self/mountinfo (proc_pid_mountinfo(5)).

use std::collections::HashMap;

use crate::collectors::ParseError;

/// Types that hold no data of their own, or that of another file system in the list.
const PSEUDO: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.gvfsd-fuse",
    "fuse.lxcfs",
    "fuse.portal",
    "fuse.snapfuse",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nfsd",
    "nsfs",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "rootfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// The options of what can only be read. Since 6.15 ext4 stays `rw` when an error makes it so, and adds the second.
const READ_ONLY: &[&str] = &["ro", "emergency_ro"];

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor`, by which the kernel tells file systems apart.
    pub id: String,
    /// What is mounted.
    pub device: String,
    /// Type of the file system.
    pub fstype: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Whether it can only be read: it was mounted so, or is so after an error.
    pub read_only: bool,
}

/// One line.
struct Line<'a> {
    id: &'a str,
    /// Which part of the file system is mounted: `/` is all of it.
    root: &'a str,
    mount: Mount,
}

/// Takes mountinfo apart: each file system once, pseudo ones left out save where one is the root.
///
/// Of several mounts on one point the last hides the others. Of several mounts of one file system the one of its whole is
/// kept, else the first. Fails on a line with fewer fields than the kernel documents.
pub fn parse(text: &str) -> Result<Vec<Mount>, ParseError> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = parse_line(line).ok_or(ParseError {
            line: index + 1,
            expected: "six fields, optional ones, `-`, type, source and options",
        })?;
        lines.retain(|earlier| earlier.mount.mountpoint != line.mount.mountpoint);
        lines.push(line);
    }
    let mut kept: Vec<Line<'_>> = Vec::new();
    let mut by_id: HashMap<&str, usize> = HashMap::new();
    for line in lines.into_iter().filter(Line::is_told) {
        match by_id.get(line.id) {
            None => {
                by_id.insert(line.id, kept.len());
                kept.push(line);
            }
            Some(&index) if kept[index].rank() > line.rank() => kept[index] = line,
            Some(_) => {}
        }
    }
    Ok(kept.into_iter().map(|line| line.mount).collect())
}

impl Line<'_> {
    fn is_told(&self) -> bool {
        self.mount.mountpoint == "/" || !PSEUDO.contains(&self.mount.fstype.as_str())
    }

    /// The lowest of a file system's mounts is the one to tell.
    fn rank(&self) -> u8 {
        match (self.mount.mountpoint.as_str(), self.root) {
            ("/", _) => 0,
            (_, "/") => 1,
            _ => 2,
        }
    }
}

fn parse_line(line: &str) -> Option<Line<'_>> {
    let mut words = line.split(' ');
    let id = words.nth(2)?;
    let root = words.next()?;
    let mountpoint = unescape(words.next()?);
    let options = words.next()?;
    let mut words = words.skip_while(|word| *word != "-").skip(1);
    let (fstype, device, super_options) = (words.next()?, unescape(words.next()?), words.next()?);
    let read_only =
        [options, super_options].iter().any(|options| options.split(',').any(|option| READ_ONLY.contains(&option)));
    let mount = Mount { id: id.to_owned(), device, fstype: fstype.to_owned(), mountpoint, read_only };
    Some(Line { id, root, mount })
}

/// Undoes the kernel's escapes of space, tab, newline and backslash: `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if let (b'\\', Some(byte)) = (first, octal(after)) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = digits.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..b'8').contains(digit)))?;
    let value = digits.iter().fold(0_u16, |value, digit| value * 8 + u16::from(digit - b'0'));
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECORDED: &str = r"
21 1 0:19 / /proc rw,relatime - proc proc rw
22 1 0:20 / /dev/shm rw,relatime shared:2 - tmpfs tmpfs rw,size=24684084k
1 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 1 254:16 / /srv/my\040disk\134x rw,noatime shared:7 master:3 - xfs /dev/vdb rw
41 1 254:16 /www /var/www ro,noatime - xfs /dev/vdb rw
42 1 254:32 /sub /mnt/sub rw - ext4 /dev/vdc rw
43 1 254:32 / /mnt/whole rw - ext4 /dev/vdc ro,errors=remount-ro
44 1 0:50 / /backup rw - nfs4 server:/export rw,vers=4.2
";

    #[test]
    fn each_file_system_is_told_once() {
        let mounts = parse(RECORDED.trim_start()).unwrap();
        let told: Vec<(&str, &str, bool)> =
            mounts.iter().map(|mount| (mount.device.as_str(), mount.mountpoint.as_str(), mount.read_only)).collect();
        assert_eq!(
            told,
            [
                ("/dev/vda", "/", false),
                ("/dev/vdb", r"/srv/my disk\x", false),
                ("/dev/vdc", "/mnt/whole", true),
                ("server:/export", "/backup", false),
            ]
        );
    }

    #[test]
    fn a_container_tells_its_root_and_not_the_overlays_of_others() {
        let text = "\
1 0 0:60 / / rw - overlay overlay rw,lowerdir=/x
2 1 0:61 / /var/lib/docker/overlay2/abc/merged rw - overlay overlay rw
3 1 254:0 /etc/hosts /etc/hosts rw - ext4 /dev/vda rw
4 1 254:0 /etc/hostname /etc/hostname rw - ext4 /dev/vda rw";
        let points: Vec<String> = parse(text).unwrap().into_iter().map(|mount| mount.mountpoint).collect();
        assert_eq!(points, ["/", "/etc/hosts"]);
    }

    #[test]
    fn read_only_is_told_of_the_mount_the_file_system_and_an_error() {
        let read_only = |options: &str, super_options: &str| {
            let text = format!("1 0 8:1 / /mnt {options} - ext4 /dev/sda1 {super_options}");
            parse(&text).unwrap()[0].read_only
        };
        assert!(read_only("ro,relatime", "rw"));
        assert!(read_only("rw,relatime", "ro"));
        assert!(read_only("rw,relatime", "rw,errors=remount-ro,emergency_ro"));
        assert!(!read_only("rw,relatime", "rw,errors=remount-ro"));
    }

    #[test]
    fn a_later_mount_hides_an_earlier_one_on_the_same_point() {
        let text = "1 0 8:1 / /mnt rw - ext4 /dev/sda1 rw\n2 0 8:2 / /mnt rw - ext4 /dev/sdb1 rw\n3 0 0:9 / /run rw - ext4 a rw\n4 0 0:9 / /run rw - tmpfs b rw";
        let devices: Vec<String> = parse(text).unwrap().into_iter().map(|mount| mount.device).collect();
        assert_eq!(devices, ["/dev/sdb1"]);
    }

    #[test]
    fn escapes_are_undone_and_what_only_looks_like_one_stays() {
        assert_eq!(unescape(r"a\040b\011c\134d"), "a b\tc\\d");
        assert_eq!(unescape(r"\04 \999 \400 \"), r"\04 \999 \400 \");
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        assert!(parse("").unwrap().is_empty());
        for bad in ["1 2 3", "1 0 8:1 / /mnt rw ext4 /dev/sda rw", "1 0 8:1 / /mnt rw - ext4", ""] {
            assert_eq!(parse(&format!("1 0 8:1 / / rw - ext4 /dev/sda rw\n{bad}\n")).unwrap_err().line, 2, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn unescape_undoes_what_the_kernel_does(text in "[a-z \\\\\t\n]{0,20}") {
            let escaped: String = text.chars().map(|c| match c {
                ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", c as u32),
                c => c.to_string(),
            }).collect();
            prop_assert_eq!(unescape(&escaped), text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "([0-9:/ a-z\\\\-]{0,40}\n){0,4}") {
            let _ = parse(&text);
        }
    }
}
