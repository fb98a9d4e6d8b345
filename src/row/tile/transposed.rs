//! Rows of few classes, transposed into a room of their own: loaded and stored a square of lanes × lanes at a time.

use std::mem::MaybeUninit;
use std::ops::Range;

use fearless_simd::Simd;

use super::{Tile, TileMut, most_classes};
use crate::array::{Array, RowsMut};
use crate::dtype::Number;
use crate::element::Element;
use crate::kernel::stage::MOST_BYTES;
use crate::math::Real;
use crate::row::batch::MOST_LANES;
use crate::rows::StorePolicy;
use crate::simd::prefetch_ahead;

/// The values of the largest tile, one of f32; that of f64 has a quarter as many.
const ROOM: usize = MOST_BYTES / size_of::<f32>() * MOST_LANES;

/// From so many bytes on, results larger than the cache are better written past it, a row after the other, than in pieces
/// of rows.
const STREAMED_ROW: usize = 512;

/// Room for the rows of a tile, transposed, in the type that is computed in; on a boundary of cache lines, lest every
/// other vector lie across two.
#[repr(align(64))]
pub struct Transposed<R> {
    values: [MaybeUninit<R>; ROOM],
}

impl<R: Real + Element<Real = R>> Transposed<R> {
    /// Room that holds nothing yet.
    #[inline(always)]
    pub fn uninit() -> Self {
        Self { values: [MaybeUninit::uninit(); ROOM] }
    }

    /// Where the first of so many classes begins, and the bytes from one to the next.
    #[inline(always)]
    fn place(&mut self, classes: usize) -> (*mut u8, isize) {
        assert!(classes <= most_classes::<R>());
        (self.values.as_mut_ptr().cast(), (R::LANES * size_of::<R>()) as isize)
    }

    /// Room for the results of `classes` classes, all of which are to be written.
    #[inline(always)]
    fn tile_mut(&mut self, classes: usize) -> TileMut<'_> {
        let (base, stride) = self.place(classes);
        // SAFETY: the room has as many vectors as the most classes need, and is borrowed exclusively.
        unsafe { TileMut::new(Tile::new::<R>(base, stride, classes)) }
    }

    /// The rows of an array of `E`s from `first` on, `count` of them, and masked classes in the lanes that are left.
    #[inline(always)]
    pub fn load<S: Simd, E: Element<Real = R>>(
        &mut self,
        simd: S,
        array: &Array,
        first: usize,
        count: usize,
    ) -> Tile<'_> {
        let classes = array.classes();
        assert!(classes <= most_classes::<R>() && count <= R::LANES && array.dtype() == E::DTYPE);
        if array.is_contiguous() {
            load_squares::<S, E>(simd, array, first, count, &mut self.values);
        } else {
            for lane in 0..R::LANES {
                for class in 0..classes {
                    let value = if lane < count { array.row(first + lane).get_as::<E>(class) } else { E::MASKED };
                    self.values[class * R::LANES + lane].write(Real::from_f64(Number::to_f64(value)));
                }
            }
        }
        let (base, stride) = self.place(classes);
        // SAFETY: so many classes were just loaded, each a vector, and the room is borrowed as long as the tile lives.
        unsafe { Tile::new::<R>(base, stride, classes) }
    }

    /// Write the tile to the rows of an output from `first` on, `count` of them, each value rounded once.
    ///
    /// # Safety
    /// The tile was written.
    #[inline(always)]
    unsafe fn store<S: Simd, O: Element<Real = R>>(&self, simd: S, out: &mut RowsMut, first: usize, count: usize) {
        let classes = out.classes();
        assert!(classes <= most_classes::<R>() && count <= R::LANES && out.dtype() == O::DTYPE);
        // SAFETY: written, by the caller's promise.
        unsafe {
            if out.is_contiguous() {
                store_squares::<S, O>(simd, out, first, count, &self.values);
                return;
            }
            for lane in 0..count {
                let mut row = out.row(first + lane);
                for class in 0..classes {
                    let value = self.values[class * R::LANES + lane].assume_init();
                    row.set(class, O::from_f64(Real::to_f64(value)));
                }
            }
        }
    }
}

/// Where the results of some rows across lanes go: to the output itself, if its rows lie so, or to a room and from there to
/// the output.
pub struct Output<'a, 'b, O: Element> {
    out: &'a mut RowsMut<'b>,
    rows: Range<usize>,
    is_in_place: bool,
    room: &'a mut Transposed<O::Real>,
}

impl<'a, 'b, O: Element> Output<'a, 'b, O> {
    /// For `count` rows of an output of `O`s from `first` on; `None` if they had better be written one after the other.
    #[inline(always)]
    pub fn new(
        out: &'a mut RowsMut<'b>,
        first: usize,
        count: usize,
        store: StorePolicy,
        room: &'a mut Transposed<O::Real>,
    ) -> Option<Self> {
        let is_in_place = TileMut::in_place::<O>(out, first, count).is_some();
        let classes = out.classes();
        let suits = classes <= most_classes::<O::Real>()
            && (store == StorePolicy::Cached || classes * size_of::<O>() < STREAMED_ROW);
        (is_in_place || suits).then_some(Self { out, rows: first..first + count, is_in_place, room })
    }

    /// Where to write them.
    #[inline(always)]
    pub fn tile(&mut self) -> TileMut<'_> {
        let classes = self.out.classes();
        if self.is_in_place {
            TileMut::in_place::<O>(self.out, self.rows.start, self.rows.len()).expect("asked before")
        } else {
            self.room.tile_mut(classes)
        }
    }

    /// Bring what was written to the output, if it is not there.
    ///
    /// # Safety
    /// All of the tile was written.
    #[inline(always)]
    pub unsafe fn store<S: Simd>(self, simd: S) {
        if !self.is_in_place {
            // SAFETY: the caller's promise.
            unsafe { self.room.store::<S, O>(simd, self.out, self.rows.start, self.rows.len()) }
        }
    }
}

/// Transpose the first `count` rows of a square, mask the others, and store as many columns as there is room for.
#[inline(always)]
fn store_columns<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    mut rows: [R::Lanes<S>; MOST_LANES],
    count: usize,
    room: &mut [MaybeUninit<R>],
) {
    if count < R::LANES {
        rows[count..].fill(R::splat(simd, f64::NEG_INFINITY));
    }
    let columns = R::transpose(rows);
    for (column, room) in columns.iter().zip(room.chunks_exact_mut(R::LANES)) {
        // SAFETY: the room has a place for each lane.
        unsafe { R::store(simd, room.as_mut_ptr().cast(), *column) }
    }
}

/// Where the squares of so many classes begin: the last one overlaps the one before it, if there is one.
#[inline(always)]
fn squares(classes: usize, lanes: usize) -> impl Iterator<Item = usize> {
    (0..classes).step_by(lanes).map(
        #[inline(always)]
        move |start| start.min(classes.saturating_sub(lanes)),
    )
}

#[inline(never)]
fn load_squares<S: Simd, E: Element>(
    simd: S,
    array: &Array,
    first: usize,
    count: usize,
    values: &mut [MaybeUninit<E::Real>; ROOM],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (classes, lanes) = (array.classes(), E::Real::LANES);
            let masked = E::Real::splat(simd, f64::NEG_INFINITY);
            let mut places = [std::ptr::null_mut::<E>(); MOST_LANES];
            array.places(first, &mut places[..count]);
            // Past the last row a copy of it, which is masked below.
            let last = places[count - 1];
            places[count..].fill(last);
            for place in places {
                prefetch_ahead(place.cast_const().cast(), classes * size_of::<E>());
            }
            let mut rows = [masked; MOST_LANES];
            // SAFETY: as many elements as are loaded are each row's, readable by the promise made to `Array::new`.
            unsafe {
                if classes < lanes {
                    for lane in 0..lanes {
                        rows[lane] = E::load_part(simd, places[lane], classes);
                    }
                    store_columns::<S, E::Real>(simd, rows, count, &mut values[..classes * lanes]);
                    return;
                }
                for start in squares(classes, lanes) {
                    for lane in 0..lanes {
                        rows[lane] = E::load(simd, places[lane].add(start));
                    }
                    store_columns::<S, E::Real>(simd, rows, count, &mut values[start * lanes..][..lanes * lanes]);
                }
            }
        },
    );
}

/// # Safety
/// As for [`Transposed::store`].
#[inline(never)]
unsafe fn store_squares<S: Simd, O: Element>(
    simd: S,
    out: &mut RowsMut,
    first: usize,
    count: usize,
    values: &[MaybeUninit<O::Real>; ROOM],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (classes, lanes) = (out.classes(), O::Real::LANES);
            let mut places = [std::ptr::null_mut::<O>(); MOST_LANES];
            out.places(first, &mut places[..count]);
            for start in squares(classes, lanes) {
                let width = lanes.min(classes);
                let mut columns = [O::Real::splat(simd, 0.0); MOST_LANES];
                let room = &values[start * lanes..][..width * lanes];
                for (column, room) in columns.iter_mut().zip(room.chunks_exact(lanes)) {
                    // SAFETY: the tile was written, by the promise of `store`'s caller.
                    *column = unsafe { Element::load(simd, room.as_ptr().cast::<O::Real>()) };
                }
                let rows = O::Real::transpose(columns);
                // SAFETY: `width` elements from `start` on are each row's, which are borrowed exclusively.
                unsafe {
                    if width == lanes {
                        for (row, place) in rows.iter().zip(&places[..count]) {
                            O::store(simd, place.add(start), *row);
                        }
                    } else {
                        for (row, place) in rows.iter().zip(&places[..count]) {
                            O::store_part(simd, *place, width, *row);
                        }
                    }
                }
            }
        },
    );
}
