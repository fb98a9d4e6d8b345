//! Where threads run: no two of them on one CPU while another is free.
//!
//! That is the kernel's work, but in virtual machines it often leaves a worker on the CPU of the thread that wakes it: a
//! virtual CPU that halts counts as preempted, so it is no idle one to wake a thread on (KVM), and a job of some
//! milliseconds is over before load is balanced. After 20 ms of rest, 262144 × 10 float32 took 2.4 ms with two threads
//! as with one, call after call, and takes 1.3. So the caller looks where the workers were when they last worked, and
//! sends one that shares a CPU with another thread to a free one; once there, it may run wherever it could before.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use libc::{c_int, cpu_set_t, pid_t};

/// Not known.
const UNKNOWN: c_int = -1;

/// Where the workers of a pool run.
pub(super) struct Places {
    workers: Box<[Place]>,
}

struct Place {
    /// The number that the kernel has for the thread.
    thread: AtomicI32,
    /// Where it was when it last finished a job.
    cpu: AtomicI32,
    /// Where it could run before it was sent to one CPU.
    allowed: Mutex<Option<cpu_set_t>>,
}

impl Places {
    pub(super) fn new(workers: usize) -> Self {
        let place =
            |_| Place { thread: AtomicI32::new(UNKNOWN), cpu: AtomicI32::new(UNKNOWN), allowed: Mutex::new(None) };
        Self { workers: (0..workers).map(place).collect() }
    }

    /// The calling thread is this worker.
    pub(super) fn enter(&self, worker: usize) {
        // SAFETY: the call takes nothing and cannot fail.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        self.workers[worker].thread.store(thread as pid_t, Ordering::Relaxed);
    }

    /// The calling thread, this worker, begins a job: it may run wherever it could before it was sent here.
    pub(super) fn begin(&self, worker: usize) {
        let mut allowed = self.workers[worker].allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cpus) = allowed.take() {
            set_affinity(0, &cpus);
        }
    }

    /// The calling thread, this worker, has finished a job.
    pub(super) fn end(&self, worker: usize) {
        self.workers[worker].cpu.store(current(), Ordering::Relaxed);
    }

    /// Send workers that share a CPU with another thread, or with the caller, to free ones, as far as there are any.
    pub(super) fn spread(&self) {
        let mut taken = vec![current()];
        let mut crowded = Vec::new();
        for place in &self.workers {
            let cpu = place.cpu.load(Ordering::Relaxed);
            if cpu == UNKNOWN {
                continue;
            }
            if taken.contains(&cpu) {
                crowded.push(place);
            } else {
                taken.push(cpu);
            }
        }
        for place in crowded {
            if let Some(cpu) = place.send(&taken) {
                taken.push(cpu);
            }
        }
    }
}

impl Place {
    /// Send the thread to a CPU that it may use and that is not taken, and return that.
    fn send(&self, taken: &[c_int]) -> Option<c_int> {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = self.thread.load(Ordering::Relaxed);
        let cpus = allowed.or_else(|| affinity(thread))?;
        let free = (0..libc::CPU_SETSIZE).find(|cpu| {
            // SAFETY: the set has that many bits.
            unsafe { libc::CPU_ISSET(*cpu as usize, &cpus) && !taken.contains(cpu) }
        })?;
        let mut alone = no_cpus();
        // SAFETY: as above.
        unsafe { libc::CPU_SET(free as usize, &mut alone) }
        if !set_affinity(thread, &alone) {
            return None;
        }
        *allowed = Some(cpus);
        self.cpu.store(free, Ordering::Relaxed);
        Some(free)
    }
}

/// The CPU of the calling thread, or [`UNKNOWN`].
fn current() -> c_int {
    // SAFETY: the call takes nothing; it returns −1 where it is not supported.
    unsafe { libc::sched_getcpu() }
}

fn no_cpus() -> cpu_set_t {
    // SAFETY: a set is bits, of which none is set.
    unsafe { std::mem::zeroed() }
}

/// Where a thread may run; 0 is the calling thread.
fn affinity(thread: pid_t) -> Option<cpu_set_t> {
    let mut cpus = no_cpus();
    // SAFETY: the set has the size that is given.
    let failed = unsafe { libc::sched_getaffinity(thread, size_of::<cpu_set_t>(), &raw mut cpus) } != 0;
    (!failed).then_some(cpus)
}

/// Let a thread run there; whether that could be done.
fn set_affinity(thread: pid_t, cpus: &cpu_set_t) -> bool {
    // SAFETY: the set has the size that is given.
    unsafe { libc::sched_setaffinity(thread, size_of::<cpu_set_t>(), cpus) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Workers that were on the caller's CPU are sent away, as far as there are free ones, and may then run where they
    /// could before; one that is alone on its CPU, or has not worked yet, stays.
    #[test]
    fn crowded_workers_are_sent_to_free_cpus() {
        let before = affinity(0).unwrap();
        // SAFETY: the call only reads the set.
        let cpus = unsafe { libc::CPU_COUNT(&before) };
        let places = Places::new(2);
        std::thread::scope(|scope| {
            let (ask, asked) = channel::<()>();
            let (tell, told) = channel();
            let places = &places;
            scope.spawn(move || {
                places.enter(0);
                while asked.recv().is_ok() {
                    let here = current();
                    places.begin(0);
                    tell.send((here, affinity(0).unwrap())).unwrap();
                }
            });
            let run = || {
                ask.send(()).unwrap();
                told.recv().unwrap()
            };
            run();
            // The caller stays where it is.
            let home = current();
            let mut alone = no_cpus();
            // SAFETY: the set has that many bits.
            unsafe { libc::CPU_SET(home as usize, &mut alone) }
            assert!(set_affinity(0, &alone));
            let worker = &places.workers[0];
            for _ in 0..100 {
                worker.cpu.store(home, Ordering::Relaxed);
                places.spread();
                let sent = worker.cpu.load(Ordering::Relaxed);
                assert_eq!(sent != home, cpus > 1);
                let (here, allowed) = run();
                assert!(cpus == 1 || here == sent, "{here} {sent}");
                // SAFETY: the call only reads the sets.
                assert!(unsafe { libc::CPU_EQUAL(&allowed, &before) });
                places.spread();
                assert!(worker.allowed.lock().unwrap().is_none());
            }
            assert_eq!(places.workers[1].cpu.load(Ordering::Relaxed), UNKNOWN);
            assert!(set_affinity(0, &before));
            drop(ask);
        });
    }
}
