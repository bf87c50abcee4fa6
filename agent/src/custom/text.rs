//! What the readers of text formats share: a place in a line, and what was expected there.

/// A text that is not of its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: expected {expected}")]
pub struct SyntaxError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What was expected there.
    pub expected: &'static str,
}

/// A line that is not of its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unexpected {
    /// Where, in bytes from the line's start.
    pub at: usize,
    /// What was expected there.
    pub expected: &'static str,
}

impl Unexpected {
    /// The same, telling the line by its index from 0 and the column in characters.
    #[must_use]
    pub fn in_line(self, index: usize, line: &str) -> SyntaxError {
        let before = line.char_indices().take_while(|(at, _)| *at < self.at).count();
        SyntaxError { line: index + 1, column: before + 1, expected: self.expected }
    }
}

/// The lines of a text that need not be UTF-8, with their indices from 0: a line that is not is an error. A `\r` at the end of a line
/// is left out.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, Result<&str, SyntaxError>)> {
    bytes.split(|byte| *byte == b'\n').enumerate().map(|(index, line)| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let not_text = |error: std::str::Utf8Error| {
            let before = String::from_utf8_lossy(&line[..error.valid_up_to()]).chars().count();
            SyntaxError { line: index + 1, column: before + 1, expected: "text in UTF-8" }
        };
        (index, std::str::from_utf8(line).map_err(not_text))
    })
}

/// A line that is read from its start.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Begins at the line's start.
    #[must_use]
    pub fn new(line: &'a str) -> Self {
        Self { line, at: 0 }
    }

    /// What has not been read.
    #[must_use]
    pub fn rest(&self) -> &'a str {
        &self.line[self.at..]
    }

    /// The next byte.
    #[must_use]
    pub fn peek(&self) -> Option<u8> {
        self.rest().bytes().next()
    }

    /// Passes an ASCII character if it comes next.
    pub fn eat(&mut self, byte: u8) -> bool {
        debug_assert!(byte.is_ascii(), "a cursor stays between characters");
        let eats = self.peek() == Some(byte);
        self.at += usize::from(eats);
        eats
    }

    /// Passes an ASCII character, which must come next.
    pub fn require(&mut self, byte: u8, expected: &'static str) -> Result<(), Unexpected> {
        if self.eat(byte) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// Passes spaces and tabs.
    pub fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    /// Reads up to the first character that `ends`, or to the end.
    pub fn until(&mut self, ends: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let text = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.at += text.len();
        text
    }

    /// Passes so many bytes, which end at a character's end.
    pub fn pass(&mut self, bytes: usize) {
        self.at += bytes;
        debug_assert!(self.line.is_char_boundary(self.at), "a cursor stays between characters");
    }

    /// Something else was expected here.
    #[must_use]
    pub fn unexpected(&self, expected: &'static str) -> Unexpected {
        Unexpected { at: self.at, expected }
    }

    /// The line must end here.
    pub fn end(&self, expected: &'static str) -> Result<(), Unexpected> {
        if self.rest().is_empty() { Ok(()) } else { Err(self.unexpected(expected)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_in_lines_and_characters() {
        let error = Unexpected { at: "ä b".len(), expected: "`=`" }.in_line(2, "ä b c");
        assert_eq!(error.to_string(), "line 3, column 4: expected `=`");
    }

    #[test]
    fn a_line_that_is_not_text_spoils_no_other() {
        let read: Vec<_> = lines(b"a\r\n\xc3\xa4\xff\nb").map(|(_, line)| line).collect();
        let error = SyntaxError { line: 2, column: 2, expected: "text in UTF-8" };
        assert_eq!(read, [Ok("a"), Err(error), Ok("b")]);
    }
}
