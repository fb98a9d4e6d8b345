//! Rows across lanes: of as many rows as there are lanes, class by class.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use super::finish::{Coefficients, MOST_LANES, Own, Sums, bits};
use crate::element::Element;
use crate::math::{Real, Reference, Terms, Total};
use crate::simd::prefetch;

/// A flag a lane.
type Mask<S, R> = <<R as Real>::Lanes<S> as SimdBase<S>>::Mask;

/// Logits of as many rows as there are lanes: for each class a vector.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a, R> {
    base: *const R,
    /// Bytes from the vector of a class to that of the next.
    step: isize,
    classes: usize,
    memory: PhantomData<&'a [R]>,
}

impl<R: Real + Element<Real = R>> Block<'_, R> {
    /// The vectors of `classes` classes, each `step` bytes from the last.
    ///
    /// # Safety
    /// During the block's lifetime they are readable, at any alignment.
    #[inline(always)]
    pub unsafe fn new(base: *const R, step: isize, classes: usize) -> Self {
        Self { base, step, classes, memory: PhantomData }
    }

    #[inline(always)]
    fn place(&self, class: usize) -> *const R {
        self.base.wrapping_byte_offset(class as isize * self.step)
    }

    /// The vectors of `N` classes.
    ///
    /// # Panics
    /// If there are not so many from `first` on.
    #[inline(always)]
    fn load<S: Simd, const N: usize>(&self, simd: S, first: usize) -> [R::Lanes<S>; N] {
        assert!(first + N <= self.classes);
        let mut vectors = [R::splat(simd, 0.0); N];
        for (offset, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: one of the block's vectors, readable by the promise made to `new`.
            *vector = unsafe { Element::load(simd, self.place(first + offset)) };
        }
        vectors
    }

    /// The logit of a class and a lane.
    ///
    /// # Panics
    /// If there is none.
    #[inline(always)]
    pub fn get(&self, class: usize, lane: usize) -> R {
        assert!(class < self.classes && lane < R::LANES);
        // SAFETY: a lane of one of the block's vectors.
        unsafe { self.place(class).add(lane).read_unaligned() }
    }
}

/// A [`Block`] to write to.
#[derive(Debug)]
pub struct BlockMut<'a, R> {
    block: Block<'a, R>,
    memory: PhantomData<&'a mut [R]>,
}

impl<R: Real + Element<Real = R>> BlockMut<'_, R> {
    /// The same, to read.
    #[inline(always)]
    pub fn read(&self) -> Block<'_, R> {
        self.block
    }

    /// # Panics
    /// If there is no such class.
    #[inline(always)]
    fn store<S: Simd>(&mut self, simd: S, class: usize, lanes: R::Lanes<S>) {
        assert!(class < self.block.classes);
        // SAFETY: one of the block's vectors, writeable by the promise made to `StripMut::new`, and this thread's.
        unsafe { Element::store(simd, self.block.place(class).cast_mut(), lanes) }
    }

    /// Write the value of a class and a lane.
    ///
    /// # Panics
    /// If there is none.
    #[inline(always)]
    pub fn set(&mut self, class: usize, lane: usize, value: R) {
        assert!(class < self.block.classes && lane < R::LANES);
        // SAFETY: a lane of one of the block's vectors, writeable by the promise made to `StripMut::new`.
        unsafe { self.block.place(class).cast_mut().add(lane).write_unaligned(value) }
    }

    /// Write the gradients of the own classes of rows that count.
    #[inline(always)]
    pub fn write_own(&mut self, own: &Own, of: &Coefficients) {
        for lane in 0..R::LANES {
            if own.counts[lane] != 0.0 && of.careful >> lane & 1 == 0 {
                self.set(own.class[lane], lane, Real::from_f64(of.own[lane]));
            }
        }
    }
}

/// Some rows, one a lane, and what is known of them: sums of the exponentials of the classes that are not a row's own.
#[derive(Clone, Copy)]
pub struct Rows<S: Simd, R: Real> {
    reference: Reference<S, R>,
    /// By how many whole octaves the reference was raised.
    octaves: R::Lanes<S>,
    /// By how many steps of an octave, at most half of one, it was above the own logit before.
    rest: R::Lanes<S>,
    own: R::Lanes<S>,
    largest: R::Lanes<S>,
    total: Total<S>,
    /// The rows that count.
    counts: Mask<S, R>,
    /// The rows whose own logits can be references.
    suits: Mask<S, R>,
}

impl<S: Simd, R: Real + Element<Real = R>> Rows<S, R> {
    /// Nothing yet, of the rows of a block.
    ///
    /// # Panics
    /// If it does not have their classes.
    #[inline(always)]
    fn new(simd: S, block: &Block<R>, own: &Own) -> Self {
        let mut logits = [R::default(); MOST_LANES];
        for lane in 0..R::LANES {
            logits[lane] = block.get(own.class[lane], lane);
        }
        let logits = R::Lanes::<S>::from_slice(simd, &logits[..R::LANES]);
        let (reference, rest) = Reference::next_to(simd, logits);
        Self {
            reference,
            octaves: R::splat(simd, 0.0),
            rest,
            own: R::classes(simd, &own.class),
            largest: R::splat(simd, 0.0),
            total: Total::zero(simd),
            counts: R::narrow(simd, &own.counts).simd_gt(R::splat(simd, 0.0)),
            suits: logits.abs().simd_lt(R::splat(simd, R::LARGEST_REFERENCE)),
        }
    }

    /// Add the exponentials of `count` classes from `first` on. With `KEEP` they are written to `kept`, which may be where the
    /// logits are.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    fn add<const KEEP: bool>(
        &mut self,
        simd: S,
        block: &Block<R>,
        mut kept: Option<&mut BlockMut<R>>,
        first: usize,
        count: usize,
    ) {
        let (mut class, end) = (first, first + count);
        while class + 8 <= end {
            self.add_group::<8, KEEP>(simd, block, &mut kept, class);
            class += 8;
        }
        if count & 4 != 0 {
            self.add_group::<4, KEEP>(simd, block, &mut kept, class);
            class += 4;
        }
        if count & 2 != 0 {
            self.add_group::<2, KEEP>(simd, block, &mut kept, class);
            class += 2;
        }
        if count & 1 != 0 {
            self.add_group::<1, KEEP>(simd, block, &mut kept, class);
        }
    }

    /// Sums of two, then of four and eight, then the total: a fixed order, for the same bits wherever the classes lie.
    #[inline(always)]
    fn add_group<const N: usize, const KEEP: bool>(
        &mut self,
        simd: S,
        block: &Block<R>,
        kept: &mut Option<&mut BlockMut<R>>,
        first: usize,
    ) {
        let x = block.load::<S, N>(simd, first);
        let mut sums = x;
        // A vector is two or four registers where there are sixteen of them.
        if <S::f32s as SimdBase<S>>::LEN >= 16 && N >= 4 {
            for start in (0..N).step_by(4) {
                let x = [x[start], x[start + 1], x[start + 2], x[start + 3]];
                self.add_vectors::<4, N, KEEP>(simd, x, &mut sums, kept, first, start);
            }
        } else if N >= 2 {
            for start in (0..N).step_by(2) {
                self.add_vectors::<2, N, KEEP>(simd, [x[start], x[start + 1]], &mut sums, kept, first, start);
            }
        } else {
            self.add_vectors::<1, N, KEEP>(simd, [x[0]], &mut sums, kept, first, 0);
        }
        let mut count = N;
        // The first of each pair holds its sum.
        let mut apart = 2;
        while count > 2 {
            for index in (0..N).step_by(2 * apart) {
                sums[index] += sums[index + apart];
            }
            apart *= 2;
            count /= 2;
        }
        R::add_to(&mut self.total, sums[0]);
    }

    #[inline(always)]
    fn add_vectors<const K: usize, const N: usize, const KEEP: bool>(
        &mut self,
        simd: S,
        x: [R::Lanes<S>; K],
        sums: &mut [R::Lanes<S>; N],
        kept: &mut Option<&mut BlockMut<R>>,
        first: usize,
        start: usize,
    ) {
        let mut terms: Terms<S, R, K> = self.reference.terms(simd, x);
        for k in 0..K {
            self.largest = R::larger::<S>(terms.rounded[k], self.largest);
        }
        for k in 0..K {
            terms.power[k] = R::except(simd, terms.power[k], self.own, first + start + k);
        }
        for k in (0..K).step_by(2) {
            let exp = terms.exp(k);
            sums[start + k] = if k + 1 < K { terms.add_to(simd, k + 1, exp) } else { exp };
            if let Some(kept) = kept.as_mut().filter(|_| KEEP) {
                kept.store(simd, first + start + k, exp);
                if k + 1 < K {
                    kept.store(simd, first + start + k + 1, terms.exp(k + 1));
                }
            }
        }
    }

    /// Raise the references of rows that have logits out of reach to these, and forget the sums; whether there are such rows.
    #[inline(never)]
    pub fn raise(&mut self, simd: S) -> bool {
        simd.vectorize(
            #[inline(always)]
            || {
                let zero = R::splat(simd, 0.0);
                let octaves = Reference::<S, R>::octaves_to(simd, self.largest);
                let octaves = (self.counts & self.suits).select(octaves, zero);
                if !octaves.simd_gt(zero).any_true() {
                    return false;
                }
                self.reference = self.reference.raised(simd, octaves);
                (self.octaves, self.largest, self.total) = (octaves, zero, Total::zero(simd));
                true
            },
        )
    }

    /// What was found, for what is once a row.
    #[inline(never)]
    pub fn found(&self, simd: S) -> Sums {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut found = Sums::none();
                R::widen(self.octaves, &mut found.octaves);
                R::widen(self.rest, &mut found.rest);
                R::lane_totals(&self.total, &mut found.others);
                found.counts = bits::<S, _>(self.counts);
                found.suits = bits::<S, _>(Reference::<S, R>::within_reach(simd, self.largest) & self.suits);
                found
            },
        )
    }

    /// Write the gradients of all classes over the exponentials that were kept: 0 for rows that do not count.
    #[inline(never)]
    pub fn scale_kept(&self, simd: S, of: &Coefficients, kept: &mut BlockMut<R>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let factor = R::narrow(simd, &of.factor);
                for class in 0..kept.block.classes {
                    let [exp] = kept.block.load::<S, 1>(simd, class);
                    kept.store(simd, class, self.counts.select(exp * factor, R::splat(simd, 0.0)));
                }
            },
        );
    }

    /// Write the gradients of some classes: of logits. Rows that do not count get 0; with `SPARE`, those that need the careful path
    /// get their logits.
    #[inline(always)]
    fn write<const SPARE: bool>(
        &self,
        simd: S,
        of: &Coefficients,
        block: &Block<R>,
        out: &mut BlockMut<R>,
        classes: Range<usize>,
    ) {
        let (zero, factor) = (R::splat(simd, 0.0), R::narrow(simd, &of.factor));
        let spared = SPARE.then(|| lane_mask::<S, R>(simd, of.careful));
        for class in classes {
            let [x] = block.load::<S, 1>(simd, class);
            let exp = self.reference.terms(simd, [x]).exp(0);
            let gradient = self.counts.select(exp * factor, zero);
            out.store(simd, class, spared.map_or(gradient, |spared| spared.select(x, gradient)));
        }
    }
}

/// The mask of some lanes.
#[inline(always)]
fn lane_mask<S: Simd, R: Real>(simd: S, bits: u32) -> Mask<S, R> {
    let mut lanes = [0.0; MOST_LANES];
    for (lane, value) in lanes.iter_mut().enumerate() {
        *value = f64::from(bits >> lane & 1);
    }
    R::narrow(simd, &lanes).simd_gt(R::splat(simd, 0.0))
}

/// Some tiles of rows that lie beside each other, class by class.
#[derive(Clone, Copy, Debug)]
pub struct Strip<'a, R> {
    block: Block<'a, R>,
    /// Values from a tile to the next.
    apart: usize,
}

impl<'a, R: Real + Element<Real = R>> Strip<'a, R> {
    /// The tiles that begin with a block, each `apart` values from the last.
    ///
    /// # Safety
    /// [`Block::new`]'s, of each tile that is asked for.
    #[inline(always)]
    pub unsafe fn new(block: Block<'a, R>, apart: usize) -> Self {
        Self { block, apart }
    }

    /// A tile.
    #[inline(always)]
    pub fn tile(&self, number: usize) -> Block<'a, R> {
        Block { base: self.block.base.wrapping_add(number * self.apart), ..self.block }
    }
}

/// A [`Strip`] to write to.
#[derive(Debug)]
pub struct StripMut<'a, R> {
    strip: Strip<'a, R>,
    memory: PhantomData<&'a mut [R]>,
}

impl<'a, R: Real + Element<Real = R>> StripMut<'a, R> {
    /// A strip to write to.
    ///
    /// # Safety
    /// [`Strip::new`]'s; its values are writeable, too, and nothing else accesses them but a [`Strip`] that this thread reads.
    #[inline(always)]
    pub unsafe fn new(strip: Strip<'a, R>) -> Self {
        Self { strip, memory: PhantomData }
    }

    /// A tile.
    #[inline(always)]
    pub fn tile(&mut self, number: usize) -> BlockMut<'_, R> {
        BlockMut { block: self.strip.tile(number), memory: PhantomData }
    }
}

/// The most tiles that are worked on together: what is summed of them stays in the first cache.
pub const MOST_TILES: usize = 32;

/// Classes that are read of all tiles of a strip before the next: so many streams.
const STREAMS: usize = 8;

/// Something of each of some tiles.
pub struct Tiles<T> {
    room: [MaybeUninit<T>; MOST_TILES],
    count: usize,
}

impl<T: Copy> Tiles<T> {
    /// Of none.
    #[inline(always)]
    pub fn none() -> Self {
        Self { room: [const { MaybeUninit::uninit() }; MOST_TILES], count: 0 }
    }

    /// Of one more.
    ///
    /// # Panics
    /// If there are [`MOST_TILES`].
    #[inline(always)]
    pub fn push(&mut self, of_tile: T) {
        self.room[self.count].write(of_tile);
        self.count += 1;
    }

    /// All of them.
    #[inline(always)]
    pub fn all(&self) -> &[T] {
        // SAFETY: `push` wrote the first `count`.
        unsafe { &*(std::ptr::from_ref(&self.room[..self.count]) as *const [T]) }
    }

    /// All of them.
    #[inline(always)]
    pub fn all_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { &mut *(std::ptr::from_mut(&mut self.room[..self.count]) as *mut [T]) }
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Tiles<Rows<S, R>> {
    /// Begin with one more tile.
    ///
    /// # Panics
    /// If its block does not have the rows' classes.
    #[inline(never)]
    pub fn begin(&mut self, simd: S, block: &Block<R>, own: &Own) {
        simd.vectorize(
            #[inline(always)]
            || self.push(Rows::new(simd, block, own)),
        );
    }

    /// Add the exponentials of all classes of some tiles, one after the other. With `KEEP` they are written over the logits.
    ///
    /// Meanwhile the memory from `ahead` on is asked for, `bytes` bytes for each class of a tile: all at once would be more than
    /// can be under way.
    #[inline(never)]
    pub fn add_by_tile<const KEEP: bool>(
        &mut self,
        simd: S,
        numbers: Range<usize>,
        stage: &mut StripMut<R>,
        mut ahead: *const u8,
        bytes: usize,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                for (number, sums) in self.all_mut().iter_mut().enumerate().take(numbers.end).skip(numbers.start) {
                    let block = stage.strip.tile(number);
                    let mut kept = stage.tile(number);
                    for class in (0..block.classes).step_by(STREAMS) {
                        let count = STREAMS.min(block.classes - class);
                        prefetch(ahead, count * bytes);
                        ahead = ahead.wrapping_add(count * bytes);
                        sums.add::<KEEP>(simd, &block, Some(&mut kept), class, count);
                    }
                }
            },
        );
    }

    /// Add the exponentials of all classes of some tiles, some classes of all of them at a time.
    #[inline(never)]
    pub fn add_by_class(&mut self, simd: S, numbers: Range<usize>, strip: &Strip<R>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let classes = strip.block.classes;
                for class in (0..classes).step_by(STREAMS) {
                    for (number, sums) in self.all_mut().iter_mut().enumerate().take(numbers.end).skip(numbers.start) {
                        sums.add::<false>(simd, &strip.tile(number), None, class, STREAMS.min(classes - class));
                    }
                }
            },
        );
    }

    /// Write the gradients of all classes, but for the own ones, some classes of all tiles at a time; logits where a row needs
    /// the careful path.
    #[inline(never)]
    pub fn write(&self, simd: S, coefficients: &[Coefficients], strip: &Strip<R>, out: &mut StripMut<R>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let classes = strip.block.classes;
                for class in (0..classes).step_by(STREAMS) {
                    let here = class..classes.min(class + STREAMS);
                    for (number, (sums, of)) in self.all().iter().zip(coefficients).enumerate() {
                        let (block, mut out) = (strip.tile(number), out.tile(number));
                        if of.careful == 0 {
                            sums.write::<false>(simd, of, &block, &mut out, here.clone());
                        } else {
                            sums.write::<true>(simd, of, &block, &mut out, here.clone());
                        }
                    }
                }
            },
        );
    }
}
