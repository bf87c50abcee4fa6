//! Keeps passwords out of error texts: DuckDB quotes the catalog's whole connection string whenever it can't connect.

use duckdb::Error;

const HIDDEN: &str = "***";

/// The error without the passwords of connection strings in its text.
pub(crate) fn redacted(error: Error) -> Error {
    match error {
        Error::DuckDBFailure(code, Some(text)) => Error::DuckDBFailure(code, Some(without_passwords(&text))),
        other => other,
    }
}

/// Replaces the value of every `password=…` and the password of every `scheme://user:password@host`. Where the end of a value is
/// in doubt, rather too much goes than too little.
fn without_passwords(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((start, end)) = next_password(rest) {
        shown.push_str(&rest[..start]);
        shown.push_str(HIDDEN);
        rest = &rest[end..];
    }
    shown + rest
}

/// Where the first password begins and ends.
fn next_password(text: &str) -> Option<(usize, usize)> {
    text.char_indices().find_map(|(at, _)| keyword_value(text, at).or_else(|| uri_password(text, at)))
}

/// The value of a keyword `password` at this place.
fn keyword_value(text: &str, at: usize) -> Option<(usize, usize)> {
    let value = text[at..].strip_prefix("password")?.trim_start().strip_prefix('=')?.trim_start();
    let start = text.len() - value.len();
    (!value.is_empty()).then(|| (start, start + value_length(value)))
}

/// The length of a value as libpq reads it: in single quotes, or up to a space; a backslash escapes the next character.
fn value_length(value: &str) -> usize {
    let quoted = value.starts_with('\'');
    let mut characters = value.char_indices().skip(usize::from(quoted)).peekable();
    while let Some((at, character)) = characters.next() {
        let last = characters.peek().is_none_or(|(_, next)| next.is_whitespace() || *next == '"');
        match character {
            '\\' => drop(characters.next()),
            // A quote that more text follows was doubled in a statement.
            '\'' if quoted && last => return at + 1,
            character if !quoted && character.is_whitespace() => return at,
            _ => {}
        }
    }
    value.len()
}

/// The password of an address at this place, which is that of its `://`.
fn uri_password(text: &str, at: usize) -> Option<(usize, usize)> {
    let authority = text[at..].strip_prefix("://")?;
    let authority = authority.split(|c: char| c == '/' || c.is_whitespace()).next()?;
    let user = &authority[..authority.rfind('@')?];
    let start = at + "://".len();
    Some((start + user.find(':')? + 1, start + user.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_in_every_form_and_the_rest_is_kept() {
        for (text, shown) in [
            ("at \"host=h password=a port=1\": refused", "at \"host=h password=*** port=1\": refused"),
            ("\"password='hun\\'ter 2'\"Unable to connect", "\"password=***\"Unable to connect"),
            ("'x password=''hun\\''ter 2''' AS lake", "'x password=*** AS lake"),
            ("password = 'a b' dbname=d", "password = *** dbname=d"),
            ("password='never closed", "password=***"),
            ("password=a\\ b c", "password=*** c"),
            ("postgresql://u:secret@h:1/d?sslpassword=p2 end", "postgresql://u:***@h:1/d?sslpassword=*** end"),
            ("password='a' password='b'", "password=*** password=***"),
            ("ERROR: password authentication failed", "ERROR: password authentication failed"),
            ("s3://bucket/prefix: no such host", "s3://bucket/prefix: no such host"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
    }
}
