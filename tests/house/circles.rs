//! Files that import from each other, directly or by way of others.
//!
//! A file's `use` items are what it imports. A name leads to the file that defines it, through the
//! `pub use` of a module's front. A module and what lies below it are no circle: the one declares the
//! other.

use std::collections::BTreeMap;

use syn::visit::Visit;

use crate::source::{File, Source};

/// Strongly connected sets of files, each sorted.
pub(crate) fn among(source: &Source) -> Vec<Vec<String>> {
    let arrows = Arrows::of(source);
    let reach: Vec<Vec<bool>> = (0..source.files.len())
        .map(|from| arrows.reachable(from))
        .collect();
    let mut placed = vec![false; source.files.len()];
    let mut circles = Vec::new();
    for one in 0..source.files.len() {
        if placed[one] {
            continue;
        }
        let circle: Vec<usize> = (one..source.files.len())
            .filter(|&other| other != one && reach[one][other] && reach[other][one])
            .collect();
        if circle.is_empty() {
            continue;
        }
        let mut paths = vec![source.files[one].path.clone()];
        for other in circle {
            placed[other] = true;
            paths.push(source.files[other].path.clone());
        }
        circles.push(paths);
    }
    circles
}

struct Arrows(Vec<Vec<usize>>);

impl Arrows {
    fn of(source: &Source) -> Self {
        let modules: BTreeMap<&[String], usize> = source
            .files
            .iter()
            .enumerate()
            .map(|(at, file)| (file.module.as_slice(), at))
            .collect();
        let fronts: Vec<Vec<(String, Vec<String>)>> = source.files.iter().map(imports).collect();
        let arrows = source.files.iter().enumerate().map(|(from, file)| {
            let mut to: Vec<usize> = fronts[from]
                .iter()
                .filter_map(|(_, path)| definition(path, &modules, &fronts, 0))
                .filter(|&other| other != from && !are_kin(file, &source.files[other]))
                .collect();
            to.sort_unstable();
            to.dedup();
            to
        });
        Self(arrows.collect())
    }

    fn reachable(&self, from: usize) -> Vec<bool> {
        let mut seen = vec![false; self.0.len()];
        let mut open = self.0[from].clone();
        while let Some(at) = open.pop() {
            if !std::mem::replace(&mut seen[at], true) {
                open.extend(&self.0[at]);
            }
        }
        seen
    }
}

/// Whether one module lies below the other.
fn are_kin(one: &File, other: &File) -> bool {
    one.module.starts_with(&other.module) || other.module.starts_with(&one.module)
}

/// Every name that a file imports, with the whole path of what it names.
fn imports(file: &File) -> Vec<(String, Vec<String>)> {
    let mut uses = Uses {
        module: &file.module,
        found: Vec::new(),
    };
    uses.visit_file(&file.syntax);
    uses.found
}

/// The file that defines what a path names, followed through fronts that only pass it on.
fn definition(
    path: &[String],
    modules: &BTreeMap<&[String], usize>,
    fronts: &[Vec<(String, Vec<String>)>],
    depth: usize,
) -> Option<usize> {
    if let Some(&at) = modules.get(path) {
        return Some(at);
    }
    let (name, module) = path.split_last()?;
    let at = *modules.get(module)?;
    let passed_on = fronts[at]
        .iter()
        .find(|(known, target)| known == name && target.as_slice() != path);
    match passed_on {
        Some((_, target)) if depth < 8 => {
            definition(target, modules, fronts, depth + 1).or(Some(at))
        }
        _ => Some(at),
    }
}

struct Uses<'a> {
    module: &'a [String],
    found: Vec<(String, Vec<String>)>,
}

impl Uses<'_> {
    fn take(&mut self, tree: &syn::UseTree, mut path: Vec<String>) {
        match tree {
            syn::UseTree::Path(part) => {
                self.step(&mut path, &part.ident.to_string());
                self.take(&part.tree, path);
            }
            syn::UseTree::Name(name) => self.name(&name.ident, &name.ident, path),
            syn::UseTree::Rename(name) => self.name(&name.ident, &name.rename, path),
            syn::UseTree::Glob(_) => self.found.push((String::from("*"), path)),
            syn::UseTree::Group(group) => group
                .items
                .iter()
                .for_each(|item| self.take(item, path.clone())),
        }
    }

    fn name(&mut self, ident: &syn::Ident, known_as: &syn::Ident, mut path: Vec<String>) {
        if ident != "self" {
            self.step(&mut path, &ident.to_string());
        }
        self.found.push((known_as.to_string(), path));
    }

    /// `crate` begins at the root, `self` and `super` at this module, which a first plain name does, too:
    /// one of another crate then leads nowhere.
    fn step(&self, path: &mut Vec<String>, part: &str) {
        match part {
            "crate" => path.clear(),
            "self" => *path = self.module.to_vec(),
            "super" if path.is_empty() => {
                *path = self.module.to_vec();
                path.pop();
            }
            "super" => {
                path.pop();
            }
            _ => path.push(part.to_owned()),
        }
    }
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.take(&item.tree, Vec::new());
    }
}
