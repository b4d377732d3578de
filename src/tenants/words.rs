//! How a setting that is a list is written in one string: words as in a shell.
#![forbid(unsafe_code)]

/// A string that isn't a list of words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWords {
    /// has a quote that is not closed
    #[error("has a {0} that is not closed")]
    OpenQuote(char),
    /// ends in a backslash
    #[error("ends in a backslash")]
    LoneBackslash,
}

/// Splits at white space. `"…"` and `'…'` hold words together; a backslash takes the next character as it is,
/// except between single quotes. There are no variables, patterns or comments.
pub fn split(text: &str) -> Result<Vec<String>, BadWords> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word
                .get_or_insert_default()
                .push(chars.next().ok_or(BadWords::LoneBackslash)?),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                // "" is an empty word, not none.
                word.get_or_insert_default();
            }
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(q) = quote {
        return Err(BadWords::OpenQuote(q));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_like_a_shells() {
        for (text, words) in [
            ("", vec![]),
            (" \t\n", vec![]),
            ("a  b\tc\n", vec!["a", "b", "c"]),
            (r#"--name "two words" x"#, vec!["--name", "two words", "x"]),
            (r#"a"b c"d"#, vec!["ab cd"]),
            (r#"'a "b"' "c 'd'""#, vec![r#"a "b""#, "c 'd'"]),
            (r#""" ''"#, vec!["", ""]),
            (r#"a\ b "c\"d" 'e\f'"#, vec!["a b", "c\"d", r"e\f"]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        assert_eq!(split("a 'b"), Err(BadWords::OpenQuote('\'')));
        assert_eq!(split("a\\"), Err(BadWords::LoneBackslash));
    }
}
