//! A stack of items that several threads work on until nothing is left.
//!
//! Last in, first out: so the tree is walked depth first, and the descriptors that wait are those of
//! one branch.

use crate::request::CaptureError;
use std::sync::{Condvar, Mutex, MutexGuard};

struct State<I> {
    items: Vec<I>,
    /// Threads that have an item, and may bring more.
    busy: usize,
    waiting: usize,
    error: Option<CaptureError>,
}

/// Works on `first` and all items that come of it; returns what each thread collected.
///
/// The first error ends all threads soon and is returned.
pub(super) fn run<I: Send, F: Default + Send>(
    threads: usize,
    first: I,
    work: impl Fn(I, &mut F, &mut Vec<I>) -> Result<(), CaptureError> + Sync,
) -> Result<Vec<F>, CaptureError> {
    let state = Mutex::new(State { items: vec![first], busy: 0, waiting: 0, error: None });
    let wake = Condvar::new();
    let worker = || {
        let mut found = F::default();
        let mut more = Vec::new();
        while let Some(item) = next(&state, &wake) {
            let busy = Busy { state: &state, wake: &wake };
            let result = work(item, &mut found, &mut more);
            let mut state = lock(&state);
            match result {
                // The first name in the directory is looked at first.
                Ok(()) => state.items.extend(more.drain(..).rev()),
                Err(error) => {
                    more.clear();
                    state.items.clear();
                    state.error.get_or_insert(error);
                }
            }
            drop(state);
            drop(busy);
        }
        found
    };
    let found = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mut found = vec![worker()];
        for other in others {
            match other.join() {
                Ok(part) => found.push(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        found
    });
    let error = lock(&state).error.take();
    error.map_or(Ok(found), Err)
}

/// A thread that has an item; others wait for it, so it must be counted out even by a panic.
struct Busy<'a, I> {
    state: &'a Mutex<State<I>>,
    wake: &'a Condvar,
}

impl<I> Drop for Busy<'_, I> {
    fn drop(&mut self) {
        let mut state = lock(self.state);
        state.busy -= 1;
        if state.waiting > 0 {
            self.wake.notify_all();
        }
    }
}

fn lock<I>(state: &Mutex<State<I>>) -> MutexGuard<'_, State<I>> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits for an item; `None` when there will be none any more.
fn next<I>(state: &Mutex<State<I>>, wake: &Condvar) -> Option<I> {
    let mut state = lock(state);
    loop {
        if let Some(item) = state.items.pop() {
            state.busy += 1;
            return Some(item);
        }
        if state.busy == 0 || state.error.is_some() {
            return None;
        }
        state.waiting += 1;
        state = wake.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        state.waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        for threads in [1, 4] {
            let found = run(threads, 10u32, |n, found: &mut Vec<u32>, more| {
                found.push(n);
                more.extend(std::iter::repeat_n(n.saturating_sub(1), if n > 0 { 2 } else { 0 }));
                Ok(())
            });
            assert_eq!(found.unwrap().iter().map(Vec::len).sum::<usize>(), 2047);
        }
    }

    #[test]
    fn a_panic_ends_all_threads() {
        let panicked = std::panic::catch_unwind(|| {
            run(4, 20u32, |n, _: &mut (), more| {
                more.extend([n - 1; 2]);
                assert!(n > 15);
                Ok(())
            })
        });
        assert!(panicked.is_err());
    }

    #[test]
    fn an_error_ends_all_threads() {
        let result = run(4, 20u32, |n, _: &mut (), more| {
            more.extend([n - 1, n - 1]);
            if n == 5 { Err(CaptureError::Aborted) } else { Ok(()) }
        });
        assert!(matches!(result, Err(CaptureError::Aborted)));
    }
}
