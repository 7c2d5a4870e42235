//! Reads what a runner writes with [`crate::run::progress`]: the latest line, from where the last
//! reading stopped.

use std::{
    fs::File,
    io::{self, Read},
};

use crate::{model::printable, run::progress::ProgressLine};

/// Longest line that is looked at; a longer one is skipped.
const LINE_MAX: usize = 4096;
/// Longest phase name that is shown, in characters.
const PHASE_MAX: usize = 48;

/// The progress of one running job.
#[derive(Debug)]
pub struct ProgressReader {
    file: File,
    /// The beginning of a line whose end was not written yet.
    rest: Vec<u8>,
    last: Option<ProgressLine>,
}

impl ProgressReader {
    /// Reads `file` from where it stands.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            file,
            rest: Vec::new(),
            last: None,
        }
    }

    /// Reads what was written since; whether the progress changed. A percentage that goes back is
    /// not believed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&mut self) -> io::Result<bool> {
        let before = self.last.clone();
        let mut block = [0; 16 * 1024];
        loop {
            let count = self.file.read(&mut block)?;
            if count == 0 {
                return Ok(self.last != before);
            }
            self.take(&block[..count]);
        }
    }

    /// The latest progress, if there was any.
    #[must_use]
    pub fn last(&self) -> Option<&ProgressLine> {
        self.last.as_ref()
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let room = LINE_MAX.saturating_sub(self.rest.len());
            self.rest.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.line();
                self.rest.clear();
            }
        }
    }

    fn line(&mut self) {
        let Ok(mut line) = serde_json::from_slice::<ProgressLine>(&self.rest) else {
            return;
        };
        line.phase = printable(&line.phase).chars().take(PHASE_MAX).collect();
        let last = self.last.as_ref().map_or(0, |last| last.percent);
        line.percent = line.percent.clamp(last, 100);
        self.last = Some(line);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_taken_whole_and_never_backwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let mut file = File::create(&path).unwrap();
        let mut reader = ProgressReader::new(File::open(&path).unwrap());
        assert!(!reader.read().unwrap());
        let mut seen = Vec::new();
        for text in [
            "{\"percent\":40,\"phase\":\"pro",
            "bing\"}\n",
            "nonsense\n{\"percent\":20,\"phase\":\"back\\u0007\"}\n",
            "{\"percent\":255,\"phase\":\"end\"}\n",
        ] {
            file.write_all(text.as_bytes()).unwrap();
            if reader.read().unwrap() {
                let line = reader.last().unwrap();
                seen.push((line.percent, line.phase.clone()));
            }
        }
        let want = [(40, "probing"), (40, "back\\u{7}"), (100, "end")];
        assert_eq!(seen, want.map(|(n, s)| (n, s.to_owned())));
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        let mut reader = ProgressReader::new(File::open(&path).unwrap());
        assert!(!reader.read().unwrap());
        assert!(reader.rest.len() <= LINE_MAX);
    }
}
