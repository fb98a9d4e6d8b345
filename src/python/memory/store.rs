//! Memory of large results: what one result leaves is kept for the next, for a few seconds.
//!
//! New memory costs as much as the result that goes there: the kernel has to find and clear every page. In a loop
//! `loss, grad = f(...)` the old gradient dies when the new one is made, so two buffers in turn are enough for ever.
//!
//! # What holds
//!
//! * **Never more than was live at once.** New memory is asked for only while nothing is kept: a result takes the kept
//!   buffer that fits best and cuts or grows it to its own size, and what it grows by is first cut off the others.
//! * **What is kept counts as free to the kernel** (`MADV_FREE`) where pages are huge: before it kills for want of
//!   memory, it takes these.
//! * **What was not used for [`IDLE`] goes back**, by a thread that exists only while something is kept.
//! * **A fork inherits nothing kept**, nor a lock that nobody holds: everything kept goes back before it.
//!
//! Smaller results are the allocator's. That of glibc keeps freed memory up to 32 MiB, in threads other than the first
//! less: a loop over gradients of 1 to 24 MiB took 0.98 to 1.21 times as long there as with `out=`.
//!
//! # What was measured
//!
//! `cross_entropy_with_grad` of float32 on two cores of a Zen 5, medians of interleaved runs, in times of the same call
//! with `out=` (13 ms, 14 ms, 7.5 ms). The aim was 1.3.
//!
//! | gradient in | 512 x 128256 | 2048 x 32000 | 16384 x 1000 |
//! |---|---|---|---|
//! | memory kept from the last but one | 1.02 | 1.01 | 0.92 |
//! | new memory from here | 1.93 | 2.12 | 1.27 |
//! | new memory from NumPy | 1.94 | 2.23 | 1.27 |
//! | without huge pages: memory kept | 1.0 | 1.0 | 0.94 |
//! | without huge pages: new memory from here | 5.3 | 4.8 | 3.5 |
//! | without huge pages: new memory from NumPy | 6.6 | 5.9 | 4.1 |
//!
//! Huge pages alone do not do it: clearing 262 MB takes the kernel 8 ms, whoever touches them first, and NumPy asks for
//! huge pages as well. They make all else cheap: for 262 MB of them, `MADV_FREE` takes 0.08 ms and what it freed is
//! written as fast as before; to unmap takes 0.8 ms, to move for growth 0.15 ms. In pages of 4 KiB `MADV_FREE` takes 4
//! ms and makes the next write slower by 3 ms, in all 1.5 times the call: there it is left out. In a control group of
//! 800 MiB, a process that kept 500 and asked for 450 more got them; one that used the 500 was killed.
//!
//! Batches of varying length, 1024 to 2048 rows of 32000: 1.2 with buffers that are cut and grown, 1.8 with new ones,
//! 2.4 with NumPy's.
//!
//! # What else could do it
//!
//! The same as CPU time on two cores of a Zen 4, the other allocators as handlers that a user sets, and what the process
//! still holds of 500 MiB 7 seconds after a loop over 2048 x 32000:
//!
//! | memory from | 2048 x 32000 | 16384 x 1000 | 1024 to 2048 rows of 32000 | held |
//! |---|---|---|---|---|
//! | here | 1.0 | 0.9 | 1.2 | 0 |
//! | NumPy | 3.3 | 1.7 | 6.4 | 0 |
//! | `posix_memalign` to huge pages, `MADV_HUGEPAGE` | 1.9 | 1.4 | 2.0 | 0 |
//! | mimalloc 3.3 | 1.0 | 0.9 | 2.6 to 4.3 | 481 MiB |
//! | mimalloc 2.3 | 1.0 | 0.9 | 5.6 | 253 MiB |
//!
//! mimalloc is as good for results of one size. For others it asks for new memory, and it gives memory back only while
//! it is called: a process that goes on to something else keeps its gradients for ever.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Results of at least this many bytes get their memory here.
pub(super) const LARGE: usize = 1 << 24;

/// How long freed memory waits for the next result. Whoever takes longer from one gradient to the next does not notice
/// what new memory costs.
pub(super) const IDLE: Duration = Duration::from_secs(5);

/// Sizes are multiples of this, and this is one of the page size of every system.
const PAGE: usize = 1 << 16;

/// Pages of our own, which go back to the system when this is dropped.
struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: whoever has the `Pages` has all pages, and memory belongs to no thread.
unsafe impl Send for Pages {}

impl Pages {
    /// New pages, none of which the system has found yet; `None` if it refuses.
    fn new(bytes: usize) -> Option<Self> {
        system::map(bytes).map(|start| Self { start, bytes })
    }

    /// Give back all but the first `bytes`.
    fn cut(&mut self, bytes: usize) {
        assert!(bytes.is_multiple_of(PAGE) && (1..=self.bytes).contains(&bytes));
        // SAFETY: what lies from `bytes` on is ours, and not from here on.
        unsafe { system::unmap(self.start.add(bytes), self.bytes - bytes) };
        self.bytes = bytes;
    }

    /// These pages, cut or with new ones behind them, perhaps elsewhere; all new ones if the system can do no better.
    fn resized(mut self, bytes: usize) -> Option<Self> {
        if bytes <= self.bytes {
            self.cut(bytes);
            return Some(self);
        }
        // SAFETY: the pages are ours, and nobody knows where they lie.
        if let Some(start) = unsafe { system::grow(self.start, self.bytes, bytes) } {
            (self.start, self.bytes) = (start, bytes);
            return Some(self);
        }
        drop(self);
        Self::new(bytes)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages are ours, and nobody has them any more.
        unsafe { system::unmap(self.start, self.bytes) };
    }
}

/// What results use, and what waits for the next.
struct Store {
    lent: Vec<Pages>,
    /// Since when each waits; those that wait longest come first.
    kept: Vec<(Pages, Instant)>,
    /// Whether the thread exists that gives back what is idle.
    watched: bool,
}

impl Store {
    const fn new() -> Self {
        Self { lent: Vec::new(), kept: Vec::new(), watched: false }
    }

    fn kept_bytes(&self) -> usize {
        self.kept.iter().map(|(pages, _)| pages.bytes).sum()
    }

    /// Lend `bytes` bytes; `None` if the system has no memory for them.
    fn take(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        let bytes = bytes.checked_next_multiple_of(PAGE)?;
        self.lent.try_reserve(1).ok()?;
        let pages = self.best(bytes).and_then(|best| {
            let (pages, _) = self.kept.remove(best);
            self.shed(bytes.saturating_sub(pages.bytes));
            pages.resized(bytes)
        });
        let pages = pages.or_else(|| {
            // Nothing was kept, or the system refuses as long as something is.
            self.kept.clear();
            Pages::new(bytes)
        })?;
        let start = pages.start;
        self.lent.push(pages);
        Some(start)
    }

    /// The smallest kept buffer of at least `bytes`, else the largest; of equals the last one freed, which is most
    /// likely in the cache.
    fn best(&self, bytes: usize) -> Option<usize> {
        let sizes = || self.kept.iter().map(|(pages, _)| pages.bytes).enumerate().rev();
        let enough = sizes().filter(|(_, size)| *size >= bytes).min_by_key(|(_, size)| *size);
        enough.or_else(|| sizes().max_by_key(|(index, size)| (*size, *index))).map(|(index, _)| index)
    }

    /// Give back `bytes` of what is kept, or all of it if that is less; first what has waited longest.
    fn shed(&mut self, mut bytes: usize) {
        while bytes > 0
            && let Some((oldest, _)) = self.kept.first_mut()
        {
            if oldest.bytes > bytes {
                oldest.cut(oldest.bytes - bytes);
                break;
            }
            bytes -= oldest.bytes;
            self.kept.remove(0);
        }
    }

    /// The pages lent at `start`, back from whoever had them.
    fn returned(&mut self, start: *mut u8) -> Option<Pages> {
        let index = self.lent.iter().rposition(|pages| pages.start.as_ptr() == start)?;
        Some(self.lent.swap_remove(index))
    }

    /// Keep `pages`, if there is room to remember them.
    fn keep(&mut self, pages: Pages, now: Instant) {
        if self.kept.try_reserve(1).is_ok() {
            // SAFETY: the pages are ours, and nobody needs what they hold.
            unsafe { system::offer(pages.start, pages.bytes) };
            self.kept.push((pages, now));
        }
    }

    /// Give back what is idle, and return how long the rest may still wait; `None` if nothing is kept any more.
    fn expire(&mut self, now: Instant) -> Option<Duration> {
        self.kept.retain(|(_, since)| now.saturating_duration_since(*since) < IDLE);
        self.kept.first().map(|(_, since)| IDLE.saturating_sub(now.saturating_duration_since(*since)))
    }
}

static STORE: Mutex<Store> = Mutex::new(Store::new());

fn store() -> MutexGuard<'static, Store> {
    // Nothing panics half-way through a change, so a poisoned lock holds a good value.
    STORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lend memory of `bytes` bytes, at least [`LARGE`], not initialised, aligned to pages; `None` if there is none.
///
/// It is the caller's until [`give`].
pub(super) fn take(bytes: usize) -> Option<NonNull<u8>> {
    watch_forks();
    store().take(bytes)
}

/// Take memory back; whether it was lent by [`take`].
///
/// # Safety
/// Nobody uses the memory from here on if so.
pub(super) unsafe fn give(start: *mut u8) -> bool {
    let mut store = store();
    let Some(pages) = store.returned(start) else { return false };
    // Without the thread nothing would ever go back.
    store.watched = store.watched || thread::Builder::new().name("xent_rs-idle".into()).spawn(watch_idle).is_ok();
    if store.watched {
        store.keep(pages, Instant::now());
    }
    true
}

/// The bytes lent at `start`, if [`take`] lent them.
pub(super) fn size(start: *mut u8) -> Option<usize> {
    store().lent.iter().rfind(|pages| pages.start.as_ptr() == start).map(|pages| pages.bytes)
}

/// The bytes that are kept for the next results.
pub(super) fn kept() -> usize {
    store().kept_bytes()
}

/// Give back to the system what is kept, and return how many bytes that were.
pub(super) fn release() -> usize {
    // The system takes its time to take pages back: others need not wait for it.
    let kept = std::mem::take(&mut store().kept);
    kept.iter().map(|(pages, _)| pages.bytes).sum()
}

/// The thread: give back what is idle until nothing is kept.
fn watch_idle() {
    loop {
        let wait = {
            let mut store = store();
            let wait = store.expire(Instant::now());
            store.watched = wait.is_some();
            wait
        };
        let Some(wait) = wait else { return };
        thread::sleep(wait);
    }
}

thread_local! {
    /// The store, while this thread forks.
    static FORKING: RefCell<Option<MutexGuard<'static, Store>>> = const { RefCell::new(None) };
}

/// See to it that a child finds the store whole, unlocked, and with nothing kept.
fn watch_forks() {
    #[cfg(unix)]
    {
        extern "C" fn before() {
            let mut store = store();
            // Pages that two processes share are copied when one of them writes: slower than new ones.
            store.kept.clear();
            // The only failure is a thread in its last moments, which then forks without the lock.
            let _ = FORKING.try_with(|forking| forking.replace(Some(store)));
        }
        extern "C" fn after_in_parent() {
            let _ = FORKING.try_with(RefCell::take);
        }
        extern "C" fn after_in_child() {
            if let Ok(Some(mut store)) = FORKING.try_with(RefCell::take) {
                store.watched = false;
            }
        }
        static REGISTERED: Once = Once::new();
        REGISTERED.call_once(|| {
            // SAFETY: between `before` and `after` the forking thread holds the lock, so the child's copy of the store
            // is whole; the handlers live as long as the library, which Python never unloads.
            unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
        });
    }
}

/// What the system does with pages. `bytes` are multiples of [`PAGE`].
#[cfg(unix)]
mod system {
    use std::ptr::{NonNull, null_mut};
    #[cfg(target_os = "linux")]
    use std::sync::OnceLock;

    use libc::{MAP_ANON, MAP_FAILED, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, c_int};

    /// Huge pages begin at multiples of this.
    const HUGE_PAGE: usize = 1 << 21;

    fn reserve(bytes: usize, protection: c_int) -> Option<NonNull<u8>> {
        let room = bytes.checked_add(HUGE_PAGE)?;
        // SAFETY: new pages at a place that the system chooses.
        let start = unsafe { libc::mmap(null_mut(), room, protection, MAP_PRIVATE | MAP_ANON, -1, 0) };
        let start = NonNull::new(start.cast::<u8>()).filter(|start| start.as_ptr().cast() != MAP_FAILED)?;
        let before = start.align_offset(HUGE_PAGE);
        // SAFETY: the pages around the aligned ones are as new as those, and nobody has them. `before` is less than
        // HUGE_PAGE.
        unsafe {
            unmap(start, before);
            let aligned = start.add(before);
            unmap(aligned.add(bytes), HUGE_PAGE - before);
            Some(aligned)
        }
    }

    /// New pages at an address at which huge ones can begin.
    pub(super) fn map(bytes: usize) -> Option<NonNull<u8>> {
        let start = reserve(bytes, PROT_READ | PROT_WRITE)?;
        // SAFETY: advice for our own pages, which takes nothing from them.
        #[cfg(target_os = "linux")]
        unsafe {
            libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE)
        };
        Some(start)
    }

    /// # Safety
    /// The pages are the caller's, and nobody uses them from here on.
    pub(super) unsafe fn unmap(start: NonNull<u8>, bytes: usize) {
        if bytes > 0 {
            // SAFETY: as the caller promises. It fails only where the system has no room to note a hole: then the pages
            // stay, unused.
            unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
        }
    }

    /// Move `bytes` bytes of pages, without copying, to where `grown` bytes have room; `None` if that cannot be done.
    ///
    /// # Safety
    /// The pages are the caller's, and nobody uses their address from here on if they moved.
    #[cfg(target_os = "linux")]
    pub(super) unsafe fn grow(start: NonNull<u8>, bytes: usize, grown: usize) -> Option<NonNull<u8>> {
        let room = reserve(grown, PROT_NONE)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the old pages are the caller's, the room was just reserved for them.
        let moved = unsafe { libc::mremap(start.as_ptr().cast(), bytes, grown, flags, room.as_ptr()) };
        // After a failure the room is left alone: it may be gone, and its addresses be somebody else's.
        NonNull::new(moved.cast()).filter(|_| moved != MAP_FAILED)
    }

    /// # Safety
    /// As above.
    #[cfg(not(target_os = "linux"))]
    pub(super) unsafe fn grow(_: NonNull<u8>, _: usize, _: usize) -> Option<NonNull<u8>> {
        None
    }

    /// Let the system take pages when it needs memory, until they are written again; only where that is cheap.
    ///
    /// # Safety
    /// The pages are the caller's, who does not need what they hold.
    pub(super) unsafe fn offer(start: NonNull<u8>, bytes: usize) {
        #[cfg(target_os = "linux")]
        if huge_pages() {
            // SAFETY: as the caller promises. Where it fails, the system knows no such advice.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_FREE) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (start, bytes);
    }

    /// Whether this process gets huge pages.
    #[cfg(target_os = "linux")]
    fn huge_pages() -> bool {
        static HUGE_PAGES: OnceLock<bool> = OnceLock::new();
        *HUGE_PAGES.get_or_init(|| {
            // SAFETY: the call reads a flag of the process.
            let disabled = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0_usize, 0_usize, 0_usize, 0_usize) };
            let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
            disabled == 0 && setting.is_ok_and(|setting| !setting.contains("[never]"))
        })
    }
}

/// Elsewhere every result is the allocator's.
#[cfg(not(unix))]
mod system {
    use std::ptr::NonNull;

    pub(super) fn map(_: usize) -> Option<NonNull<u8>> {
        None
    }
    pub(super) unsafe fn unmap(_: NonNull<u8>, _: usize) {}
    pub(super) unsafe fn grow(_: NonNull<u8>, _: usize, _: usize) -> Option<NonNull<u8>> {
        None
    }
    pub(super) unsafe fn offer(_: NonNull<u8>, _: usize) {}
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A store of which every byte that is lent belongs to one borrower, and which never has more than it may.
    struct Checked {
        store: Store,
        lent: Vec<(NonNull<u8>, usize, u8)>,
        /// The most that was live at once since nothing was kept for the last time.
        most: usize,
        marks: u8,
    }

    impl Checked {
        fn new() -> Self {
            Self { store: Store::new(), lent: Vec::new(), most: 0, marks: 0 }
        }

        fn take(&mut self, pages: usize) -> NonNull<u8> {
            let start = self.store.take(pages * PAGE - 1).expect("the system has memory for a test");
            assert!((start.as_ptr() as usize).is_multiple_of(4096));
            self.marks = self.marks.wrapping_add(1);
            // SAFETY: that much was lent, less a byte that is lent too, since pages are.
            unsafe { start.write_bytes(self.marks, pages * PAGE) };
            self.lent.push((start, pages, self.marks));
            self.check();
            start
        }

        fn give(&mut self, start: NonNull<u8>, now: Instant) {
            let index = self.lent.iter().position(|(lent, ..)| *lent == start).unwrap();
            let (_, pages, mark) = self.lent.swap_remove(index);
            // SAFETY: that much is lent.
            let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), pages * PAGE) };
            assert!(bytes.iter().all(|byte| *byte == mark));
            let returned = self.store.returned(start.as_ptr()).unwrap();
            assert_eq!(returned.bytes, pages * PAGE);
            self.store.keep(returned, now);
            self.check();
        }

        fn sizes(&self) -> Vec<usize> {
            self.store.kept.iter().map(|(pages, _)| pages.bytes / PAGE).collect()
        }

        fn check(&mut self) {
            let live = self.lent.iter().map(|(_, pages, _)| pages * PAGE).sum();
            assert_eq!(self.store.lent.iter().map(|pages| pages.bytes).sum::<usize>(), live);
            self.most = self.most.max(live);
            assert!(live + self.store.kept_bytes() <= self.most);
        }
    }

    #[test]
    fn the_best_fit_is_taken_and_the_last_freed_of_equals() {
        let (mut store, now) = (Checked::new(), Instant::now());
        let starts: Vec<_> = [40, 10, 20, 20, 30].into_iter().map(|pages| store.take(pages)).collect();
        for start in &starts {
            store.give(*start, now);
        }
        assert_eq!(store.sizes(), [40, 10, 20, 20, 30]);
        assert_eq!(store.take(20), starts[3]);
        assert_eq!(store.take(11), starts[2]);
        assert_eq!(store.take(25), starts[4]);
        assert_eq!(store.sizes(), [40, 10]);
    }

    #[test]
    fn what_one_grows_by_is_cut_off_those_that_wait_longest() {
        let (mut store, now) = (Checked::new(), Instant::now());
        let starts: Vec<_> = [10, 20, 40, 30].into_iter().map(|pages| store.take(pages)).collect();
        for start in &starts {
            store.give(*start, now);
        }
        store.take(55); // 40 and 15 more: the 10, and 5 of the 20.
        assert_eq!(store.sizes(), [15, 30]);
        store.take(100); // All that is left, and 55 from the system.
        assert!(store.sizes().is_empty());
    }

    #[test]
    fn never_more_than_was_live_at_once_and_no_byte_twice() {
        let mut store = Checked::new();
        let now = Instant::now();
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..2000 {
            if store.lent.is_empty() || (store.lent.len() < 6 && random(2) == 0) {
                store.take(1 + random(50));
            } else {
                let index = random(store.lent.len());
                store.give(store.lent[index].0, now);
            }
            assert!(store.store.kept.iter().all(|(pages, _)| pages.bytes > 0));
        }
        let most = store.store.kept_bytes() + store.lent.iter().map(|(_, pages, _)| pages * PAGE).sum::<usize>();
        while let Some((start, ..)) = store.lent.first() {
            store.give(*start, now);
        }
        assert_eq!(store.store.kept_bytes(), most);
    }

    #[test]
    fn what_is_idle_goes_back_and_the_rest_waits_on() {
        let (mut store, now) = (Checked::new(), Instant::now());
        let second = Duration::from_secs(1);
        let [first, last] = [store.take(1), store.take(2)];
        assert_eq!(store.store.expire(now), None);
        store.give(first, now);
        store.give(last, now + second);
        assert_eq!(store.store.expire(now + second), Some(IDLE.saturating_sub(second)));
        assert_eq!(store.store.expire(now + IDLE), Some(second));
        assert_eq!(store.sizes(), [2]);
        assert_eq!(store.store.expire(now + IDLE + second), None);
        assert!(store.sizes().is_empty());
    }

    #[test]
    fn pages_keep_what_they_hold_when_they_are_cut_and_grow() {
        let mut pages = Pages::new(64 * PAGE).unwrap();
        for (bytes, mark) in [(64 * PAGE, 1), (7 * PAGE, 2), (100 * PAGE, 3), (99 * PAGE, 4)] {
            let before = pages.bytes.min(bytes);
            pages = pages.resized(bytes).unwrap();
            assert_eq!(pages.bytes, bytes);
            // SAFETY: so many bytes are ours, and new ones are 0.
            let held = unsafe { std::slice::from_raw_parts_mut(pages.start.as_ptr(), bytes) };
            if cfg!(target_os = "linux") {
                assert!(held[..before].iter().all(|byte| *byte == mark - 1));
            }
            held.fill(mark);
        }
    }

    #[test]
    fn what_is_not_ours_or_does_not_exist_is_refused() {
        let mut number = 0_u8;
        // SAFETY: nothing was lent there.
        assert!(!unsafe { give(&raw mut number) });
        assert_eq!(size(&raw mut number), None);
        let (mut store, now) = (Checked::new(), Instant::now());
        let start = store.take(1);
        store.give(start, now);
        assert_eq!(store.store.take(usize::MAX), None);
        assert_eq!(store.sizes(), [1]);
        // What is kept is tried before the system's refusal counts.
        assert_eq!(store.store.take(usize::MAX / 2), None);
        assert!(store.sizes().is_empty());
    }

    #[test]
    fn what_is_given_back_is_lent_again_until_it_is_released() {
        // The only test that keeps something in the store of the process.
        let first = take(LARGE).unwrap();
        assert_eq!(size(first.as_ptr()), Some(LARGE));
        // SAFETY: nobody uses it.
        assert!(unsafe { give(first.as_ptr()) } && kept() == LARGE);
        assert_eq!((take(LARGE), kept()), (Some(first), 0));
        // SAFETY: nobody uses it.
        assert!(unsafe { give(first.as_ptr()) } && !unsafe { give(first.as_ptr()) });
        assert_eq!((release(), kept(), release()), (LARGE, 0, 0));
    }
}
