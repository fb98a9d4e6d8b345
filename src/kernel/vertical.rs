//! Rows across lanes: of as many rows as there are lanes, class by class.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use super::finish::{Coefficients, MOST_LANES, Own, PerLane, Sum, Sums, bits};
use crate::dtype::Number;
use crate::element::Element;
use crate::math::{Real, Reference, Scale, Terms, Total};
use crate::simd::prefetch;

/// A flag a lane.
pub(super) type Mask<S, R> = <<R as Real>::Lanes<S> as SimdBase<S>>::Mask;

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
    pub(super) fn place(&self, class: usize) -> *const R {
        self.base.wrapping_byte_offset(class as isize * self.step)
    }

    /// The vectors of `N` classes.
    ///
    /// # Panics
    /// If there are not so many from `first` on.
    #[inline(always)]
    pub(super) fn load<S: Simd, const N: usize>(&self, simd: S, first: usize) -> [R::Lanes<S>; N] {
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

impl<R: Real + Element<Real = R>> Block<'_, R> {
    /// The number of classes.
    #[inline(always)]
    pub(super) fn classes(&self) -> usize {
        self.classes
    }

    /// The logits of a class of each lane, in the lanes.
    ///
    /// # Panics
    /// If a lane has no such class.
    #[inline(always)]
    pub(super) fn of_classes<S: Simd>(&self, simd: S, classes: &PerLane<usize>) -> R::Lanes<S> {
        if self.classes <= 4 {
            // A question for each class is faster than a look at each lane.
            let (of_lanes, [mut logits]) = (R::classes(simd, classes), self.load::<S, 1>(simd, 0));
            for class in 1..self.classes {
                let [x] = self.load::<S, 1>(simd, class);
                logits = R::replace(simd, logits, of_lanes, class, x);
            }
            return logits;
        }
        let mut logits = [R::default(); MOST_LANES];
        for lane in 0..R::LANES {
            logits[lane] = self.get(classes[lane], lane);
        }
        R::Lanes::<S>::from_slice(simd, &logits[..R::LANES])
    }

    /// The logits of a class of each lane.
    ///
    /// # Panics
    /// If a lane has no such class.
    #[inline(always)]
    pub fn pick(&self, classes: &PerLane<usize>) -> PerLane<f64> {
        let mut logits = [0.0; MOST_LANES];
        for lane in 0..R::LANES {
            logits[lane] = Number::to_f64(self.get(classes[lane], lane));
        }
        logits
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
    pub(super) fn store<S: Simd>(&mut self, simd: S, class: usize, lanes: R::Lanes<S>) {
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

/// What becomes of exponentials that are added, besides.
pub(super) trait Beside<S: Simd, R: Real> {
    /// Whether they are looked at.
    const SEES: bool;

    /// That of a logit, of a vector of the block; of own classes 0.
    fn add(&mut self, simd: S, vector: usize, x: R::Lanes<S>, exp: R::Lanes<S>);
}

/// Nothing.
impl<S: Simd, R: Real> Beside<S, R> for () {
    const SEES: bool = false;

    #[inline(always)]
    fn add(&mut self, _: S, _: usize, _: R::Lanes<S>, _: R::Lanes<S>) {}
}

/// They are written, which may be where the logits are.
impl<S: Simd, R: Real + Element<Real = R>> Beside<S, R> for BlockMut<'_, R> {
    const SEES: bool = true;

    #[inline(always)]
    fn add(&mut self, simd: S, vector: usize, _: R::Lanes<S>, exp: R::Lanes<S>) {
        self.store(simd, vector, exp);
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
    fn new(simd: S, block: &Block<R>, own: &Own, scale: Scale<R>) -> Self {
        let (classes, logits) = (R::classes(simd, &own.class), block.of_classes(simd, &own.class));
        let counts = R::narrow(simd, &own.counts).simd_gt(R::splat(simd, 0.0));
        Self::relative_to(simd, logits, classes, counts, scale)
    }

    /// Nothing yet, relative to these logits, those of the own classes.
    #[inline(always)]
    pub(super) fn relative_to(
        simd: S,
        logits: R::Lanes<S>,
        own: R::Lanes<S>,
        counts: Mask<S, R>,
        scale: Scale<R>,
    ) -> Self {
        let (reference, rest) = Reference::next_to(simd, logits, scale);
        let zero = R::splat(simd, 0.0);
        let suits = logits.abs().simd_lt(R::splat(simd, scale.largest_reference()));
        Self { reference, octaves: zero, rest, own, largest: zero, total: Total::zero(simd), counts, suits }
    }

    /// Add the exponentials of `count` vectors from number `first` of a block on, of the classes from number `class` on, some of which may be
    /// own ones (`OWN`); what is `beside` sees them.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    pub(super) fn add<B: Beside<S, R>, const OWN: bool>(
        &mut self,
        simd: S,
        block: &Block<R>,
        beside: &mut B,
        class: usize,
        first: usize,
        count: usize,
    ) {
        let (mut vector, end) = (first, first + count);
        let before = class.wrapping_sub(first);
        while vector + 8 <= end {
            self.add_group::<8, B, OWN>(simd, block, beside, before, vector);
            vector += 8;
        }
        if count & 4 != 0 {
            self.add_group::<4, B, OWN>(simd, block, beside, before, vector);
            vector += 4;
        }
        if count & 2 != 0 {
            self.add_group::<2, B, OWN>(simd, block, beside, before, vector);
            vector += 2;
        }
        if count & 1 != 0 {
            self.add_group::<1, B, OWN>(simd, block, beside, before, vector);
        }
    }

    /// Sums of two, then of four and eight, then the total: a fixed order, for the same bits wherever the classes lie.
    #[inline(always)]
    fn add_group<const N: usize, B: Beside<S, R>, const OWN: bool>(
        &mut self,
        simd: S,
        block: &Block<R>,
        beside: &mut B,
        before: usize,
        first: usize,
    ) {
        let x = block.load::<S, N>(simd, first);
        let mut sums = x;
        // A vector is two or four registers where there are sixteen of them.
        if <S::f32s as SimdBase<S>>::LEN >= 16 && N >= 4 {
            for start in (0..N).step_by(4) {
                let x = [x[start], x[start + 1], x[start + 2], x[start + 3]];
                self.add_vectors::<4, N, B, OWN>(simd, x, &mut sums, beside, [before, first + start, start]);
            }
        } else if N >= 2 {
            for start in (0..N).step_by(2) {
                let x = [x[start], x[start + 1]];
                self.add_vectors::<2, N, B, OWN>(simd, x, &mut sums, beside, [before, first + start, start]);
            }
        } else {
            self.add_vectors::<1, N, B, OWN>(simd, [x[0]], &mut sums, beside, [before, first, 0]);
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

    /// The vectors of a group from number `start` on, which are numbers `vector` and so on of the block.
    #[inline(always)]
    fn add_vectors<const K: usize, const N: usize, B: Beside<S, R>, const OWN: bool>(
        &mut self,
        simd: S,
        x: [R::Lanes<S>; K],
        sums: &mut [R::Lanes<S>; N],
        beside: &mut B,
        [before, vector, start]: [usize; 3],
    ) {
        let mut terms: Terms<S, R, K> = self.reference.terms(simd, x);
        for k in 0..K {
            self.largest = R::larger::<S>(terms.rounded[k], self.largest);
        }
        for k in 0..if OWN { K } else { 0 } {
            let class = before.wrapping_add(vector + k);
            terms.power[k] = R::replace(simd, terms.power[k], self.own, class, R::splat(simd, 0.0));
        }
        for k in (0..K).step_by(2) {
            let exp = terms.exp(k);
            sums[start + k] = if k + 1 < K { terms.add_to(simd, k + 1, exp) } else { exp };
            if B::SEES {
                beside.add(simd, vector + k, x[k], exp);
                if k + 1 < K {
                    beside.add(simd, vector + k + 1, x[k + 1], terms.exp(k + 1));
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

    /// Whether the logits of all rows that count are within reach of the references.
    #[inline(never)]
    pub fn suits(&self, simd: S) -> bool {
        simd.vectorize(
            #[inline(always)]
            || {
                let suits = Reference::<S, R>::within_reach(simd, self.largest) & self.suits;
                bits::<S, _>(self.counts) & !bits::<S, _>(suits) == 0
            },
        )
    }

    /// [`Self::raise`], of lanes that are those of one row.
    #[inline(always)]
    pub(super) fn raise_together(&mut self, simd: S) -> bool {
        self.largest = R::Lanes::<S>::simd_from(simd, R::largest(self.largest));
        self.raise(simd)
    }

    /// What was found in lanes that are those of one row.
    #[inline(always)]
    pub(super) fn together(&self, simd: S) -> Sum {
        let suits = bits::<S, _>(Reference::<S, R>::within_reach(simd, self.largest) & self.suits);
        Sum {
            others: R::sum_of_lanes(&self.total),
            lost: 0.0,
            octaves: Number::to_f64(self.octaves.as_slice()[0]),
            rest: Number::to_f64(self.rest.as_slice()[0]),
            suits: suits == u32::MAX >> (32 - R::LANES),
        }
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
                R::lost_of_lanes(&self.total, &mut found.others_lost);
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
            || self.write_kept(simd, of, kept, &()),
        );
    }

    /// [`Self::scale_kept`], less an offset.
    #[inline(always)]
    pub(super) fn write_kept<O: Offset<S, R>>(&self, simd: S, of: &Coefficients, kept: &mut BlockMut<R>, offset: &O) {
        let factor = R::narrow(simd, &of.factor);
        for class in 0..kept.block.classes {
            let [exp] = kept.block.load::<S, 1>(simd, class);
            let gradient = offset.less(simd, class, exp * factor);
            kept.store(simd, class, self.counts.select(gradient, R::splat(simd, 0.0)));
        }
    }

    /// Exponentials of logits, of own classes too.
    #[inline(always)]
    pub(super) fn exp(&self, simd: S, x: R::Lanes<S>) -> R::Lanes<S> {
        self.reference.terms(simd, [x]).exp(0)
    }

    /// Write the gradients of some vectors: the factor times the exponentials, less an offset. Rows that do not count get 0;
    /// with `SPARE`, those that need the careful path get their logits.
    #[inline(always)]
    pub(super) fn write<O: Offset<S, R>, const SPARE: bool>(
        &self,
        simd: S,
        of: &Coefficients,
        block: &Block<R>,
        out: &mut BlockMut<R>,
        offset: &O,
        vectors: Range<usize>,
    ) {
        let (zero, factor) = (R::splat(simd, 0.0), R::narrow(simd, &of.factor));
        let spared = SPARE.then(|| lane_mask::<S, R>(simd, of.careful));
        for vector in vectors {
            let [x] = block.load::<S, 1>(simd, vector);
            let exp = self.exp(simd, x);
            let gradient = self.counts.select(offset.less(simd, vector, exp * factor), zero);
            out.store(simd, vector, spared.map_or(gradient, |spared| spared.select(x, gradient)));
        }
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Tiles<Rows<S, R>> {
    /// Write `scale·p·(1 − p)` over the logits: the diagonals of Hessians, but for the own classes; `scales` are `scale`. Rows that
    /// do not count get 0; those that need the careful path keep their logits.
    #[inline(never)]
    pub fn write_variances(
        &self,
        simd: S,
        coefficients: &[Coefficients],
        scales: &[PerLane<f64>],
        out: &mut StripMut<R>,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                let (zero, one) = (R::splat(simd, 0.0), R::splat(simd, 1.0));
                for (tile, (rows, of)) in self.all().iter().zip(coefficients).enumerate() {
                    let (factor, scale) = (R::narrow(simd, &of.factor), R::narrow(simd, &scales[tile]));
                    let (mut block, spared) = (out.tile(tile), lane_mask::<S, R>(simd, of.careful));
                    for class in 0..block.block.classes {
                        let [x] = block.block.load::<S, 1>(simd, class);
                        let p = rows.exp(simd, x) * factor;
                        let variance = rows.counts.select(p * (one - p) * scale, zero);
                        block.store(simd, class, spared.select(x, variance));
                    }
                }
            },
        );
    }
}

/// What is subtracted from gradients.
pub(super) trait Offset<S: Simd, R: Real> {
    /// `gradient` less that of a vector of the block.
    fn less(&self, simd: S, vector: usize, gradient: R::Lanes<S>) -> R::Lanes<S>;
}

/// Nothing.
impl<S: Simd, R: Real> Offset<S, R> for () {
    #[inline(always)]
    fn less(&self, _: S, _: usize, gradient: R::Lanes<S>) -> R::Lanes<S> {
        gradient
    }
}

/// The mask of some lanes.
#[inline(always)]
pub(super) fn lane_mask<S: Simd, R: Real>(simd: S, bits: u32) -> Mask<S, R> {
    let mut lanes = [0.0; MOST_LANES];
    for (lane, value) in lanes.iter_mut().enumerate() {
        *value = f64::from(bits >> lane & 1);
    }
    R::narrow(simd, &lanes).simd_gt(R::splat(simd, 0.0))
}

/// Some tiles of rows that lie beside each other, class by class.
#[derive(Clone, Copy, Debug)]
pub struct Strip<'a, R> {
    pub(super) block: Block<'a, R>,
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

    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        self.block.classes
    }

    /// The same, if `T` is the same type.
    #[inline(always)]
    pub(super) fn of<T: Number>(self) -> Option<Strip<'a, T>> {
        let Block { base, step, classes, memory: _ } = self.block;
        let block = Block { base: base.cast(), step, classes, memory: PhantomData };
        (T::DTYPE == R::DTYPE).then_some(Strip { block, apart: self.apart })
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
    pub(super) strip: Strip<'a, R>,
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

    /// The same, to read.
    #[inline(always)]
    pub fn read(&self) -> Strip<'_, R> {
        self.strip
    }

    /// The same, to read from now on.
    #[inline(always)]
    pub fn written(self) -> Strip<'a, R> {
        self.strip
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
pub(super) const STREAMS: usize = 8;

/// Run `$body` for eight of so many classes of all tiles after the other, with their `$tile`s' numbers.
macro_rules! for_each_group {
    ($classes_of_all:expr, $tiles:expr, |$tile:ident, $classes:ident| $body:expr) => {
        for start in (0..$classes_of_all).step_by($crate::kernel::vertical::STREAMS) {
            let $classes = start..$classes_of_all.min(start + $crate::kernel::vertical::STREAMS);
            for $tile in $tiles {
                let $classes = $classes.clone();
                $body
            }
        }
    };
}
pub(super) use for_each_group;

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

    /// Forget all.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.count = 0;
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
    pub fn begin(&mut self, simd: S, block: &Block<R>, own: &Own, scale: Scale<R>) {
        simd.vectorize(
            #[inline(always)]
            || self.push(Rows::new(simd, block, own, scale)),
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
                        if KEEP {
                            sums.add::<_, true>(simd, &block, &mut kept, class, class, count);
                        } else {
                            sums.add::<_, true>(simd, &block, &mut (), class, class, count);
                        }
                    }
                }
            },
        );
    }
}
