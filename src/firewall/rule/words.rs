//! Rule texts as words.

use std::borrow::Cow;

/// Words. A quoted string is one word and keeps its quotes, so that no comment and no log prefix is
/// taken for a keyword.
pub(crate) fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, behind) = rest.split_at(word_end(rest));
        words.push(word);
        rest = behind.trim_start();
    }
    words
}

/// How long the first word of `text` is.
fn word_end(text: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    let end = text.char_indices().find(|(_, c)| {
        let ends = c.is_whitespace() && !quoted;
        quoted ^= *c == '"' && !escaped;
        escaped = quoted && *c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at)
}

/// Words of nft(8): braces and commas are words of their own.
pub(crate) fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    for word in words(text) {
        if word.starts_with('"') && word.ends_with('"') {
            pieces.push(word);
            continue;
        }
        let mut quoted = false;
        let mut begin = 0;
        for (at, c) in word.char_indices() {
            quoted ^= c == '"';
            if matches!(c, '{' | '}' | ',' | ';') && !quoted {
                // All of these have one byte.
                pieces.extend([&word[begin..at], &word[at..=at]]);
                begin = at + 1;
            }
        }
        pieces.push(&word[begin..]);
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// A word without its quotes, as xtables_save_string() puts them.
pub(super) fn unquoted(word: &str) -> Cow<'_, str> {
    let Some(inner) = word.strip_prefix('"') else {
        return Cow::Borrowed(word);
    };
    let inner = inner.strip_suffix('"').unwrap_or(inner);
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut plain = String::new();
    let mut letters = inner.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next()),
            other => plain.push(other),
        }
    }
    Cow::Owned(plain)
}

/// The comment of a rule of iptables-save(8), without its quotes.
pub(in crate::firewall) fn comment(text: &str) -> Option<String> {
    if !text.contains("--comment") {
        return None;
    }
    let words = words(text);
    let at = words.iter().position(|word| *word == "--comment")?;
    words.get(at + 1).map(|word| unquoted(word).into_owned())
}

/// Whether a text is a rule of iptables-save(8), and not one of nft(8).
pub(super) fn is_xtables(text: &str) -> bool {
    const OPTIONS: [&str; 10] = ["-A", "-I", "-j", "-m", "-g", "-p", "-s", "-d", "-i", "-o"];
    words(text).iter().any(|word| OPTIONS.contains(word))
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
        assert_eq!(words(""), Vec::<&str>::new());
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
