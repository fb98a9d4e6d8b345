//! Rows of few classes, transposed into a room of their own: loaded and stored a square of lanes × lanes at a time.

use std::mem::MaybeUninit;
use std::ops::Range;

use fearless_simd::Simd;

use super::{AnyTile, MOST_BYTES, Tile, most_classes};
use crate::element::Element;
use crate::math::Real;
use crate::row::Stores;
use crate::row::batch::MOST_LANES;
use crate::simd::prefetch_ahead;
use crate::view::View;

/// The values of the largest tile, one of f32; that of f64 has a quarter as many.
const ROOM: usize = MOST_BYTES / size_of::<f32>() * MOST_LANES;

/// From so many bytes on, results larger than the cache are better streamed, a row after the other, than stored in pieces
/// of rows: with 200 classes in f32 12 ms against 27, with 128 as fast, with 70 42 against 25.
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

    /// The room as a tile of `classes` classes.
    #[inline(always)]
    pub fn tile(&mut self, classes: usize) -> Tile<R> {
        assert!(classes <= most_classes::<R>());
        let stride = (R::LANES * size_of::<R>()) as isize;
        Tile { base: self.values.as_mut_ptr().cast(), stride, classes }
    }

    /// The rows of `view` from `first` on, `count` of them, and masked classes in the lanes that are left.
    #[inline(always)]
    pub fn load<S: Simd, E: Element<Real = R>>(
        &mut self,
        simd: S,
        view: &View<E>,
        first: usize,
        count: usize,
    ) -> Tile<R> {
        let classes = view.classes();
        assert!(classes <= most_classes::<R>() && count <= R::LANES);
        if view.is_contiguous() {
            load_squares(simd, view, first, count, &mut self.values);
        } else {
            for lane in 0..R::LANES {
                for class in 0..classes {
                    let value = if lane < count { view.row(first + lane).get(class) } else { E::MASKED };
                    self.values[class * R::LANES + lane].write(Real::from_f64(Element::to_f64(value)));
                }
            }
        }
        self.tile(classes)
    }

    /// Write the tile to the rows of an output from `first` on, `count` of them, each value rounded once.
    ///
    /// # Safety
    /// As for [`crate::view::Row::set`], for all of these rows; the tile was written.
    #[inline(always)]
    unsafe fn store<S: Simd, O: Element<Real = R>>(&self, simd: S, view: &View<O>, first: usize, count: usize) {
        let classes = view.classes();
        assert!(classes <= most_classes::<R>() && count <= R::LANES);
        // SAFETY: the caller's promise.
        unsafe {
            if view.is_contiguous() {
                store_squares(simd, view, first, count, &self.values);
            } else {
                for lane in 0..count {
                    let row = view.row(first + lane);
                    for class in 0..classes {
                        row.set(class, O::from_f64(Real::to_f64(self.values[class * R::LANES + lane].assume_init())));
                    }
                }
            }
        }
    }
}

/// Where the results of some rows across lanes go: to the output itself, if its rows lie so, or to a room and from there to
/// the output.
pub struct Output<'a, O: Element> {
    view: &'a View<O>,
    rows: Range<usize>,
    in_place: Option<Tile<O>>,
    room: &'a mut Transposed<O::Real>,
}

impl<'a, O: Element> Output<'a, O> {
    /// For `count` rows from `first` on; `None` if they had better be written one after the other.
    #[inline(always)]
    pub fn new(
        view: &'a View<O>,
        first: usize,
        count: usize,
        stores: Stores,
        room: &'a mut Transposed<O::Real>,
    ) -> Option<Self> {
        let in_place = Tile::in_place(view, first, count);
        let classes = view.classes();
        let suits = classes <= most_classes::<O::Real>()
            && (stores == Stores::Cached || classes * size_of::<O>() < STREAMED_ROW);
        (in_place.is_some() || suits).then_some(Self { view, rows: first..first + count, in_place, room })
    }

    /// Where to write them.
    #[inline(always)]
    pub fn tile(&mut self) -> AnyTile {
        match self.in_place {
            Some(tile) => AnyTile::of(tile),
            None => AnyTile::of(self.room.tile(self.view.classes())),
        }
    }

    /// Bring what was written to the output, if it is not there.
    ///
    /// # Safety
    /// As for [`crate::view::Row::set`], for all of the rows; the tile was written.
    #[inline(always)]
    pub unsafe fn store<S: Simd>(self, simd: S) {
        if self.in_place.is_none() {
            // SAFETY: the caller's promise.
            unsafe { self.room.store(simd, self.view, self.rows.start, self.rows.len()) }
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
    view: &View<E>,
    first: usize,
    count: usize,
    values: &mut [MaybeUninit<E::Real>; ROOM],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (classes, lanes) = (view.classes(), E::Real::LANES);
            let masked = E::Real::splat(simd, f64::NEG_INFINITY);
            let mut places = [std::ptr::null_mut(); MOST_LANES];
            view.places(first, &mut places[..count]);
            // Past the last row a copy of it, which is masked below.
            let last = places[count - 1];
            places[count..].fill(last);
            for place in places {
                prefetch_ahead(place.cast_const().cast(), classes * size_of::<E>());
            }
            let mut rows = [masked; MOST_LANES];
            // SAFETY: as many elements as are loaded are each row's, readable by the promise made to `View::new`.
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
    view: &View<O>,
    first: usize,
    count: usize,
    values: &[MaybeUninit<O::Real>; ROOM],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (classes, lanes) = (view.classes(), O::Real::LANES);
            let mut places = [std::ptr::null_mut(); MOST_LANES];
            view.places(first, &mut places[..count]);
            for start in squares(classes, lanes) {
                let width = lanes.min(classes);
                let mut columns = [O::Real::splat(simd, 0.0); MOST_LANES];
                let room = &values[start * lanes..][..width * lanes];
                for (column, room) in columns.iter_mut().zip(room.chunks_exact(lanes)) {
                    // SAFETY: the tile was written, by the promise of `store`'s caller.
                    *column = unsafe { Element::load(simd, room.as_ptr().cast::<O::Real>()) };
                }
                let rows = O::Real::transpose(columns);
                // SAFETY: `width` elements from `start` on are each row's, writeable by the caller's promise.
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
