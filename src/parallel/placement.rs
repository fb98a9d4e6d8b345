//! Where threads run: a worker that was last seen on a CPU of another thread of the job is sent to one of its own.
//!
//! That is the kernel's work, but in a virtual machine it may leave a worker on the CPU of the thread that wakes it: where
//! the host reports halted virtual CPUs as preempted (KVM), they are no idle ones to wake a thread on, and a job of some
//! milliseconds is over before load is balanced. After 20 ms of rest, 262144 × 10 float32 took 2.4 ms with two threads
//! as with one, call after call, and takes 1.4.
//!
//! The kernel chooses where a thread wakes while it is being woken, so a worker is bound to its CPU only until it was.
//! Machines of more CPUs than a set has bits (1024) do without.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use libc::{c_int, cpu_set_t, pid_t};

/// Not known; no thread and no CPU has that number.
const UNKNOWN: c_int = -1;

/// The jobs that run at this time. While one does, where its workers are is not known.
static JOBS: AtomicUsize = AtomicUsize::new(0);

/// Whether the system has refused.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// A job that runs.
pub(super) struct Job {
    alone: bool,
}

impl Job {
    pub(super) fn begin() -> Self {
        Self { alone: JOBS.fetch_add(1, Ordering::AcqRel) == 0 }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        JOBS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where the workers of a pool run.
pub(super) struct Places {
    workers: Box<[Place]>,
}

struct Place {
    /// The number that the kernel has for the thread.
    thread: AtomicI32,
    /// Where it was when it last finished a job.
    cpu: AtomicI32,
}

/// Workers that are bound to a CPU, until this is dropped.
#[must_use]
pub(super) struct Bound {
    workers: Vec<Binding>,
}

struct Binding {
    thread: pid_t,
    cpu: cpu_set_t,
    before: cpu_set_t,
}

impl Drop for Bound {
    fn drop(&mut self) {
        for Binding { thread, cpu, before } in &self.workers {
            // Unless somebody else has changed it meanwhile.
            // SAFETY: the call only reads the sets.
            if affinity(*thread).is_some_and(|now| unsafe { libc::CPU_EQUAL(&now, cpu) }) {
                set_affinity(*thread, before);
            }
        }
    }
}

impl Places {
    pub(super) fn new(workers: usize) -> Self {
        let place = |_| Place { thread: AtomicI32::new(UNKNOWN), cpu: AtomicI32::new(UNKNOWN) };
        Self { workers: (0..workers).map(place).collect() }
    }

    /// The calling thread is this worker.
    pub(super) fn enter(&self, worker: usize) {
        // SAFETY: the call takes nothing and cannot fail.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        self.workers[worker].thread.store(thread as pid_t, Ordering::Relaxed);
    }

    /// The calling thread, this worker, has finished a job.
    pub(super) fn end(&self, worker: usize) {
        self.workers[worker].cpu.store(current(), Ordering::Relaxed);
    }

    /// Bind those of the first `others` workers, which a pool wakes first, that were last seen on a CPU of another, or of
    /// the caller, to CPUs where none was, as far as there are any. If other jobs run, none.
    pub(super) fn spread(&self, job: &Job, others: usize) -> Bound {
        let mut bound = Bound { workers: Vec::new() };
        if !job.alone || REFUSED.load(Ordering::Relaxed) {
            return bound;
        }
        let caller = current();
        let mut taken = no_cpus();
        insert(caller, &mut taken);
        let mut crowded = Vec::new();
        for place in &self.workers[..others.min(self.workers.len())] {
            let cpu = place.cpu.load(Ordering::Relaxed);
            if contains(cpu, &taken) {
                crowded.push(place);
            } else {
                insert(cpu, &mut taken);
            }
        }
        for place in crowded {
            let thread = place.thread.load(Ordering::Relaxed);
            let Some(before) = affinity(thread) else { break };
            // From the next CPU on, lest all programs choose the first.
            let next = (1..MOST_CPUS).map(|step| (caller.max(0) + step) % MOST_CPUS);
            let free = { next }.find(|&cpu| contains(cpu, &before) && !contains(cpu, &taken));
            let Some(free) = free else { break };
            let mut cpu = no_cpus();
            insert(free, &mut cpu);
            if !set_affinity(thread, &cpu) {
                REFUSED.store(true, Ordering::Relaxed);
                break;
            }
            insert(free, &mut taken);
            bound.workers.push(Binding { thread, cpu, before });
        }
        bound
    }
}

/// How many CPUs a set can have.
const MOST_CPUS: c_int = 8 * size_of::<cpu_set_t>() as c_int;

/// The CPU of the calling thread, or [`UNKNOWN`].
fn current() -> c_int {
    // SAFETY: the call takes nothing; it returns −1 where it is not supported.
    unsafe { libc::sched_getcpu() }
}

fn no_cpus() -> cpu_set_t {
    // SAFETY: a set is bits, of which none is set.
    unsafe { std::mem::zeroed() }
}

fn contains(cpu: c_int, cpus: &cpu_set_t) -> bool {
    // SAFETY: the set has that bit.
    (0..MOST_CPUS).contains(&cpu) && unsafe { libc::CPU_ISSET(cpu as usize, cpus) }
}

fn insert(cpu: c_int, cpus: &mut cpu_set_t) {
    if (0..MOST_CPUS).contains(&cpu) {
        // SAFETY: the set has that bit.
        unsafe { libc::CPU_SET(cpu as usize, cpus) }
    }
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

    fn is(a: Option<cpu_set_t>, b: &cpu_set_t) -> bool {
        // SAFETY: the call only reads the sets.
        a.is_some_and(|a| unsafe { libc::CPU_EQUAL(&a, b) })
    }

    /// A worker that was on the caller's CPU wakes on another, if there is one, and may then run where it could before;
    /// one that has not worked yet stays; so do all while another job runs, and what others decide stays, too.
    #[test]
    fn crowded_workers_wake_on_free_cpus() {
        let Some(before) = affinity(0) else { return };
        // SAFETY: the call only reads the set.
        let several = unsafe { libc::CPU_COUNT(&before) } > 1;
        let (places, alone, busy) = (Places::new(2), Job { alone: true }, Job { alone: false });
        std::thread::scope(|scope| {
            let (ask, asked) = channel::<()>();
            let (tell, told) = channel();
            let places = &places;
            scope.spawn(move || {
                places.enter(0);
                tell.send(UNKNOWN).unwrap();
                while asked.recv().is_ok() {
                    tell.send(current()).unwrap();
                }
            });
            told.recv().unwrap();
            // The caller stays where it is.
            let home = current();
            let mut here = no_cpus();
            insert(home, &mut here);
            assert!(set_affinity(0, &here));
            let thread = places.workers[0].thread.load(Ordering::Relaxed);
            for _ in 0..100 {
                places.workers[0].cpu.store(home, Ordering::Relaxed);
                assert!(places.spread(&busy, 2).workers.is_empty());
                assert!(places.spread(&alone, 0).workers.is_empty());
                let bound = places.spread(&alone, 2);
                assert_eq!(bound.workers.len(), usize::from(several));
                ask.send(()).unwrap();
                assert!(!several || told.recv().unwrap() != home);
                drop(bound);
                assert!(is(affinity(thread), &before));
            }
            let bound = places.spread(&alone, 2);
            assert!(set_affinity(thread, &here));
            drop(bound);
            assert!(is(affinity(thread), &here));
            assert!(set_affinity(0, &before));
            drop(ask);
        });
    }
}
