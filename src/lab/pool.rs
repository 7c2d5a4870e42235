//! Work on many routers at once, one thread per processor.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::processors;

/// Runs `work` on each of `items`, as many at a time as there are processors, and returns the
/// results in order; none where `work` panicked.
pub(super) fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<Option<R>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    let worker = || {
        while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed))
            && let Some(item) = items.get(at)
        {
            let result = work(item);
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = results.get_mut(at) {
                *slot = Some(result);
            }
        }
    };
    let threads = match items.len() {
        0 | 1 => 1,
        many => processors::count().min(many),
    };
    thread::scope(|scope| {
        let started: Vec<_> = (1..threads)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, worker).ok())
            .collect();
        worker();
        for thread in started {
            // A panic leaves its item without a result, which the caller sees.
            let _ = thread.join();
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_in_its_place() {
        let items: Vec<usize> = (0..1000).collect();
        let results = each(&items, |n| n * 2);
        let want: Vec<_> = items.iter().map(|n| Some(n * 2)).collect();
        assert_eq!(results, want);
        assert_eq!(each(&[0; 0], |n| *n), [None; 0]);
    }
}
