//! The source files, parsed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// One file of `src/`.
pub(crate) struct File {
    /// Below the package's root, as `src/lab/up.rs`.
    pub(crate) path: String,
    /// The module that it is, as `["lab", "up"]`; the crate's root is empty.
    pub(crate) module: Vec<String>,
    /// Its lines without those of test modules, which are empty here.
    pub(crate) lines: Vec<String>,
    pub(crate) syntax: syn::File,
}

/// All of `src/` but files of tests and programs.
pub(crate) struct Source {
    pub(crate) files: Vec<File>,
}

impl Source {
    /// # Errors
    /// A file that cannot be read, or is no Rust, with its path.
    pub(crate) fn read(root: &Path) -> Result<Self, String> {
        let mut paths = Vec::new();
        rust_files(&root.join("src"), &mut paths).map_err(|e| format!("src: {e}"))?;
        paths.sort();
        let files = paths
            .iter()
            .filter(|path| !path.to_string_lossy().ends_with("tests.rs"))
            .map(|path| File::read(root, path))
            .collect::<Result<_, _>>()?;
        Ok(Self { files })
    }

    /// Lines that are neither blank nor only a comment.
    pub(crate) fn code_lines(&self) -> usize {
        self.files
            .iter()
            .flat_map(|file| &file.lines)
            .filter(|line| is_code(line))
            .count()
    }

    /// Items, fields, variants' owners and methods that say `pub`; restricted ones as `pub(crate)` are not.
    pub(crate) fn public_items(&self) -> usize {
        let mut count = Publics(0);
        for file in &self.files {
            count.visit_file(&file.syntax);
        }
        count.0
    }

    /// All functions by their lengths, the longest first.
    pub(crate) fn longest_functions(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for file in &self.files {
            let mut functions = Functions {
                path: &file.path,
                found: &mut found,
            };
            functions.visit_file(&file.syntax);
        }
        found.sort_by(|a, b| b.cmp(a));
        found
    }

    /// Types and traits that other files can name, and whose names are defined in more than one file, with
    /// these files. A private type's name stays in its file and may be short.
    pub(crate) fn names_defined_twice(&self) -> BTreeMap<String, Vec<String>> {
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in &self.files {
            for item in &file.syntax.items {
                let Some(ident) = shared_type_name(item) else {
                    continue;
                };
                let files = names.entry(ident.to_string()).or_default();
                if files.last() != Some(&file.path) {
                    files.push(file.path.clone());
                }
            }
        }
        names.retain(|_, files| files.len() > 1);
        names
    }
}

impl File {
    fn read(root: &Path, path: &Path) -> Result<Self, String> {
        let name = path
            .strip_prefix(root)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
        let mut syntax = syn::parse_file(&text).map_err(|e| format!("{name}: {e}"))?;
        let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        for item in syntax.items.iter().filter(|item| is_test(item)) {
            let span = item.span();
            lines[span.start().line - 1..span.end().line].fill(String::new());
        }
        syntax.items.retain(|item| !is_test(item));
        Ok(Self {
            module: module_of(&name),
            path: name,
            lines,
            syntax,
        })
    }
}

/// Not blank, no comment, and no attribute of a comment's kind.
pub(crate) fn is_code(line: &str) -> bool {
    !line.is_empty() && !line.starts_with("//")
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

fn module_of(path: &str) -> Vec<String> {
    let mut parts: Vec<String> = path
        .trim_start_matches("src/")
        .trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect();
    if parts
        .last()
        .is_some_and(|last| last == "mod" || last == "lib")
    {
        parts.pop();
    }
    parts
}

fn shared_type_name(item: &syn::Item) -> Option<&syn::Ident> {
    let (ident, visibility) = match item {
        syn::Item::Struct(item) => (&item.ident, &item.vis),
        syn::Item::Enum(item) => (&item.ident, &item.vis),
        syn::Item::Trait(item) => (&item.ident, &item.vis),
        syn::Item::Type(item) => (&item.ident, &item.vis),
        _ => return None,
    };
    (!matches!(visibility, syn::Visibility::Inherited)).then_some(ident)
}

/// Whether an item is compiled for tests only.
fn is_test(item: &syn::Item) -> bool {
    let attributes = match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|condition| condition.is_ident("test"))
    })
}

struct Publics(usize);

impl<'ast> Visit<'ast> for Publics {
    fn visit_visibility(&mut self, visibility: &'ast syn::Visibility) {
        if matches!(visibility, syn::Visibility::Public(_)) {
            self.0 += 1;
        }
    }
}

struct Functions<'a> {
    path: &'a str,
    found: &'a mut Vec<(usize, String)>,
}

impl Functions<'_> {
    fn note(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let lines = block.span().end().line - signature.span().start().line + 1;
        self.found
            .push((lines, format!("{} {}", self.path, signature.ident)));
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.note(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.note(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }
}
