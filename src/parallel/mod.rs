//! The only place that knows threads: chunks of work, the pool, fork, and interruption.
//!
//! What a chunk is depends on the problem's shape alone, and results come back in the order of the chunks, so no bit
//! of a result depends on the number of threads. The caller works too (`pool.rs`); small jobs never leave its thread, since
//! waking a pool takes longer than they do.
//!
//! The pool belongs to a process: a child made by `fork` has none of its parent's threads. A handler counts forks, and
//! a pool that an earlier process made is left where it is, neither used nor dropped: its threads do not exist. Long
//! jobs run in slices of about 50 ms, between which the caller may stop them.
//!
//! Where a row is work enough for all threads, they share it (`pieces.rs`).

mod pieces;
#[cfg_attr(target_os = "linux", path = "placement.rs")]
#[cfg_attr(not(target_os = "linux"), path = "no_placement.rs")]
mod placement;
mod pool;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use self::pool::Pool;
use crate::error::{Error, Result};
pub use pieces::{in_pieces, map_rows, pieces};

/// Jobs of fewer bytes than this stay on the caller's thread: some 30 µs of work.
const INLINE_BYTES: usize = 1 << 18;

/// How long a slice of a long job should take.
const SLICE: Duration = Duration::from_millis(50);

/// Bytes of the first slice, before the speed is known.
const FIRST_SLICE_BYTES: usize = 1 << 26;

/// More threads than this is a mistake, not a wish.
const MOST_THREADS: usize = 4096;

/// The number that [`set_num_threads`] set; 0 before it was called.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// The threads to use, and where the number comes from.
pub fn num_threads() -> (usize, &'static str) {
    static DEFAULT: OnceLock<(usize, &'static str)> = OnceLock::new();
    match CHOSEN.load(Ordering::Relaxed) {
        0 => *DEFAULT.get_or_init(default_threads),
        chosen => (chosen, "set_num_threads"),
    }
}

/// Our own variable, then OpenMP's, which is what launchers set to keep their workers from crowding each other, then
/// the CPUs that this process may use.
fn default_threads() -> (usize, &'static str) {
    for variable in ["XENT_RS_NUM_THREADS", "OMP_NUM_THREADS"] {
        if let Ok(Some(threads)) = environment_threads(variable) {
            return (threads, variable);
        }
    }
    (std::thread::available_parallelism().map_or(1, usize::from), "available CPUs")
}

/// The number of threads that `variable` asks for, if it is set.
fn environment_threads(variable: &str) -> Result<Option<usize>> {
    let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else { return Ok(None) };
    let text = text.to_string_lossy();
    // OpenMP's may be a list, one number for each level of nesting.
    match text.split(',').next().and_then(|text| text.trim().parse().ok()) {
        Some(threads @ 1..=MOST_THREADS) => Ok(Some(threads)),
        _ => {
            Err(Error::Value(format!("{variable} is '{text}'; expected a number of threads from 1 to {MOST_THREADS}")))
        }
    }
}

/// Whether workers that share a CPU are sent to others, where the system lets us: unless `XENT_RS_PLACEMENT` is 0.
pub fn placement() -> bool {
    static PLACEMENT: OnceLock<bool> = OnceLock::new();
    cfg!(target_os = "linux") && *PLACEMENT.get_or_init(|| environment_placement().unwrap_or(true))
}

fn environment_placement() -> Result<bool> {
    let text = std::env::var_os("XENT_RS_PLACEMENT").unwrap_or_default();
    match text.to_string_lossy().as_ref() {
        "" | "1" => Ok(true),
        "0" => Ok(false),
        text => Err(Error::Value(format!("XENT_RS_PLACEMENT is '{text}'; expected 0 or 1"))),
    }
}

/// Follow our own variables, if they mean something. Whoever calls this first, while no other thread can fork the process,
/// leaves nothing half made to a child.
///
/// # Errors
/// [`Error::Value`] if one does not.
pub fn follow_environment() -> Result<()> {
    environment_threads("XENT_RS_NUM_THREADS")?;
    environment_placement()?;
    num_threads();
    placement();
    process_pool();
    Ok(())
}

/// Use `threads` threads from now on.
///
/// # Errors
/// [`Error::Value`] if that is 0, or more than any machine has.
pub fn set_num_threads(threads: usize) -> Result<()> {
    match threads {
        0 => Err(Error::Value("number of threads is 0; expected at least 1".into())),
        1..=MOST_THREADS => {
            CHOSEN.store(threads, Ordering::Relaxed);
            process_pool().threads_changed();
            Ok(())
        }
        _ => Err(Error::Value(format!("number of threads is above {MOST_THREADS}; expected at most that"))),
    }
}

/// The pool of one process.
struct ProcessPool {
    forks: usize,
    pool: Pool,
}

/// Forks seen by this process, its ancestors' included.
static FORKS: AtomicUsize = AtomicUsize::new(0);

/// This process's pool, or an ancestor's, or null.
static POOL: AtomicPtr<ProcessPool> = AtomicPtr::new(std::ptr::null_mut());

/// This process's pool, made if need be.
fn process_pool() -> &'static Pool {
    #[cfg(unix)]
    {
        static REGISTERED: OnceLock<()> = OnceLock::new();
        extern "C" fn after_fork_in_child() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        REGISTERED.get_or_init(|| {
            // SAFETY: the handler touches one atomic, which is fine in a forked child, and it lives as long as the
            // library, which Python never unloads.
            unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
        });
    }
    let forks = FORKS.load(Ordering::Relaxed);
    loop {
        let found = POOL.load(Ordering::Acquire);
        // SAFETY: the pointer is null or came from `Box::into_raw` below, and what it points to is never freed.
        if let Some(pool) = unsafe { found.as_ref() }
            && pool.forks == forks
        {
            return &pool.pool;
        }
        let ours = Box::into_raw(Box::new(ProcessPool { forks, pool: Pool::new() }));
        if POOL.compare_exchange(found, ours, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: `ours` came from `Box::into_raw` above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(ours) });
        }
    }
}

/// Compute `work(0)` to `work(chunks − 1)`, each some `chunk_bytes` bytes of memory traffic, and return the results in
/// that order. `check` is asked on the caller's thread, about every 50 ms, whether to go on.
///
/// # Errors
/// What `check` returned; some chunks have run then, others have not. [`Error::Memory`] if there is no room for the
/// results.
///
/// # Panics
/// If `work` does.
pub fn map_chunks<T: Send + Sync>(
    chunks: usize,
    chunk_bytes: usize,
    check: &dyn Fn() -> Result<()>,
    work: impl Fn(usize) -> T + Sync,
) -> Result<Vec<T>> {
    let mut results: Vec<OnceLock<T>> = reserved(chunks)?;
    results.resize_with(chunks, OnceLock::new);
    run(chunks, chunk_bytes, check, &|chunk| {
        let _ = results[chunk].set(work(chunk));
    })?;
    Ok(results.into_iter().map(|result| result.into_inner().expect("each chunk was taken once")).collect())
}

/// Room for so many results.
fn reserved<T>(count: usize) -> Result<Vec<T>> {
    let mut results = Vec::new();
    results.try_reserve_exact(count).map_err(|_| Error::Memory(format!("no memory for {count} partial results")))?;
    Ok(results)
}

/// Run `work` on every chunk, in the pool if that is worth it.
fn run(chunks: usize, chunk_bytes: usize, check: &dyn Fn() -> Result<()>, work: &(dyn Fn(usize) + Sync)) -> Result<()> {
    // WebAssembly has the caller's thread alone, and nothing that could stop it there.
    if cfg!(target_family = "wasm") || chunks.saturating_mul(chunk_bytes) <= INLINE_BYTES {
        (0..chunks).for_each(work);
        return Ok(());
    }
    let threads = num_threads().0;
    let mut slice = (FIRST_SLICE_BYTES / chunk_bytes.max(1)).max(threads);
    let mut start = 0;
    while start < chunks {
        let end = chunks.min(start.saturating_add(slice));
        let began = Instant::now();
        if threads > 1 {
            // Asked for each time: `check` may have run a signal handler, and that may have forked.
            process_pool().run(start..end, work);
        } else {
            (start..end).for_each(work);
        }
        let speed = SLICE.as_secs_f64() / began.elapsed().as_secs_f64().max(1e-9);
        slice = ((slice as f64 * speed.clamp(0.125, 8.0)) as usize).max(threads);
        start = end;
        if start < chunks {
            check()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn results_come_in_order_and_every_chunk_runs_once() {
        for chunks in [0, 1, 2, 7, 1000] {
            for bytes in [1, INLINE_BYTES, FIRST_SLICE_BYTES] {
                let runs = AtomicUsize::new(0);
                let results = map_chunks(chunks, bytes, &|| Ok(()), |chunk| {
                    runs.fetch_add(1, Ordering::Relaxed);
                    chunk * 3
                });
                assert_eq!(results.unwrap(), (0..chunks).map(|chunk| chunk * 3).collect::<Vec<_>>());
                assert_eq!(runs.into_inner(), chunks);
            }
        }
    }

    #[test]
    #[cfg_attr(target_family = "wasm", ignore = "nothing stops a job there")]
    fn a_long_job_stops_when_asked() {
        let asked = Cell::new(0);
        let began = Instant::now();
        let check = || {
            asked.set(asked.get() + 1);
            if asked.get() == 3 { Err(Error::Interrupted) } else { Ok(()) }
        };
        let result = map_chunks(10_000, 1 << 20, &check, |_| std::thread::sleep(Duration::from_millis(2)));
        assert_eq!(result.unwrap_err(), Error::Interrupted);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[test]
    #[cfg_attr(target_family = "wasm", ignore = "a panic ends the program there")]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let panics = || {
            let work = |chunk: usize| assert!(chunk != 5, "five");
            map_chunks(100, INLINE_BYTES, &|| Ok(()), work)
        };
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(map_chunks(10, INLINE_BYTES, &|| Ok(()), |chunk| chunk).unwrap().len(), 10);
    }
}
