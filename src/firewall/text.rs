//! Rule texts as words.

/// Words. A quoted string is one word and keeps its quotes, so that no comment and no log prefix is
/// taken for a keyword.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        let ends = c.is_whitespace() && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        match words.last_mut() {
            Some(word) if !ends => word.push(c),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Whether the words are a rule of iptables-save(8), and not one of nft(8).
pub(super) fn is_xtables(words: &[String]) -> bool {
    words
        .iter()
        .any(|word| matches!(word.as_str(), "-A" | "-j" | "-m" | "-g"))
}

/// The word behind the first `name`.
pub(super) fn after<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_string_is_one_word() {
        assert_eq!(
            words(r#"-m comment --comment "a \"b\" -j"  -j DROP"#),
            [
                "-m",
                "comment",
                "--comment",
                r#""a \"b\" -j""#,
                "-j",
                "DROP"
            ]
        );
        assert_eq!(words(""), Vec::<String>::new());
    }
}
