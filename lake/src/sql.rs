//! Quoting for SQL text: what can't be a parameter.

/// An identifier in double quotes.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal in single quotes.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_left() {
        assert_eq!(ident("a\"; DROP TABLE x"), "\"a\"\"; DROP TABLE x\"");
        assert_eq!(literal("it's"), "'it''s'");
    }
}
