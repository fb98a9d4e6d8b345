//! One row for all threads: a row of millions of classes is cut into pieces.
//!
//! Where it is cut depends on its length alone, and what was found of the pieces is merged in their order, so no bit of a result
//! depends on who worked on them: all threads, if the rows are few or very long ([`map_rows`]), else the one that has the row.
//!
//! Kernels know nothing of that. They say what is done with a piece and how two are merged ([`in_pieces`]), somewhere deep in the
//! work on a row; whoever began that work on this thread has left here whom to ask whether to go on.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{map_chunks, num_threads, reserved};
use crate::error::{Error, Result};

/// Rows of no more classes are not cut.
const MOST_WHOLE: usize = 1 << 20;

/// How many classes a piece has: whole blocks, a megabyte of float32.
const PIECE: usize = 1 << 18;

/// Bytes of a piece as [`map_chunks`] counts them, by which it tells how long work will take: enough for the slowest kernel.
const PIECE_BYTES: usize = 16 * PIECE;

/// How many pieces for each thread leave none of them idle for long.
const ENOUGH_PIECES: usize = 4;

/// How many pieces a row is.
pub fn pieces(classes: usize) -> usize {
    if classes <= MOST_WHOLE { 1 } else { classes.div_ceil(PIECE) }
}

/// So many pieces at least are worked on before they are merged: what is known of one may take some kilobytes.
const TOGETHER: usize = 64;

/// How long a leader goes on without asking: another thread of Python may take as long as a row to answer.
const PATIENCE: Duration = Duration::from_millis(25);

/// A caller whose rows all threads work on, one after the other.
struct Leader<'a> {
    check: &'a dyn Fn() -> Result<()>,
    /// When it was asked last.
    asked: Cell<Instant>,
    /// Why the work is not to go on.
    stopped: RefCell<Option<Error>>,
}

impl Leader<'_> {
    /// Ask whether to go on, if that was long ago.
    fn ask(&self) -> Result<()> {
        if self.asked.get().elapsed() < PATIENCE {
            return Ok(());
        }
        let answer = (self.check)();
        self.asked.set(Instant::now());
        answer
    }
}

thread_local! {
    /// That of the row that this thread is working on.
    static LEADER: Cell<Option<*const Leader<'static>>> = const { Cell::new(None) };
}

/// Sets [`LEADER`] as long as it lives.
struct Led(Option<*const Leader<'static>>);

impl Led {
    fn by(leader: Option<*const Leader<'static>>) -> Self {
        Self(LEADER.replace(leader))
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        LEADER.set(self.0);
    }
}

/// [`map_chunks`] of chunks of rows that are cut into so many pieces: either each thread takes chunks, or the caller takes them one
/// after the other, and all threads their pieces, whatever keeps more of them busy.
///
/// # Errors
/// [`map_chunks`]'. If `check` returned an error in the middle of a row, its results are worth nothing.
///
/// # Panics
/// If `work` does.
pub fn map_rows<T: Send + Sync>(
    chunks: usize,
    chunk_bytes: usize,
    pieces: usize,
    check: &dyn Fn() -> Result<()>,
    work: impl Fn(usize) -> T + Sync,
) -> Result<Vec<T>> {
    // Whichever way it goes, the work is compiled once.
    let work: &(dyn Fn(usize) -> T + Sync) = &work;
    let threads = num_threads().0;
    let enough = if chunks < threads { chunks } else { ENOUGH_PIECES * threads };
    if cfg!(target_family = "wasm") || pieces == 1 || pieces < enough {
        return map_chunks(chunks, chunk_bytes, check, work);
    }
    let mut results = reserved(chunks)?;
    let leader = Leader { check, asked: Cell::new(Instant::now()), stopped: RefCell::new(None) };
    for chunk in 0..chunks {
        let led = Led::by(Some(std::ptr::from_ref(&leader).cast()));
        results.push(work(chunk));
        drop(led);
        if let Some(error) = leader.stopped.take() {
            return Err(error);
        }
        if chunk + 1 < chunks {
            leader.ask()?;
        }
    }
    Ok(results)
}

/// What `of` finds of all classes of a row; of a row that is cut, what it finds of each piece, merged in their order.
///
/// If the work is stopped, what is returned is that of some pieces.
#[inline(always)]
pub fn in_pieces<T: Send + Sync>(
    classes: usize,
    of: impl Fn(Range<usize>) -> T + Sync,
    mut merge: impl FnMut(&mut T, T),
) -> T {
    if classes <= MOST_WHOLE { of(0..classes) } else { cut(classes, &of, &mut merge) }
}

#[inline(never)]
fn cut<T: Send + Sync>(classes: usize, of: &(dyn Fn(Range<usize>) -> T + Sync), merge: &mut dyn FnMut(&mut T, T)) -> T {
    let of_piece = |number: usize| of(number * PIECE..classes.min((number + 1) * PIECE));
    // Who works on a piece does not cut it once more, nor do signal handlers find the leader.
    let led = Led::by(None);
    let Some(leader) = led.0 else {
        let mut all = of_piece(0);
        (1..pieces(classes)).for_each(|number| merge(&mut all, of_piece(number)));
        return all;
    };
    // SAFETY: `map_rows` has put it there, on this thread, and takes it away before it ends.
    let leader = unsafe { &*leader };
    let (mut all, mut first, count) = (None, 0, pieces(classes));
    let together = TOGETHER.max(ENOUGH_PIECES * num_threads().0);
    while first < count && leader.stopped.borrow().is_none() {
        let some = together.min(count - first);
        let found = map_chunks(some, PIECE_BYTES, &|| leader.ask(), |number| of_piece(first + number));
        match found.and_then(|found| leader.ask().map(|()| found)) {
            Ok(found) => {
                for next in found {
                    match &mut all {
                        Some(all) => merge(all, next),
                        None => all = Some(next),
                    }
                }
            }
            Err(error) => *leader.stopped.borrow_mut() = Some(error),
        }
        first += some;
    }
    all.unwrap_or_else(|| of_piece(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// The classes of all pieces in the order in which they were merged.
    fn read(classes: usize) -> Vec<Range<usize>> {
        in_pieces(classes, |part| vec![part], |all, mut next| all.append(&mut next))
    }

    #[test]
    fn a_row_is_cut_at_the_same_places_by_a_leader_and_by_one_thread() {
        for classes in [0, 1, MOST_WHOLE, MOST_WHOLE + 1, 5 * PIECE, 5 * PIECE + 1, 40 * PIECE - 1] {
            let alone = read(classes);
            assert_eq!(alone.len(), pieces(classes));
            assert_eq!((alone[0].start, alone.last().unwrap().end), (0, classes));
            assert!(alone.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % PIECE == 0));
            let led = map_rows(3, 1, 1000, &|| Ok(()), |_| read(classes)).unwrap();
            assert_eq!(led, vec![alone; 3], "{classes}");
        }
    }

    #[test]
    #[cfg_attr(target_family = "wasm", ignore = "nothing stops a job there")]
    fn a_leader_asks_in_the_middle_of_a_row_and_stops() {
        let (asked, read) = (Cell::new(0), AtomicUsize::new(0));
        let check = || {
            asked.set(asked.get() + 1);
            if asked.get() == 2 { Err(Error::Interrupted) } else { Ok(()) }
        };
        let work = |_| {
            for _ in 0..2 {
                let slowly = |_| {
                    thread::sleep(Duration::from_millis(1));
                    read.fetch_add(1, Ordering::Relaxed);
                };
                in_pieces(10_000 * PIECE, slowly, |(), ()| ());
            }
        };
        assert_eq!(map_rows(7, 1, 10_000, &check, work).unwrap_err(), Error::Interrupted);
        assert!(read.into_inner() < 2000);
        assert!(LEADER.get().is_none());
    }

    #[test]
    #[cfg_attr(target_family = "wasm", ignore = "a panic ends the program there")]
    fn a_panic_leaves_no_leader_behind() {
        let work = |_| in_pieces(8 * PIECE, |part| assert!(part.start != 3 * PIECE, "three"), |(), ()| ());
        assert!(std::panic::catch_unwind(|| map_rows(1, 1, 8, &|| Ok(()), work)).is_err());
        assert!(LEADER.get().is_none());
    }
}
