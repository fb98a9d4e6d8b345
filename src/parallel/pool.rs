//! The threads beside the callers'.
//!
//! A job is some pieces of work that a caller wants done, and which its own thread takes one after the other as long as
//! there are any. Idle workers help: they take pieces, too. At the end the caller closes the job and waits for those
//! workers that are inside a piece, never for one that has not started: whatever else the machine does, a job takes
//! about one thread's time at most. A worker that comes too late finds the job closed.
//!
//! Before a piece a helper offers its CPU to others. Were it taken in the middle of one, say for a thread of another
//! library that spins, the caller would have to wait until the helper has it back, some milliseconds later.
//!
//! Callers and helpers together are never more than the number of threads that was asked for. So a helper looks, after
//! each piece, whether another job has been opened, and chooses anew if so: the job with the fewest helpers, or none, if
//! there are callers enough.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::num_threads;
use super::placement::{self, Place};
use crate::simd::Environment;

/// How long a caller looks for the end of the last piece before it sleeps, and a worker for another job: to wake on a CPU
/// that has halted takes as long.
const SPIN: Duration = Duration::from_micros(50);

/// Workers, and the jobs that they may help with.
pub(super) struct Pool {
    state: Mutex<State>,
    /// Counts jobs; changed with the lock held.
    opened: AtomicUsize,
}

struct State {
    /// One for each caller.
    jobs: Vec<Arc<Job>>,
    /// How many workers there are, those that have no job, and how many have one.
    workers: usize,
    idle: Vec<Arc<Worker>>,
    helping: usize,
}

struct Worker {
    thread: Thread,
    place: Place,
}

/// Pieces of work. It may outlive what the work borrows: that is used by the caller and by who is inside.
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    /// The next piece, and where they end.
    next: AtomicUsize,
    end: usize,
    /// Workers that have chosen it; changed with the lock of the pool held.
    helpers: AtomicUsize,
    /// How many of them are inside, and [`CLOSED`].
    inside: AtomicUsize,
    caller: Thread,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: all but the pointer is `Send` and `Sync`, and what it points to is `Sync`.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

/// Nobody comes inside any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

impl Job {
    /// Do the next piece, if there is one.
    ///
    /// # Safety
    /// The calling thread is that of the caller before it has called [`Self::close`], or it is inside.
    unsafe fn step(&self) -> bool {
        // In order, so that the threads read neighbouring memory.
        let piece = self.next.fetch_add(1, Ordering::Relaxed);
        let found = piece < self.end;
        if found {
            // SAFETY: `Pool::run`, which borrows the work, has not returned: it waits in `close`.
            unsafe { (*self.work)(piece) };
        }
        found
    }

    /// Come inside, do the next piece and leave; whether there was one.
    fn help(&self) -> bool {
        let enter = |inside| (inside & CLOSED == 0).then_some(inside + 1);
        if self.inside.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_err() {
            return false;
        }
        // SAFETY: this thread is inside.
        let found = catch_unwind(AssertUnwindSafe(|| unsafe { self.step() })).unwrap_or_else(|panic| {
            self.give_up();
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            false
        });
        // What the piece has written is seen by the caller, which finds nobody inside.
        if self.inside.fetch_sub(1, Ordering::Release) == CLOSED + 1 {
            self.caller.unpark();
        }
        found
    }

    fn is_over(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.end
    }

    /// Leave undone what nobody has begun.
    fn give_up(&self) {
        self.next.store(self.end, Ordering::Relaxed);
    }

    /// Let nobody inside any more, and wait until nobody is.
    fn close(&self) {
        self.inside.fetch_or(CLOSED, Ordering::Relaxed);
        let began = Instant::now();
        while self.inside.load(Ordering::Acquire) != CLOSED {
            if began.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                thread::park();
            }
        }
    }
}

impl Pool {
    pub(super) const fn new() -> Self {
        let state = State { jobs: Vec::new(), workers: 0, idle: Vec::new(), helping: 0 };
        Self { state: Mutex::new(state), opened: AtomicUsize::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics with the lock held, so a poisoned lock holds a good value.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call `work` with each number of `pieces`, on this thread and on as many workers as are free.
    ///
    /// # Panics
    /// If `work` does.
    pub(super) fn run(&'static self, pieces: std::ops::Range<usize>, work: &(dyn Fn(usize) + Sync)) {
        struct Open<'a>(&'a Pool, Arc<Job>);
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                // There are pieces left only after a panic on this thread.
                self.1.give_up();
                self.0.lock().jobs.retain(|job| !Arc::ptr_eq(job, &self.1));
                self.1.close();
            }
        }
        // SAFETY: only the lifetime changes. The work is called by `step` alone, for this thread before `close`, and for
        // workers inside; this function does not end, by a panic either, before `close` has waited for them.
        let work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        let job = Arc::new(Job {
            work,
            next: AtomicUsize::new(pieces.start),
            end: pieces.end,
            helpers: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            caller: thread::current(),
            panic: Mutex::new(None),
        });
        let open = Open(self, Arc::clone(&job));
        self.open(&job, pieces.len() - 1);
        // SAFETY: this is the caller's thread, and the job is open.
        while unsafe { job.step() } {}
        drop(open);
        let panic = job.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Let workers help with a job, as many as `most`, and wake or make them.
    fn open(&'static self, job: &Arc<Job>, most: usize) {
        let threads = num_threads().0;
        let mut state = self.lock();
        let alone = state.jobs.is_empty() && state.helping == 0;
        state.jobs.push(Arc::clone(job));
        self.opened.fetch_add(1, Ordering::Relaxed);
        let wanted = most.min(threads.saturating_sub(state.jobs.len() + state.helping));
        let others = state.idle.len().saturating_sub(wanted);
        let woken = state.idle.split_off(others);
        let made = (wanted - woken.len()).min((threads - 1).saturating_sub(state.workers));
        state.workers += made;
        drop(state);
        // Where the workers of other jobs are is not known.
        let bound = alone.then(|| placement::spread(woken.iter().map(|worker| &worker.place)));
        for worker in &woken {
            worker.thread.unpark();
        }
        drop(bound);
        for made_before in 0..made {
            let thread = thread::Builder::new().name("xent_rs".into());
            if thread.spawn(|| Environment::DEFAULT.run(|| self.work())).is_err() {
                // The system refuses it: those that there are must do.
                self.lock().workers -= made - made_before;
                break;
            }
        }
    }

    /// What a worker does: help, until there are more workers than are wanted.
    fn work(&self) {
        let worker = Arc::new(Worker { thread: thread::current(), place: Place::of_this_thread() });
        let mut state = self.lock();
        while state.workers < num_threads().0 {
            let opened = self.opened.load(Ordering::Relaxed);
            let another = || self.opened.load(Ordering::Relaxed) != opened;
            if let Some(job) = state.choose() {
                state.helping += 1;
                job.helpers.fetch_add(1, Ordering::Relaxed);
                drop(state);
                let mut pieces: usize = 0;
                loop {
                    // The longer the job, the less it matters to wait, and the more to keep the CPU.
                    if pieces == 0 || pieces.is_power_of_two() {
                        thread::yield_now();
                    }
                    if !job.help() || another() {
                        break;
                    }
                    pieces += 1;
                }
                worker.place.was_here();
                state = self.lock();
                state.helping -= 1;
                job.helpers.fetch_sub(1, Ordering::Relaxed);
            } else {
                // If there is work for which there are callers enough, it is they who need the CPU.
                let spin = if state.unfinished().next().is_some() { Duration::ZERO } else { SPIN };
                state.idle.push(Arc::clone(&worker));
                drop(state);
                let began = Instant::now();
                while !another() && began.elapsed() < spin {
                    std::hint::spin_loop();
                }
                if !another() {
                    thread::park();
                }
                state = self.lock();
                state.idle.retain(|other| !Arc::ptr_eq(other, &worker));
            }
        }
        state.workers -= 1;
    }

    /// Wake all workers, as fewer may be wanted now.
    pub(super) fn threads_changed(&self) {
        let idle = std::mem::take(&mut self.lock().idle);
        for worker in idle {
            worker.thread.unpark();
        }
    }
}

impl State {
    /// The job with the fewest helpers that has pieces left; none, if callers and helpers are as many as threads.
    fn choose(&self) -> Option<Arc<Job>> {
        if self.jobs.len() + self.helping >= num_threads().0 {
            return None;
        }
        self.unfinished().min_by_key(|job| job.helpers.load(Ordering::Relaxed)).map(Arc::clone)
    }

    /// The jobs that have pieces left.
    fn unfinished(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.jobs.iter().filter(|job| !job.is_over())
    }
}

#[cfg(all(test, not(target_family = "wasm")))] // WebAssembly has one thread
mod tests {
    use super::*;
    use crate::parallel::set_num_threads;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    use std::thread::{ThreadId, scope, sleep};

    /// The number of threads is one for the process, and tests run side by side.
    static THREADS: Mutex<()> = Mutex::new(());

    /// A pool of so many threads, callers included, as long as the guard lives.
    fn pool(threads: usize) -> (&'static Pool, MutexGuard<'static, ()>) {
        let guard = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        set_num_threads(threads).unwrap();
        (Box::leak(Box::new(Pool::new())), guard)
    }

    fn eventually(mut holds: impl FnMut() -> bool) -> bool {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20) {
            if holds() {
                return true;
            }
            sleep(Duration::from_millis(1));
        }
        false
    }

    fn wait_until(holds: impl FnMut() -> bool) {
        assert!(eventually(holds));
    }

    /// The threads that took the pieces, of which each waits until as many threads as `together` have one.
    fn threads_of(pool: &'static Pool, pieces: usize, together: usize) -> Vec<ThreadId> {
        let found = Mutex::new(Vec::new());
        let different =
            |found: &[ThreadId]| found.iter().enumerate().filter(|(i, id)| !found[..*i].contains(id)).count();
        pool.run(0..pieces, &|_| {
            found.lock().unwrap().push(thread::current().id());
            wait_until(|| different(&found.lock().unwrap()) >= together);
        });
        found.into_inner().unwrap()
    }

    #[test]
    fn workers_help() {
        let (pool, _threads) = pool(4);
        for _ in 0..3 {
            assert_eq!(threads_of(pool, 4, 4).len(), 4);
        }
        assert_eq!(pool.lock().workers, 3);
        // Workers that are not wanted any more go.
        set_num_threads(2).unwrap();
        pool.threads_changed();
        wait_until(|| pool.lock().workers == 1);
        assert_eq!(threads_of(pool, 2, 2).len(), 2);
    }

    #[test]
    fn a_worker_that_never_starts_is_not_waited_for() {
        let (pool, _threads) = pool(3);
        // Two workers that exist, as the pool believes, and never come: one sleeps, one was made and has not started.
        let worker = Worker { thread: thread::current(), place: Place::of_this_thread() };
        *pool.lock() = State { jobs: Vec::new(), workers: 2, idle: vec![Arc::new(worker)], helping: 0 };
        let taken = AtomicUsize::new(0);
        pool.run(0..100, &|_| {
            taken.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(taken.into_inner(), 100);
    }

    #[test]
    fn a_job_beside_a_long_one_has_its_callers_thread() {
        let (pool, _threads) = pool(2);
        let (inside, release) = (Barrier::new(3), AtomicBool::new(false));
        scope(|scope| {
            // Its caller and the worker are each in a piece that does not end.
            scope.spawn(|| {
                pool.run(0..2, &|_| {
                    inside.wait();
                    wait_until(|| release.load(Ordering::Relaxed));
                });
            });
            inside.wait();
            let own = thread::current().id();
            assert_eq!(threads_of(pool, 50, 1), [own; 50]);
            release.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_helper_leaves_when_there_are_callers_enough() {
        let (pool, _threads) = pool(2);
        let (helping, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        scope(|scope| {
            scope.spawn(|| {
                let own = thread::current().id();
                let run = || {
                    pool.run(0..usize::MAX / 2, &|_| {
                        helping.fetch_add(usize::from(thread::current().id() != own), Ordering::Relaxed);
                        assert!(!stop.load(Ordering::Relaxed), "the only end of so many pieces");
                    });
                };
                assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            });
            let helped = eventually(|| helping.load(Ordering::Relaxed) > 0);
            let left = AtomicBool::new(true);
            pool.run(0..2, &|_| {
                // This is the second caller of two threads.
                let nobody = eventually(|| pool.lock().helping == 0);
                let before = helping.load(Ordering::Relaxed);
                sleep(Duration::from_millis(5));
                left.fetch_and(nobody && helping.load(Ordering::Relaxed) == before, Ordering::Relaxed);
            });
            stop.store(true, Ordering::Relaxed);
            assert!(helped && left.into_inner());
        });
    }

    #[test]
    fn workers_are_shared_evenly() {
        let (pool, _threads) = pool(6);
        let (counts, stop) = ([AtomicUsize::new(0), AtomicUsize::new(0)], AtomicBool::new(false));
        scope(|scope| {
            for count in &counts {
                let stop = &stop;
                scope.spawn(move || {
                    pool.run(0..10_000_000, &|_| {
                        if !stop.load(Ordering::Relaxed) {
                            count.fetch_add(1, Ordering::Relaxed);
                            sleep(Duration::from_millis(1));
                            count.fetch_sub(1, Ordering::Relaxed);
                        }
                    });
                });
            }
            let helpers = |job: &Arc<Job>| job.helpers.load(Ordering::Relaxed);
            let even = eventually(|| pool.lock().jobs.iter().map(helpers).eq([2, 2]));
            stop.store(true, Ordering::Relaxed);
            assert!(even);
        });
    }

    #[test]
    fn every_piece_is_done_once_whoever_calls() {
        let (pool, _threads) = pool(3);
        scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..300 {
                        let done: Vec<_> = (0..=round % 40).map(|_| AtomicUsize::new(0)).collect();
                        pool.run(0..done.len(), &|piece| {
                            done[piece].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(done.into_iter().all(|done| done.into_inner() == 1));
                    }
                });
            }
        });
        assert!(pool.lock().jobs.is_empty());
    }

    #[test]
    fn panics_of_helpers_and_of_callers_reach_the_caller() {
        let (pool, _threads) = pool(2);
        let own = thread::current().id();
        for of_caller in [false, true] {
            let inside = Barrier::new(2);
            let run = || {
                pool.run(0..2, &|_| {
                    inside.wait();
                    assert!((thread::current().id() == own) != of_caller, "on purpose");
                });
            };
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
            assert_eq!(threads_of(pool, 2, 2).len(), 2);
        }
    }
}
