//! Rows of few classes on their way to and from lanes: a stage in the first cache, where they lie class by class in the type that
//! is computed in, whatever they are in the array.

use std::any::Any;
use std::mem::MaybeUninit;
use std::ops::Range;

use fearless_simd::{Simd, SimdBase as _};

use super::finish::{MOST_LANES, PerLane};
use super::vertical::{Block, Strip, StripMut};
use crate::array::{Array, RowsMut};
use crate::dtype::{Number, with_element};
use crate::element::Element;
use crate::math::Real;
use crate::rows::{RowMut, StorePolicy};

/// The bytes of a row of [`most_classes`], in the type that is computed in. Longer rows are faster one by one.
pub const MOST_BYTES: usize = 1023;

/// Values that are on the stage at a time, or in the wings: of few classes.
const ROOM: usize = 4096;

/// The same of more classes: what the second cache has room for beside as much.
const ROOM_OF_MANY: usize = 1 << 16;

/// Of more classes not even a tile is brought onto a stage.
pub const MOST_STAGED: usize = 1 << 15;

// A tile of the most classes fits, and so do converted rows that lie apart, each of a vector at least.
const _: () = assert!(MOST_LANES * (MOST_BYTES / 4) <= ROOM && MOST_LANES * MOST_LANES <= ROOM);

/// Up to this many classes rows are turned into lanes.
pub const fn most_classes<R: Real>() -> usize {
    MOST_BYTES / size_of::<R>()
}

/// A place for some tiles: of few classes on a boundary of cache lines (so the field comes first), of more on the heap.
#[repr(C, align(64))]
pub struct Stage<R> {
    values: [MaybeUninit<R>; ROOM],
    many: Vec<MaybeUninit<R>>,
}

impl<R: Real + Element<Real = R>> Stage<R> {
    /// A stage with nothing on it, and room for rows of few classes.
    #[inline(always)]
    pub fn empty() -> Self {
        Self { values: [MaybeUninit::uninit(); ROOM], many: Vec::new() }
    }

    /// Make room for some rows of so many classes; whether there is memory for it.
    #[inline(always)]
    pub fn reserve(&mut self, rows: usize, classes: usize) -> bool {
        let room = rows.next_multiple_of(R::LANES) * classes;
        room <= ROOM || self.reserve_many(room)
    }

    #[cold]
    fn reserve_many(&mut self, room: usize) -> bool {
        if self.many.try_reserve_exact(room).is_err() {
            return false;
        }
        self.many.resize(room, MaybeUninit::uninit());
        true
    }

    /// How many tiles of so many classes are worked on at a time, no more than 16: half a stage, so that gradients have room
    /// in the cache too.
    #[inline(always)]
    pub fn tiles(classes: usize) -> usize {
        let room = if classes <= most_classes::<R>() { ROOM / 2 } else { ROOM_OF_MANY };
        (room / (R::LANES * classes)).clamp(1, 16)
    }

    #[inline(always)]
    fn place(&mut self, tile: usize, classes: usize) -> *mut R {
        let here = tile * R::LANES * classes..(tile + 1) * R::LANES * classes;
        let values = if self.many.is_empty() { &mut self.values[..] } else { &mut self.many };
        values[here].as_mut_ptr().cast()
    }

    /// The tiles on it, of so many classes.
    ///
    /// # Safety
    /// Those that are asked for were brought in.
    #[inline(always)]
    pub unsafe fn strip(&mut self, classes: usize) -> StripMut<'_, R> {
        let place = self.place(0, classes);
        // SAFETY: so many vectors were written, by the caller's promise: `bring_in` made sure that each tile lies on the stage,
        // which is borrowed.
        unsafe {
            let block = Block::new(place, (R::LANES * size_of::<R>()) as isize, classes);
            StripMut::new(Strip::new(block, R::LANES * classes))
        }
    }

    /// Bring in some rows of an array of any dtype that computes in `R`, and anything in the lanes that are left.
    #[inline(always)]
    pub fn bring_in<S: Simd>(&mut self, simd: S, tile: usize, array: &Array, rows: Range<usize>, wings: &mut Self) {
        with_element!(array.dtype(), E => {
            same(self).bring_in_as::<S, E>(simd, tile, array, rows, same(wings));
        });
    }

    /// Write the tile to some rows of an output of any dtype that computes in `R`, each value rounded once.
    ///
    /// # Safety
    /// It was brought in.
    #[inline(always)]
    pub unsafe fn bring_out<S: Simd>(
        &mut self,
        simd: S,
        tile: usize,
        out: &mut RowsMut,
        rows: Range<usize>,
        wings: &mut Self,
        store: StorePolicy,
    ) {
        // SAFETY: the caller's promise.
        with_element!(out.dtype(), O => unsafe {
            same(self).bring_out_as::<S, O>(simd, tile, out, rows, same(wings), store);
        });
    }

    /// [`Self::bring_in`] of an array of `E`s.
    #[inline(never)]
    fn bring_in_as<S: Simd, E: Element<Real = R>>(
        &mut self,
        simd: S,
        tile: usize,
        array: &Array,
        rows: Range<usize>,
        wings: &mut Self,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                let (first, count, classes) = (rows.start, rows.len(), array.classes());
                assert!(0 < count && count <= R::LANES && array.dtype() == E::DTYPE);
                let stage = self.place(tile, classes);
                let neighbours = if array.is_contiguous() { None } else { array.neighbours(first, count) };
                if let Some((base, step)) = neighbours {
                    for class in 0..classes {
                        let source = base.wrapping_offset(class as isize * step).cast_const().cast::<E>();
                        // SAFETY: as many elements lie there side by side, readable by the promise made to `Array::new`; a
                        // vector of this tile's.
                        unsafe {
                            let whole = count == R::LANES;
                            let logits = if whole { E::load(simd, source) } else { E::load_part(simd, source, count) };
                            Element::store(simd, stage.add(class * R::LANES), logits);
                        }
                    }
                    return;
                }
                if classes == 2
                    && count == R::LANES
                    && let Some(place) = array.in_a_row::<E>(first, count)
                {
                    let place = place.cast_const();
                    // SAFETY: as many rows of two elements lie there one behind the other, readable by the promise made to
                    // `Array::new`; two vectors of this tile's.
                    unsafe {
                        let (first, second) = E::load(simd, place).deinterleave(E::load(simd, place.add(R::LANES)));
                        Element::store(simd, stage, first);
                        Element::store(simd, stage.add(R::LANES), second);
                    }
                    return;
                }
                if classes < 4 || !array.is_contiguous() {
                    for lane in 0..R::LANES {
                        let row = array.row(first + lane.min(count - 1));
                        for class in 0..classes {
                            let value: R = Real::from_f64(Number::to_f64(row.get_as::<E>(class)));
                            // SAFETY: a place of this tile's.
                            unsafe { stage.add(class * R::LANES + lane).write(value) }
                        }
                    }
                    return;
                }
                let mut places = [std::ptr::null_mut::<E>(); MOST_LANES];
                array.places(first, &mut places[..count]);
                let last = places[count - 1];
                places[count..].fill(last);
                let mut rows = [std::ptr::null::<R>(); MOST_LANES];
                if E::DTYPE == R::DTYPE {
                    for (row, place) in rows.iter_mut().zip(places) {
                        *row = place.cast_const().cast();
                    }
                } else {
                    let wings = wings.place(0, classes.max(R::LANES));
                    // SAFETY: `classes` elements are each row's, readable by the promise made to `Array::new`. As many numbers, or a
                    // vector, are written for each lane: `place` made sure that the wings have room for them.
                    unsafe { convert::<S, E>(simd, &places, classes, wings, &mut rows) }
                }
                for start in fours(classes) {
                    let places = rows.map(
                        #[inline(always)]
                        |row| row.wrapping_add(start),
                    );
                    // SAFETY: four classes from `start` on are each row's; the stage has room for a vector of each class.
                    unsafe {
                        let columns = R::load_columns(simd, &places);
                        for (k, column) in columns.into_iter().enumerate() {
                            Element::store(simd, stage.add((start + k) * R::LANES), column);
                        }
                    }
                }
            },
        );
    }

    /// [`Self::bring_out`] to an output of `O`s.
    ///
    /// # Safety
    /// As there.
    #[inline(never)]
    #[allow(clippy::too_many_arguments)] // a tile, where it goes and how
    unsafe fn bring_out_as<S: Simd, O: Element<Real = R>>(
        &mut self,
        simd: S,
        tile: usize,
        out: &mut RowsMut,
        rows: Range<usize>,
        wings: &mut Self,
        store: StorePolicy,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                let (first, count, classes) = (rows.start, rows.len(), out.classes());
                assert!(count <= R::LANES && out.dtype() == O::DTYPE);
                let stage = self.place(tile, classes).cast_const();
                let neighbours = if out.is_contiguous() { None } else { out.neighbours(first, count) };
                if let Some((base, step)) = neighbours {
                    for class in 0..classes {
                        let place = base.wrapping_offset(class as isize * step).cast::<O>();
                        // SAFETY: a vector of this tile's, written by the caller's promise; as many elements lie there side by
                        // side, and are this thread's, as `neighbours` asserted.
                        unsafe {
                            let values = Element::load(simd, stage.add(class * R::LANES));
                            if count == R::LANES {
                                O::store(simd, place, values);
                            } else {
                                O::store_part(simd, place, count, values);
                            }
                        }
                    }
                    return;
                }
                if classes == 2
                    && count == R::LANES
                    && let Some(place) = out.in_a_row::<O>(first, count)
                {
                    // SAFETY: two vectors of this tile's, written by the caller's promise; as many rows of two elements lie there
                    // one behind the other, and are this thread's, as `in_a_row` asserted.
                    unsafe {
                        let [first, second] = [0, R::LANES].map(
                            #[inline(always)]
                            |value| Element::load(simd, stage.add(value)),
                        );
                        let (first, second) = R::Lanes::<S>::interleave(first, second);
                        O::store(simd, place, first);
                        O::store(simd, place.add(R::LANES), second);
                    }
                    return;
                }
                if classes < 4 {
                    for lane in 0..count {
                        let mut row = out.row(first + lane);
                        for class in 0..classes {
                            // SAFETY: a value of this tile, written by the caller's promise.
                            row.set(
                                class,
                                O::from_f64(Real::to_f64(unsafe { stage.add(class * R::LANES + lane).read() })),
                            );
                        }
                    }
                    return;
                }
                let wings = wings.place(0, classes);
                let mut rows: PerLane<*mut R> = std::array::from_fn(
                    #[inline(always)]
                    |lane| wings.wrapping_add(lane % R::LANES * classes),
                );
                let direct = O::DTYPE == R::DTYPE && store == StorePolicy::Cached && out.is_contiguous();
                if direct {
                    let mut places = [std::ptr::null_mut::<O>(); MOST_LANES];
                    out.places(first, &mut places[..count]);
                    for (row, place) in rows.iter_mut().zip(&places[..count]) {
                        *row = place.cast();
                    }
                }
                for start in fours(classes) {
                    let places = rows.map(
                        #[inline(always)]
                        |row| row.wrapping_add(start),
                    );
                    // SAFETY: four vectors of the tile, which was written; four classes of each row: this thread's, as `places`
                    // asserted, or in the wings, where all rows are that go nowhere else.
                    unsafe {
                        let columns = std::array::from_fn(
                            #[inline(always)]
                            |k| Element::load(simd, stage.add((start + k) * R::LANES)),
                        );
                        R::store_columns(simd, &places, columns);
                    }
                }
                if direct {
                    return;
                }
                // SAFETY: `classes` values of each lane were written.
                let values = unsafe { std::slice::from_raw_parts(wings.cast_const(), count * classes) };
                if out.is_adjacent(first * classes, values.len()) {
                    let mut place = [std::ptr::null_mut::<O>()];
                    out.places(first, &mut place);
                    // SAFETY: the elements of these rows lie side by side from the first one's on.
                    let mut run =
                        unsafe { RowMut::of_run::<O>(place[0].cast(), values.len(), size_of::<O>() as isize) };
                    run.write_values::<S, O>(simd, values, store);
                } else {
                    for (lane, values) in values.chunks_exact(classes).enumerate() {
                        out.row(first + lane).write_values::<S, O>(simd, values, store);
                    }
                }
            },
        );
    }
}

/// A stage of the type that a dtype computes in, which is the type that the stage is of.
///
/// # Panics
/// If it is another.
#[inline(always)]
fn same<A: 'static, B: 'static>(stage: &mut Stage<A>) -> &mut Stage<B> {
    (stage as &mut dyn Any).downcast_mut().expect("the type that is computed in")
}

/// Where the columns of at least four classes begin, four at a time; the last four overlap those before them.
#[inline(always)]
fn fours(classes: usize) -> impl Iterator<Item = usize> {
    (0..classes).step_by(4).map(
        #[inline(always)]
        move |start| start.min(classes - 4),
    )
}

/// Convert rows to numbers that lie side by side from `wings` on, and say where each begins.
///
/// # Safety
/// `classes` elements are readable at each place. There is room for them, and for a vector if they are fewer.
#[inline(always)]
unsafe fn convert<S: Simd, E: Element>(
    simd: S,
    places: &PerLane<*mut E>,
    classes: usize,
    wings: *mut E::Real,
    rows: &mut PerLane<*const E::Real>,
) {
    let lanes = E::Real::LANES;
    let beside = places[..lanes].windows(2).all(
        #[inline(always)]
        |pair| pair[0].wrapping_add(classes) == pair[1],
    );
    let step = if beside { classes } else { classes.max(lanes) };
    for (lane, row) in rows.iter_mut().enumerate() {
        *row = wings.wrapping_add(lane % lanes * step);
    }
    // SAFETY: the caller's promise: rows side by side are as many vectors as there are classes; others are read vector by
    // vector, the last one over the one before, or in part.
    unsafe {
        if beside {
            for vector in 0..classes {
                let values = E::load(simd, places[0].add(vector * lanes));
                Element::store(simd, wings.add(vector * lanes), values);
            }
            return;
        }
        for (place, row) in places[..lanes].iter().zip(rows) {
            if classes < lanes {
                Element::store(simd, row.cast_mut(), E::load_part(simd, *place, classes));
                continue;
            }
            for start in (0..classes).step_by(lanes) {
                let start = start.min(classes - lanes);
                Element::store(simd, row.cast_mut().add(start), E::load(simd, place.add(start)));
            }
        }
    }
}
