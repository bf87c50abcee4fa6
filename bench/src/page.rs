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
