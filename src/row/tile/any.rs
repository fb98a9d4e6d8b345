//! A tile of any storage type: what drivers know. Kernels that are worth it are compiled for its own type; the others read it
//! a vector at a time, like [`crate::row::AnyRow`].

use std::any::Any;

use fearless_simd::{Simd, prelude::*};
use half::{bf16, f16};

use super::{Tile, Tiled};
use crate::element::Element;
use crate::math::Real;
use crate::row::batch::{MOST_LANES, PerLane};

/// A tile of any storage type. Kernels panic if it is not one that they were asked to read: of rows of `E`s either an `E`
/// or what that computes in, and else one that computes in their `R`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // their names say it
pub enum AnyTile {
    F16(Tile<f16>),
    Bf16(Tile<bf16>),
    F32(Tile<f32>),
    F64(Tile<f64>),
}

/// Run `$body` with `$tile` set to the tile of its own type.
macro_rules! with_tile {
    ($any:expr, $tile:ident => $body:expr) => {
        match $any {
            AnyTile::F16($tile) => $body,
            AnyTile::Bf16($tile) => $body,
            AnyTile::F32($tile) => $body,
            AnyTile::F64($tile) => $body,
        }
    };
}

impl AnyTile {
    /// From a tile of one of the four types.
    #[inline(always)]
    pub fn of<E: Element>(tile: Tile<E>) -> Self {
        let tile: &dyn Any = &tile;
        let f16 = tile.downcast_ref().copied().map(Self::F16);
        let bf16 = tile.downcast_ref().copied().map(Self::Bf16);
        let f32 = tile.downcast_ref().copied().map(Self::F32);
        let f64 = tile.downcast_ref().copied().map(Self::F64);
        f16.or(bf16).or(f32).or(f64).expect("there are four storage types")
    }

    /// The tile, if it is stored in this type.
    #[inline(always)]
    pub(in crate::row) fn stored_as<E: Element>(self) -> Option<Tile<E>> {
        // In each arm by itself, where the compiler knows the answer.
        with_tile!(self, tile => (&tile as &dyn Any).downcast_ref().copied())
    }

    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        with_tile!(self, tile => tile.classes)
    }

    /// A value of each lane of a view of `E`s: that of its class.
    ///
    /// # Safety
    /// The tile's values are readable.
    ///
    /// # Panics
    /// If there is no such class.
    #[inline(always)]
    pub unsafe fn pick<E: Element>(&self, classes: &PerLane<usize>) -> PerLane<f64> {
        // SAFETY: the caller's promise.
        unsafe {
            match self.stored_as::<E::Real>() {
                Some(tile) => tile.pick(classes),
                None => self.stored_as::<E>().expect("a tile of the view").pick(classes),
            }
        }
    }
}

impl<S: Simd, R: Real> Tiled<S, R> for AnyTile {
    #[inline(always)]
    fn classes(&self) -> usize {
        AnyTile::classes(self)
    }

    #[inline(always)]
    unsafe fn load(&self, simd: S, class: usize) -> R::Lanes<S> {
        let mut values = [R::default(); MOST_LANES];
        {
            let values: &mut dyn Any = &mut values;
            // SAFETY: the caller's promise.
            with_tile!(*self, tile => unsafe {
                load_vector(simd, tile, class, values.downcast_mut().expect("its own type"));
            });
        }
        R::Lanes::<S>::from_slice(simd, &values[..R::LANES])
    }

    #[inline(always)]
    unsafe fn store(&self, simd: S, class: usize, lanes: R::Lanes<S>) {
        let mut values = [R::default(); MOST_LANES];
        lanes.store_slice(&mut values[..R::LANES]);
        let values: &dyn Any = &values;
        // SAFETY: the caller's promise.
        with_tile!(*self, tile => unsafe {
            store_vector(simd, tile, class, values.downcast_ref().expect("its own type"));
        });
    }
}

/// # Safety
/// The tile's values are readable.
#[inline(never)]
unsafe fn load_vector<S: Simd, E: Element>(simd: S, tile: Tile<E>, class: usize, values: &mut PerLane<E::Real>) {
    simd.vectorize(
        #[inline(always)]
        // SAFETY: the caller's promise.
        || unsafe { E::load(simd, tile.pointer(class)) }.store_slice(&mut values[..E::Real::LANES]),
    );
}

/// # Safety
/// The tile's values are writeable.
#[inline(never)]
unsafe fn store_vector<S: Simd, E: Element>(simd: S, tile: Tile<E>, class: usize, values: &PerLane<E::Real>) {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = <E::Real as Real>::Lanes::<S>::from_slice(simd, &values[..E::Real::LANES]);
            // SAFETY: the caller's promise.
            unsafe { E::store(simd, tile.pointer(class), lanes) }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Axes, View};

    /// A tile is what it was made of, and nothing else: kernels that are compiled for its type get it.
    fn is_one_of<E: Element>(number: usize) {
        let mut values = [E::MASKED; MOST_LANES];
        let (lanes, size) = (E::Real::LANES, size_of::<E>() as isize);
        // SAFETY: the axes describe `values`, which outlive the view and are this thread's.
        let view = unsafe { View::new(values.as_mut_ptr().cast(), Axes::new([(lanes, size)]), 1, size, false) };
        let tile = AnyTile::of(Tile::<E>::in_place(&view, 0, lanes).expect("the rows lie side by side"));
        let found = [
            tile.stored_as::<f16>().is_some(),
            tile.stored_as::<bf16>().is_some(),
            tile.stored_as::<f32>().is_some(),
            tile.stored_as::<f64>().is_some(),
        ];
        assert_eq!(found.map(usize::from).iter().sum::<usize>(), 1);
        assert!(found[number]);
        // SAFETY: the values are there.
        assert_eq!(unsafe { tile.pick::<E>(&[0; MOST_LANES]) }[..lanes], vec![f64::NEG_INFINITY; lanes]);
    }

    #[test]
    fn tiles_know_their_type() {
        is_one_of::<f16>(0);
        is_one_of::<bf16>(1);
        is_one_of::<f32>(2);
        is_one_of::<f64>(3);
    }
}
