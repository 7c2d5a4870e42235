//! Questions in bulk: matrices, policies, before and after, what if.
//!
//! All of them ask through one engine ([`crate::run::quick::sweep`]), keep answers as [`answers::Cell`]s,
//! and print by way of one [`document::Document`], which [`render`] writes as text, Markdown or JUnit.
//!
//! ```text
//! policy ─┐                                        ┌─ check ──┐
//! networks├─ pairs ── sweep ── cells ── saved ─────┼─ matrix ─┼─ document ── render
//! lists ──┘                                        └─ diff ───┘
//! ```

pub mod addresses;
pub mod answers;
pub mod ask;
pub mod check;
pub mod diff;
pub mod document;
pub mod matrix;
pub mod one;
pub mod policy;
pub mod render;
pub mod saved;
pub mod temporary;
pub mod what_if;
