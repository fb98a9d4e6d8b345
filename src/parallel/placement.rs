//! Where workers run. No part of the pool's design, but a way around what virtual machines do; `XENT_RS_PLACEMENT=0`
//! switches it off.
//!
//! In a virtual machine the kernel may leave a worker on the CPU of the thread that wakes it: where the host reports
//! halted virtual CPUs as preempted (KVM), they are no idle ones to wake a thread on, and a job of some milliseconds is
//! over before load is balanced. The worker then stays there, call after call, and two threads are no faster than one. So
//! a worker that was last seen on the CPU of another thread of the job is bound to a free one while it is woken: that
//! is when the kernel chooses.
//!
//! Machines of more CPUs than a set has bits (1024) do without.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use libc::{c_int, cpu_set_t, pid_t};

/// Not known; no CPU has that number.
const UNKNOWN: c_int = -1;

/// Whether the system has refused.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Where a worker runs.
pub(super) struct Place {
    /// The number that the kernel has for the thread.
    thread: pid_t,
    /// Where it was when it last left a job.
    cpu: AtomicI32,
}

impl Place {
    /// That of the calling thread, which has not worked yet.
    pub(super) fn of_this_thread() -> Self {
        // SAFETY: the call takes nothing and cannot fail.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        Self { thread: thread as pid_t, cpu: AtomicI32::new(UNKNOWN) }
    }

    /// The calling thread, whose place it is, has left a job.
    pub(super) fn was_here(&self) {
        self.cpu.store(current(), Ordering::Relaxed);
    }
}

/// Workers that are bound to a CPU, until this is dropped.
#[must_use]
pub(super) struct Bound(Vec<Binding>);

struct Binding {
    thread: pid_t,
    cpu: cpu_set_t,
    before: cpu_set_t,
}

impl Drop for Bound {
    fn drop(&mut self) {
        for Binding { thread, cpu, before } in &self.0 {
            // Unless somebody else has changed it meanwhile.
            // SAFETY: the call only reads the sets.
            if affinity(*thread).is_some_and(|now| unsafe { libc::CPU_EQUAL(&now, cpu) }) {
                set_affinity(*thread, before);
            }
        }
    }
}

/// Bind workers that were last seen on the CPU of another of them, or of the caller, to CPUs where none was, as far as
/// there are any.
pub(super) fn spread<'a>(workers: impl Iterator<Item = &'a Place>) -> Bound {
    let mut bound = Bound(Vec::new());
    if !super::placement() || REFUSED.load(Ordering::Relaxed) {
        return bound;
    }
    let caller = current();
    let mut taken = no_cpus();
    insert(caller, &mut taken);
    let mut crowded = Vec::new();
    for place in workers {
        let cpu = place.cpu.load(Ordering::Relaxed);
        if contains(cpu, &taken) {
            crowded.push(place.thread);
        } else {
            insert(cpu, &mut taken);
        }
    }
    for thread in crowded {
        let Some(before) = affinity(thread) else { break };
        // From the next CPU on, lest all programs choose the first.
        let mut next = (1..MOST_CPUS).map(|step| (caller.max(0) + step) % MOST_CPUS);
        let Some(free) = next.find(|&cpu| contains(cpu, &before) && !contains(cpu, &taken)) else { break };
        let mut cpu = no_cpus();
        insert(free, &mut cpu);
        if !set_affinity(thread, &cpu) {
            // Unless the thread has just ended, no other attempt would succeed.
            if std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH) {
                REFUSED.store(true, Ordering::Relaxed);
            }
            break;
        }
        insert(free, &mut taken);
        bound.0.push(Binding { thread, cpu, before });
    }
    bound
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
    /// one that has not worked yet stays; and what others decide stays, too.
    #[test]
    fn crowded_workers_wake_on_free_cpus() {
        let Some(before) = affinity(0) else { return };
        // SAFETY: the call only reads the set.
        let several = unsafe { libc::CPU_COUNT(&before) } > 1;
        std::thread::scope(|scope| {
            let (ask, asked) = channel::<()>();
            let (tell, told) = channel();
            let (enter, entered) = channel();
            scope.spawn(move || {
                enter.send(Place::of_this_thread()).unwrap();
                while asked.recv().is_ok() {
                    tell.send(current()).unwrap();
                }
            });
            let place = entered.recv().unwrap();
            assert!(spread([&place].into_iter()).0.is_empty());
            // The caller stays where it is.
            let home = current();
            let mut here = no_cpus();
            insert(home, &mut here);
            assert!(set_affinity(0, &here));
            for _ in 0..100 {
                place.cpu.store(home, Ordering::Relaxed);
                let bound = spread([&place].into_iter());
                assert_eq!(bound.0.len(), usize::from(several));
                ask.send(()).unwrap();
                assert!(!several || told.recv().unwrap() != home);
                drop(bound);
                assert!(is(affinity(place.thread), &before));
            }
            let bound = spread([&place].into_iter());
            assert!(set_affinity(place.thread, &here));
            drop(bound);
            assert!(is(affinity(place.thread), &here));
            assert!(set_affinity(0, &before));
            drop(ask);
        });
    }
}
