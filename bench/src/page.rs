//! The page of measurements: what stands around the two marks is people's, and stays.

use std::{fs, io, path::Path};

const BEGIN: &str = "<!-- measured: written by `make bench` -->";
const END: &str = "<!-- end of what was measured -->";
const HEADING: &str = "# Benchmarks\n\n";

/// Puts what was measured between the marks of a page, which is made where it is missing.
///
/// Fails when the page has only one of the marks, or can't be written.
pub fn write(page: &Path, measured: &str) -> io::Result<()> {
    let text = match fs::read_to_string(page) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("{HEADING}{BEGIN}\n{END}\n"),
        text => text?,
    };
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the page lacks the marks `{BEGIN}` and `{END}`: put them where tables go"),
        )
    })?;
    fs::write(page, format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", measured.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_around_the_tables_stays() {
        let file = std::env::temp_dir().join(format!("plimsoll-bench-page-{}", std::process::id()));
        let written = || fs::read_to_string(&file).expect("a page");
        write(&file, "| 1 |\n").expect("made");
        assert_eq!(written(), format!("{HEADING}{BEGIN}\n\n| 1 |\n\n{END}\n"));
        fs::write(&file, format!("Before.\n{BEGIN}\nold\n{END}\nAfter.\n")).expect("written");
        for tables in ["| 2 |", "| 3 |"] {
            write(&file, tables).expect("written anew");
            assert_eq!(written(), format!("Before.\n{BEGIN}\n\n{tables}\n\n{END}\nAfter.\n"));
        }
        fs::write(&file, "No marks.").expect("written");
        assert!(write(&file, "| 4 |").expect_err("no place").to_string().contains("lacks the marks"));
        assert_eq!(written(), "No marks.");
        fs::remove_file(&file).expect("removed");
    }
}
