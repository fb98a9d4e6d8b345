//! How rows are worked on by the kernels that need no maximum, by how they lie in memory.
//!
//! Rows of few classes come on a stage, some tiles at a time, and each step is done for all of them before the next, so that
//! no chain of operations is waited for. Where the rows lie lane by lane in memory (an inner class axis) the tiles are worked on
//! in place, a strip of them at a time and eight classes of each: so memory is read in eight streams, page by page. Other rows are
//! worked on one by one.

use std::ops::Range;

use fearless_simd::Simd;

use crate::array::{Array, RowsMut};
use crate::element::Element;
use crate::kernel::stage::{MOST_STAGED, Stage, most_classes};
use crate::kernel::vertical::{Block, MOST_TILES, Strip, StripMut};
use crate::math::Real;

/// Rows that are read twice are worked on together as long as they stay in a corner of the L2 cache.
pub(super) const BATCH_BYTES: usize = 1 << 17;

/// What is read twice of a strip should stay in the second cache.
const STRIP_BYTES: usize = 1 << 19;

/// How the next rows are worked on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// So many tiles where they lie.
    Strip(usize),
    /// So many rows on a stage.
    Staged(usize),
    /// So many rows, no more than there are lanes, one by one.
    OneByOne(usize),
}

impl Way {
    /// That of at most `left` rows from `first` on, of which no more tiles than `most` are worked on together; `lies_alike` says
    /// whether all else that is read of so many rows lies as they do, and `fits` whether results can be written so.
    ///
    /// The logits and targets alone decide by which kernel losses are computed; those in place have the same bits as on a stage.
    /// What is `settled`, classes that lie apart or do not, goes by the same kernel wherever rows are cut into batches.
    #[inline(always)]
    pub(super) fn of<R: Real + Element<Real = R>>(
        logits: &Array,
        first: usize,
        left: usize,
        most: usize,
        settled: Option<bool>,
        lies_alike: impl FnOnce(usize) -> bool,
        fits: impl FnOnce(usize) -> bool,
    ) -> Self {
        let (lanes, classes) = (R::LANES, logits.classes());
        // What JavaScript gives lies class by class.
        let run = logits.neighbours_from(first).filter(|_| !cfg!(javascript) && !logits.is_contiguous());
        // Rows that lie lane by lane are as many as the run has left.
        let left = run.map_or(left, |run| run.min(left));
        let tiles = run.map_or(0, |_| (left / lanes).min(most));
        let few = classes <= most_classes::<R>();
        let on_stage = classes <= MOST_STAGED;
        let lie_so = tiles > 0
            && logits.dtype() == R::DTYPE
            && u32::try_from(classes).is_ok()
            && logits.neighbours(first, tiles * lanes).is_some()
            && lies_alike(tiles * lanes)
            && (on_stage || settled.is_none());
        if lie_so && fits(tiles * lanes) {
            return Self::Strip(tiles);
        }
        let as_tiles = settled.unwrap_or(tiles > 0);
        if few || lie_so || as_tiles && on_stage {
            // What fills no tile goes by the same kernel as it does where tiles are worked on in place.
            let most = if few || tiles == 0 { left } else { tiles * lanes };
            return Self::Staged((Stage::<R>::tiles(classes) * lanes).min(most));
        }
        let bytes = classes.saturating_mul(logits.dtype().size());
        Self::OneByOne((BATCH_BYTES / bytes).clamp(1, lanes).min(left))
    }

    /// How many rows these are.
    #[inline(always)]
    pub(super) fn rows<R: Real>(self) -> usize {
        match self {
            Self::Strip(tiles) => tiles * R::LANES,
            Self::Staged(rows) | Self::OneByOne(rows) => rows,
        }
    }
}

/// How many tiles of so many classes are worked on together, if so many passes over arrays of their size are made before the last.
#[inline(always)]
pub(super) fn most_tiles(classes: usize, passes: usize) -> usize {
    if passes == 1 {
        return MOST_TILES;
    }
    (STRIP_BYTES / (classes * 64 * passes / 2)).clamp(4, MOST_TILES)
}

/// The tiles of some rows that lie lane by lane in memory, in the type that is computed in.
///
/// # Panics
/// If they do not.
#[inline(always)]
pub(super) fn strip_of<'a, R: Real + Element<Real = R>>(array: &'a Array, rows: &Range<usize>) -> Strip<'a, R> {
    assert_eq!(array.dtype(), R::DTYPE);
    let (base, step) = array.neighbours(rows.start, rows.len()).expect("asked before");
    // SAFETY: the neighbours of each class are elements of the array, readable by the promise made to `Array::new`.
    unsafe { Strip::new(Block::new(base.cast::<R>(), step, array.classes()), R::LANES) }
}

/// [`strip_of`], to write to.
///
/// # Panics
/// If they do not lie so.
#[inline(always)]
pub(super) fn strip_mut_of<'a, R: Real + Element<Real = R>>(
    out: &'a mut RowsMut,
    rows: &Range<usize>,
) -> StripMut<'a, R> {
    assert_eq!(out.dtype(), R::DTYPE);
    let classes = out.classes();
    let (place, step) = out.neighbours(rows.start, rows.len()).expect("asked before");
    // SAFETY: the neighbours of each class are elements of rows that this thread has for itself.
    unsafe { StripMut::new(Strip::new(Block::new(place.cast::<R>(), step, classes), R::LANES)) }
}

/// Whether results of so many rows can be written beside each other, as they are computed.
#[inline(always)]
pub(super) fn is_strip<R: Real + Element<Real = R>>(out: Option<&mut RowsMut>, first: usize, rows: usize) -> bool {
    out.is_none_or(
        #[inline(always)]
        |out| out.dtype() == R::DTYPE && out.neighbours(first, rows).is_some(),
    )
}

/// The rows of each tile.
#[inline(always)]
pub(super) fn tiles_of<R: Real>(rows: Range<usize>) -> impl Fn(usize) -> Range<usize> {
    move |tile| rows.start + tile * R::LANES..rows.end.min(rows.start + (tile + 1) * R::LANES)
}

/// Bring in all rows of an array of any dtype that computes in `R`, and as many more, anything, as tiles of `lanes` have; whether there
/// was memory for it. Rows of two arrays that are brought in by turns (`by_turns`) the CPU does not ask for early enough by itself.
#[inline(never)]
pub(super) fn bring_in_all<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    stage: &mut Stage<R>,
    array: &Array,
    rows: Range<usize>,
    lanes: usize,
    by_turns: bool,
) -> bool {
    let mut wings = Stage::empty();
    if !stage.reserve(rows.len().next_multiple_of(lanes), array.classes()) || !wings.reserve(R::LANES, array.classes())
    {
        return false;
    }
    for tile in 0..rows.len().next_multiple_of(lanes.max(R::LANES)) / R::LANES {
        let first = (rows.start + tile * R::LANES).min(rows.end - 1);
        let rows = first..rows.end.min(first + R::LANES);
        if by_turns {
            array.prefetch_ahead(rows.clone());
        }
        stage.bring_in(simd, tile, array, rows, &mut wings);
    }
    true
}
