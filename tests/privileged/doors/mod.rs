//! Facts come from strangers: nothing in them reads, writes, resolves or runs anything outside the
//! lab, and what is let through is loaded all the same.

mod files;
mod filters;
mod many;
mod mutate;
mod shut_in;
mod silence;
