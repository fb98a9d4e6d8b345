//! Rows across lanes, in memory: what drivers hand to kernels, of any dtype, and the same of a dtype that the compiler
//! knows. Kernels that are worth it are compiled for their own dtype; the others read a vector at a time.

use std::any::Any;
use std::marker::PhantomData;

use fearless_simd::{Simd, prelude::*};

use crate::array::{Array, RowsMut};
use crate::dtype::{Dtype, Number, with_element};
use crate::element::{Element, Lanes};
use crate::math::Real;
use crate::row::batch::{MOST_LANES, PerLane};

/// Classes are counted in lanes, which is exact up to here in f32.
pub(super) const COUNTABLE_CLASSES: usize = 1 << 24;

/// Rows across lanes: `lanes` neighbouring values for each class.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    base: *mut u8,
    /// Bytes from the values of a class to those of the next.
    stride: isize,
    classes: usize,
    dtype: Dtype,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Tile<'a> {
    /// The values of `classes` classes, each `stride` bytes from the last, of as many lanes as `E` is computed with in.
    ///
    /// # Safety
    /// During `'a` they are readable, at any alignment.
    #[inline(always)]
    pub(super) unsafe fn new<E: Element>(base: *mut u8, stride: isize, classes: usize) -> Self {
        Self { base, stride, classes, dtype: E::DTYPE, memory: PhantomData }
    }

    /// The `rows` rows of an array of `E`s from `first` on, if they fill the lanes and lie lane by lane in memory.
    #[inline(always)]
    pub fn in_place<E: Element>(array: &Array<'a>, first: usize, rows: usize) -> Option<Self> {
        if rows != E::Real::LANES || array.classes() > COUNTABLE_CLASSES {
            return None;
        }
        assert_eq!(array.dtype(), E::DTYPE);
        let (base, stride) = array.neighbours(first, rows)?;
        // SAFETY: the neighbours of each class are elements of the array, readable by the promise made to `Array::new`.
        Some(unsafe { Self::new::<E>(base, stride, array.classes()) })
    }

    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The tile, if it is stored in this type.
    #[inline(always)]
    pub(in crate::row) fn stored_as<E: Element>(self) -> Option<Typed<'a, E>> {
        (self.dtype == E::DTYPE).then_some(Typed { tile: self, element: PhantomData })
    }

    /// A value of each lane: that of its class.
    ///
    /// # Panics
    /// If there is no such class.
    #[inline(never)]
    pub fn pick(&self, classes: &PerLane<usize>) -> PerLane<f64> {
        with_element!(self.dtype, E => self.pick_as::<E>(classes))
    }

    /// [`Self::pick`] of a known type.
    #[inline(always)]
    fn pick_as<E: Element>(&self, classes: &PerLane<usize>) -> PerLane<f64> {
        let mut values = [0.0; MOST_LANES];
        for lane in 0..E::Real::LANES {
            let place = self.pointer::<E>(classes[lane]);
            // SAFETY: one of the tile's values, readable by the promise made to `Tile::new`, at any alignment.
            values[lane] = Number::to_f64(unsafe { place.add(lane).read_unaligned() });
        }
        values
    }

    /// Where the values of a class lie.
    ///
    /// # Panics
    /// If there is no such class.
    #[inline(always)]
    fn pointer<E>(&self, class: usize) -> *mut E {
        assert!(class < self.classes, "class {class} of {}", self.classes);
        self.base.wrapping_offset(class as isize * self.stride).cast()
    }
}

/// A [`Tile`] to write to, by the only thread that has it.
#[derive(Debug)]
pub struct TileMut<'a> {
    tile: Tile<'a>,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> TileMut<'a> {
    /// A tile to write to.
    ///
    /// # Safety
    /// During `'a` its values are writeable, and nothing else accesses them but a [`Tile`] that this thread reads.
    #[inline(always)]
    pub(super) unsafe fn new(tile: Tile<'a>) -> Self {
        Self { tile, memory: PhantomData }
    }

    /// [`Tile::in_place`], to write to.
    #[inline(always)]
    pub fn in_place<O: Element>(rows: &'a mut RowsMut, first: usize, count: usize) -> Option<Self> {
        if count != O::Real::LANES || rows.classes() > COUNTABLE_CLASSES {
            return None;
        }
        assert_eq!(rows.dtype(), O::DTYPE);
        let classes = rows.classes();
        let (base, stride) = rows.neighbours(first, count)?;
        // SAFETY: the neighbours of each class are elements of rows that are borrowed exclusively for `'a`.
        Some(unsafe { Self::new(Tile::new::<O>(base, stride, classes)) })
    }

    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        self.tile.classes
    }

    /// The tile, if it is stored in this type.
    #[inline(always)]
    pub(in crate::row) fn stored_as<E: Element>(&mut self) -> Option<TypedMut<'_, E>> {
        Some(TypedMut { tile: self.tile.stored_as()?, memory: PhantomData })
    }
}

/// A [`Tile`] of `E`s.
#[derive(Clone, Copy, Debug)]
pub(in crate::row) struct Typed<'a, E> {
    tile: Tile<'a>,
    element: PhantomData<E>,
}

/// A [`TileMut`] of `E`s.
#[derive(Debug)]
pub(in crate::row) struct TypedMut<'a, E> {
    tile: Typed<'a, E>,
    memory: PhantomData<&'a mut [E]>,
}

/// Tiles that kernels read a vector at a time.
pub(in crate::row) trait Tiled<S: Simd, R: Real>: Copy {
    fn classes(&self) -> usize;

    /// # Panics
    /// If there is no such class, or if the tile is not computed with in `R`.
    fn load(&self, simd: S, class: usize) -> R::Lanes<S>;
}

/// Tiles that kernels write a vector at a time.
pub(in crate::row) trait TiledMut<S: Simd, R: Real> {
    /// # Panics
    /// If there is no such class, or if the tile is not computed with in `R`.
    fn store(&mut self, simd: S, class: usize, lanes: R::Lanes<S>);
}

impl<S: Simd, E: Element> Tiled<S, E::Real> for Typed<'_, E> {
    #[inline(always)]
    fn classes(&self) -> usize {
        self.tile.classes
    }

    #[inline(always)]
    fn load(&self, simd: S, class: usize) -> Lanes<S, E> {
        // SAFETY: a vector of the tile's values, readable by the promise made to `Tile::new`.
        unsafe { E::load(simd, self.tile.pointer(class)) }
    }
}

impl<S: Simd, E: Element> TiledMut<S, E::Real> for TypedMut<'_, E> {
    #[inline(always)]
    fn store(&mut self, simd: S, class: usize, lanes: Lanes<S, E>) {
        // SAFETY: a vector of the tile's values, writeable by the promise made to `TileMut::new`, and this thread's.
        unsafe { E::store(simd, self.tile.tile.pointer(class), lanes) }
    }
}

impl<S: Simd, R: Real> Tiled<S, R> for Tile<'_> {
    #[inline(always)]
    fn classes(&self) -> usize {
        self.classes
    }

    #[inline(always)]
    fn load(&self, simd: S, class: usize) -> R::Lanes<S> {
        let mut values = [R::default(); MOST_LANES];
        with_element!(self.dtype, E => {
            let values = (&mut values as &mut dyn Any).downcast_mut().expect("a tile that computes in R");
            load_vector::<S, E>(simd, *self, class, values);
        });
        R::Lanes::<S>::from_slice(simd, &values[..R::LANES])
    }
}

impl<S: Simd, R: Real> TiledMut<S, R> for TileMut<'_> {
    #[inline(always)]
    fn store(&mut self, simd: S, class: usize, lanes: R::Lanes<S>) {
        let mut values = [R::default(); MOST_LANES];
        lanes.store_slice(&mut values[..R::LANES]);
        with_element!(self.tile.dtype, E => {
            let values = (&values as &dyn Any).downcast_ref().expect("a tile that computes in R");
            store_vector::<S, E>(simd, self, class, values);
        });
    }
}

#[inline(never)]
fn load_vector<S: Simd, E: Element>(simd: S, tile: Tile, class: usize, values: &mut PerLane<E::Real>) {
    simd.vectorize(
        #[inline(always)]
        || {
            let tile = tile.stored_as::<E>().expect("its own type");
            tile.load(simd, class).store_slice(&mut values[..E::Real::LANES]);
        },
    );
}

#[inline(never)]
fn store_vector<S: Simd, E: Element>(simd: S, tile: &mut TileMut, class: usize, values: &PerLane<E::Real>) {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = Lanes::<S, E>::from_slice(simd, &values[..E::Real::LANES]);
            tile.stored_as::<E>().expect("its own type").store(simd, class, lanes);
        },
    );
}
