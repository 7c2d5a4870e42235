//! Cuts a line of nft(8) into words as its scanner does (src/scanner.l).

/// A word of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word<'a> {
    /// `{`
    Open,
    /// `}`
    Close,
    /// `;`
    End,
    /// `,`
    Comma,
    /// `"…"`
    Quoted,
    /// Anything else, blanks and the above around it.
    Plain(&'a str),
}

/// The words of `line` up to its comment.
///
/// # Errors
/// When a quote stays open, which the scanner would go on with in the next line, or when the line
/// would be joined with the next one.
pub(super) fn words(line: &str) -> Result<Vec<Word<'_>>, String> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        let Some(first) = rest.chars().next() else {
            return Ok(words);
        };
        let single = match first {
            '#' => return Ok(words),
            '{' => Some(Word::Open),
            '}' => Some(Word::Close),
            ';' => Some(Word::End),
            ',' => Some(Word::Comma),
            '\\' => return Err("it ends in the middle of a line of nft".to_owned()),
            _ => None,
        };
        if let Some(word) = single {
            words.push(word);
            rest = &rest[1..];
        } else if let Some(inner) = rest.strip_prefix('"') {
            let (_, after) = inner
                .split_once('"')
                .ok_or_else(|| "a quote stays open".to_owned())?;
            words.push(Word::Quoted);
            rest = after;
        } else {
            let end = rest.find([' ', '\t', '#', '{', '}', ';', ',', '"', '\\']);
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            words.push(Word::Plain(word));
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Word::*, *};

    #[test]
    fn a_line_is_cut_as_the_scanner_cuts_it() {
        let line = "ip saddr {10.0.0.1, 10.0.0.2}accept;comment \"{#\"} # {";
        let expected = [
            Plain("ip"),
            Plain("saddr"),
            Open,
            Plain("10.0.0.1"),
            Comma,
            Plain("10.0.0.2"),
            Close,
            Plain("accept"),
            End,
            Plain("comment"),
            Quoted,
            Close,
        ];
        assert_eq!(words(line).unwrap(), expected);
        assert!(words("comment \"x").is_err());
        assert!(words("accept \\").is_err());
    }
}
