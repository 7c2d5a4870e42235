//! Whether the architecture's document names files and folders that there are.

use std::path::Path;

use crate::source::Source;

/// What `docs/ARCHITECTURE.md` names between backticks and is no file, or the end of no file's path, below
/// `src`. Names of files end with `.rs`; what has a slash within and no such end is a folder.
pub(crate) fn named_and_missing(root: &Path, source: &Source) -> Result<Vec<String>, String> {
    let document = root.join("docs/ARCHITECTURE.md");
    let text =
        std::fs::read_to_string(&document).map_err(|e| format!("{}: {e}", document.display()))?;
    let is_there = |name: &str| {
        let end = format!("/{name}");
        if name.ends_with(".rs") {
            source.files.iter().any(|file| file.path.ends_with(&end))
        } else {
            root.join("src").join(name).is_dir()
        }
    };
    let spans = text.split('`').skip(1).step_by(2);
    Ok(spans
        .filter(|name| name.ends_with(".rs") || (name.contains('/') && !name.contains([' ', '.'])))
        .map(|name| name.trim_start_matches("src/"))
        .filter(|name| !name.starts_with("tests/") && !is_there(name))
        .map(str::to_owned)
        .collect())
}
