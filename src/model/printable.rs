//! Text from strangers, made fit for a terminal, a log or a page.

use std::{
    borrow::Cow,
    io::{self, Write},
};

/// `text` with every character that would do something instead of being seen written as Rust
/// writes it, `\u{1b}`: control characters (a terminal's escape sequences begin with one), line
/// breaks included, and those that turn the direction of writing or cannot be seen (Unicode
/// Standard Annex 9; general category Cf).
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    Cow::Owned(clean)
}

/// As [`printable`], but lines stay lines and tabs stay tabs: for text of several lines that is
/// ours, with words of strangers in it.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| acts(c) && !matches!(c, '\n' | '\t')) {
        return Cow::Borrowed(text);
    }
    let lines: Vec<_> = text
        .split('\n')
        .map(|line| {
            let cells: Vec<_> = line.split('\t').map(printable).collect();
            cells.join("\t")
        })
        .collect();
    Cow::Owned(lines.join("\n"))
}

/// Bytes that are looked at together: JSON is written in pieces of a few.
const TOGETHER: usize = 32 << 10;

/// A writer of JSON in which every character that would act is escaped (RFC 8259, section 7): the
/// value stays the same. Each write is of whole characters, as serde_json's are. What was not
/// flushed is lost.
#[derive(Debug)]
pub struct PrintableJson<W> {
    out: W,
    pending: Vec<u8>,
}

impl<W: Write> PrintableJson<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            pending: Vec::new(),
        }
    }

    /// Writes what is left, and returns where all was written to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.write_pending()?;
        Ok(self.out)
    }

    fn write_pending(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.pending);
        let plain = |b: u8| (b' '..0x7f).contains(&b) | (b == b'\n');
        // Without a way out of the loop it is done many bytes at a time.
        if bytes.iter().fold(true, |all, b| all & plain(*b)) {
            self.out.write_all(&bytes)?;
        } else {
            self.write_escaped(&bytes)?;
        }
        self.pending = bytes;
        self.pending.clear();
        Ok(())
    }

    fn write_escaped(&mut self, bytes: &[u8]) -> io::Result<()> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        let mut rest = text;
        while let Some(at) = rest.find(|c| acts(c) && c != '\n') {
            let (clean, tail) = rest.split_at(at);
            self.out.write_all(clean.as_bytes())?;
            let mut chars = tail.chars();
            for unit in chars.next().unwrap_or(' ').encode_utf16(&mut [0; 2]) {
                write!(self.out, "\\u{unit:04x}")?;
            }
            rest = chars.as_str();
        }
        self.out.write_all(rest.as_bytes())
    }
}

impl<W: Write> Write for PrintableJson<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= TOGETHER {
            self.write_pending()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_pending()?;
        self.out.flush()
    }
}

/// A writer of log lines in which every character that would act is written out, but line ends and
/// the log's own colours: of what it is told it writes escape characters out itself.
#[derive(Debug)]
pub struct PrintableLog<W> {
    out: W,
    json: bool,
}

impl<W: Write> PrintableLog<W> {
    /// Lines of text.
    pub fn of_text(out: W) -> Self {
        Self { out, json: false }
    }

    /// Lines of JSON.
    pub fn of_json(out: W) -> Self {
        Self { out, json: true }
    }
}

impl<W: Write> Write for PrintableLog<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let strange = |c: char| acts(c) && !matches!(c, '\n' | '\t' | '\u{1b}');
        let mut rest = text.as_ref();
        while let Some(at) = rest.find(strange) {
            let (clean, tail) = rest.split_at(at);
            self.out.write_all(clean.as_bytes())?;
            let mut chars = tail.chars();
            let c = chars.next().unwrap_or(' ');
            match self.json {
                true => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}")?;
                    }
                }
                false => write!(self.out, "{}", c.escape_default())?,
            }
            rest = chars.as_str();
        }
        self.out.write_all(rest.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_written_out_and_the_rest_stays() {
        assert!(matches!(printable("naïve ✓ 日本"), Cow::Borrowed(_)));
        assert_eq!(printable("a\u{1b}[2J\r\nb"), "a\\u{1b}[2J\\r\\nb");
        assert_eq!(printable("\u{202e}x\u{9b}1m\t"), "\\u{202e}x\\u{9b}1m\\t");
        assert_eq!(printable_lines("a\tb\n\u{1b}c\n"), "a\tb\n\\u{1b}c\n");
    }

    #[test]
    fn a_log_line_says_what_would_act() {
        let mut log = PrintableLog::of_text(Vec::new());
        log.write_all("\u{1b}[2mWARN\u{1b}[0m lab \u{202e}x\u{9b}1m\r\n".as_bytes())
            .unwrap();
        let text = String::from_utf8(log.out).unwrap();
        assert_eq!(text, "\u{1b}[2mWARN\u{1b}[0m lab \\u{202e}x\\u{9b}1m\\r\n");
        let mut log = PrintableLog::of_json(Vec::new());
        log.write_all("{\"lab\":\"\u{202e}x\"}\n".as_bytes())
            .unwrap();
        assert_eq!(log.out, b"{\"lab\":\"\\u202ex\"}\n");
    }

    #[test]
    fn json_stays_the_same_value_and_has_nothing_that_acts() {
        let value =
            serde_json::json!({"a\u{202e}": ["\u{1b}[2J", "\u{9b}1m", "\u{e0041}", "naïve"]});
        let mut json = PrintableJson::new(Vec::new());
        serde_json::to_writer_pretty(&mut json, &value).unwrap();
        let text = String::from_utf8(json.finish().unwrap()).unwrap();
        assert!(!text.contains(|c| acts(c) && c != '\n'), "{text:?}");
        assert!(text.contains("naïve"), "{text}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }
}
