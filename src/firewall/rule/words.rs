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

/// Words of nft(8): braces and commas are words of their own.
pub(crate) fn pieces(text: &str) -> Vec<String> {
    let split = |word: String| -> Vec<String> {
        if word.starts_with('"') && word.ends_with('"') {
            return vec![word];
        }
        let mut pieces = vec![String::new()];
        let mut quoted = false;
        for c in word.chars() {
            quoted ^= c == '"';
            match (c, pieces.last_mut()) {
                ('{' | '}' | ',' | ';', _) if !quoted => {
                    pieces.extend([c.to_string(), String::new()]);
                }
                (_, Some(piece)) => piece.push(c),
                (_, None) => {}
            }
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    };
    words(text).into_iter().flat_map(split).collect()
}

/// A word without its quotes, as xtables_save_string() puts them.
pub(super) fn unquoted(word: &str) -> String {
    let Some(inner) = word.strip_prefix('"') else {
        return word.to_owned();
    };
    let mut plain = String::new();
    let mut letters = inner.strip_suffix('"').unwrap_or(inner).chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next()),
            other => plain.push(other),
        }
    }
    plain
}

/// The comment of a rule of iptables-save(8), without its quotes.
pub(in crate::firewall) fn comment(text: &str) -> Option<String> {
    if !text.contains("--comment") {
        return None;
    }
    let words = words(text);
    let at = words.iter().position(|word| word == "--comment")?;
    words.get(at + 1).map(|word| unquoted(word))
}

/// Whether a text is a rule of iptables-save(8), and not one of nft(8).
pub(super) fn is_xtables(text: &str) -> bool {
    let option = |word: &String| {
        let words = ["-A", "-I", "-j", "-m", "-g", "-p", "-s", "-d", "-i", "-o"];
        words.contains(&word.as_str())
    };
    words(text).iter().any(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_string_is_one_word() {
        let text = r#"-m comment --comment "a \"b\" -j"  -j DROP"#;
        let quoted = r#""a \"b\" -j""#;
        assert_eq!(
            words(text),
            ["-m", "comment", "--comment", quoted, "-j", "DROP"]
        );
        assert_eq!(unquoted(quoted), "a \"b\" -j");
        assert_eq!(words(""), Vec::<String>::new());
    }

    #[test]
    fn braces_and_commas_of_nft_are_words() {
        assert_eq!(
            pieces(r#"iifname {"a,b", "c"} ct state new,related"#),
            [
                "iifname", "{", "\"a,b\"", ",", "\"c\"", "}", "ct", "state", "new", ",", "related"
            ]
        );
    }
}
