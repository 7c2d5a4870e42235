//! Several things at a time: the tests of networks wait most of their time, for packets that do not come.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Does `work` with each of the items, `at_once` of them at a time, and gives what came of them in the
/// order of the items. It panics where one of them does, after all others are done.
pub(crate) fn each<'a, T, R>(
    at_once: usize,
    items: &'a [T],
    work: impl Fn(&'a T) -> R + Sync,
) -> Vec<R>
where
    T: Sync,
    R: Send,
{
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let some = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return };
            let came = work(item);
            done.lock().unwrap().push((at, came));
        }
    };
    thread::scope(|scope| (0..at_once).for_each(|_| _ = scope.spawn(some)));
    let mut done = done.into_inner().unwrap();
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, came)| came).collect()
}
