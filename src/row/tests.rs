//! Every level × dtype × length around the lanes, against a naive oracle in f64; on memory that ends where an
//! unreadable page begins.

use std::marker::PhantomData;

use fearless_simd::Simd;
use half::{bf16, f16};

use super::*;
use crate::array::Array;
use crate::dtype::Dtype;
use crate::element::Element;
use crate::rows::{Row, RowMut, StorePolicy};
use crate::simd::{Kernel, Level};

/// Lengths around the vectors and blocks.
fn lengths() -> impl Iterator<Item = usize> {
    (1..=130).chain([255, 256, 257, 511, 512, 513, 1000, 4097])
}

/// Numbers that look random, of standard deviation `scale`.
fn numbers(count: usize, seed: u64, scale: f64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..count).map(|_| scale * (uniform() + uniform() + uniform() + uniform()) * 1.73).collect()
}

/// The values of one row, at the end of a page that an unreadable one follows.
struct Guarded<E> {
    #[cfg(unix)]
    pages: (*mut libc::c_void, usize),
    #[cfg(not(unix))]
    _values: Vec<E>,
    start: *mut E,
    count: usize,
}

impl<E: Element> Guarded<E> {
    #[cfg(unix)]
    fn new(values: &[E]) -> Self {
        let page = 1 << 16;
        let bytes = size_of_val(values);
        let length = bytes.next_multiple_of(page) + page;
        // SAFETY: a new private mapping, of which the last page is made unreadable; the values fit before it.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(base.byte_add(length - page), page, libc::PROT_NONE), 0);
            let start = base.cast::<u8>().add(length - page - bytes);
            start.copy_from_nonoverlapping(values.as_ptr().cast(), bytes);
            Self { pages: (base, length), start: start.cast(), count: values.len() }
        }
    }

    #[cfg(not(unix))]
    fn new(values: &[E]) -> Self {
        let mut values = values.to_vec();
        let (start, count) = (values.as_mut_ptr(), values.len());
        Self { _values: values, start, count }
    }

    fn row(&self) -> Row<'_> {
        // SAFETY: so many values lie there as long as `self` lives.
        unsafe { Row::new(self.start.cast(), E::DTYPE, false, self.count, size_of::<E>() as isize) }
    }

    /// The row to write to: the test has it for itself.
    fn row_mut(&self) -> RowMut<'_> {
        // SAFETY: the pages are writeable, and no two of these are written to at a time.
        unsafe { RowMut::new(self.row()) }
    }

    fn values(&self) -> Vec<f64> {
        (0..self.count).map(|class| self.row().get(class)).collect()
    }
}

#[cfg(unix)]
impl<E> Drop for Guarded<E> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.pages.0, self.pages.1) };
    }
}

struct LossAndGradient<'a, E> {
    row: Row<'a>,
    class: usize,
    transform: Transform,
    store: StorePolicy,
    out: RowMut<'a>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for LossAndGradient<'_, E> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let target = Target::class(self.class);
        target.loss_and_gradient::<S, E, E>(simd, self.row, self.out, self.transform, self.store)
    }
}

/// A sum that keeps what its roundings lose.
fn precise_sum(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, lost) = values.fold((0.0, 0.0), |(sum, lost): (f64, f64), value| {
        let next = sum + value;
        let rounded = next - sum;
        (next, lost + ((sum - (next - rounded)) + (value - rounded)))
    });
    sum + lost
}

/// ln Σ exp of the others relative to the target, by the book.
fn oracle(logits: &[f64], class: usize, temperature: f64) -> (f64, Vec<f64>) {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let z: Vec<f64> = logits.iter().map(|x| (x - largest) / temperature).collect();
    let sum = precise_sum(z.iter().map(|z| z.exp()));
    let others = precise_sum(z.iter().enumerate().filter(|(other, _)| *other != class).map(|(_, z)| z.exp()));
    let gradient = z.iter().enumerate().map(|(other, &z)| {
        let value = if other == class { -others / sum } else { z.exp() / sum };
        value / temperature
    });
    let loss = if z[class] == 0.0 { others.ln_1p() } else { sum.ln() - z[class] };
    (loss, gradient.collect())
}

/// Half an ulp of one in the type computed in, and of the type stored.
fn units(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F16 => (2f64.powi(-24), 2f64.powi(-11)),
        Dtype::Bf16 => (2f64.powi(-24), 2f64.powi(-8)),
        Dtype::F32 => (2f64.powi(-24), 0.0),
        Dtype::F64 => (2f64.powi(-53), 0.0),
        other => unreachable!("{} logits", other.name()),
    }
}

fn agree_with_the_oracle<E: Element>() {
    let (unit, stored) = units(E::DTYPE);
    // The oracle is f64 itself: allow what it may be off.
    let slack = if E::DTYPE == Dtype::F64 { 3.0 } else { 0.0 };
    let mut worst: (f64, f64) = (0.0, 0.0);
    for length in lengths() {
        for (scale, temperature) in [(1.0, 1.0), (10.0, 1.0), (5.0, 0.7), (1e-3, 1.0)] {
            let logits: Vec<E> = numbers(length, length as u64, scale).into_iter().map(E::from_f64).collect();
            let class = length * 7 / 11;
            let exact: Vec<f64> = logits.iter().map(|x| x.to_f64()).collect();
            let (expected, expected_gradient) = oracle(&exact, class, temperature);
            let largest = exact.iter().copied().fold(f64::NEG_INFINITY, f64::max) / temperature;
            let entropy = (length as f64).ln();
            let row = Guarded::new(&logits);
            let mut bits = None;
            for &level in Level::available() {
                for store in [StorePolicy::Cached, StorePolicy::NonTemporal] {
                    let out = Guarded::new(&logits);
                    let loss = level.run(LossAndGradient::<E> {
                        row: row.row(),
                        class,
                        transform: Transform::divided_by(temperature),
                        store,
                        out: out.row_mut(),
                        element: PhantomData,
                    });
                    let error = (loss - expected).abs() / (unit * (entropy + 2.0 + slack + slack * expected));
                    assert!(error <= 1.0, "{:?} {} C={length}: {loss} {expected}", E::DTYPE, level.name());
                    worst.0 = worst.0.max(error);
                    let gradient = out.values();
                    for ((&found, &exact), &x) in gradient.iter().zip(&expected_gradient).zip(&exact) {
                        let distance = (1.0 + slack / 3.0) * (x / temperature - largest).abs();
                        let bound = (unit * (distance + entropy + 4.0 + slack) + stored) * exact.abs() + tiny(E::DTYPE);
                        let error = (found - exact).abs() / bound;
                        assert!(error <= 1.0, "{:?} {} C={length}: {found} {exact}", E::DTYPE, level.name());
                        worst.1 = worst.1.max(error);
                    }
                    if level.name() != "portable" {
                        let found = (loss, gradient);
                        assert_eq!(*bits.get_or_insert(found.clone()), found, "{:?} C={length}", E::DTYPE);
                    }
                }
            }
        }
    }
    println!("{:?}: worst error / bound: loss {:.3}, gradient {:.3}", E::DTYPE, worst.0, worst.1);
}

/// The smallest positive number, half of which a subnormal result may be off.
fn tiny(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 2f64.powi(-24),
        Dtype::Bf16 => 2f64.powi(-133),
        Dtype::F32 => 2f64.powi(-149),
        Dtype::F64 => 2f64.powi(-1074),
        other => unreachable!("{} logits", other.name()),
    }
}

#[test]
fn f32_agrees_with_the_oracle() {
    agree_with_the_oracle::<f32>();
}

#[test]
fn f64_agrees_with_the_oracle() {
    agree_with_the_oracle::<f64>();
}

#[test]
fn f16_agrees_with_the_oracle() {
    agree_with_the_oracle::<f16>();
}

#[test]
fn bf16_agrees_with_the_oracle() {
    agree_with_the_oracle::<bf16>();
}

#[test]
fn in_place_is_the_same_as_apart() {
    for length in lengths() {
        let logits: Vec<f32> = numbers(length, 3, 4.0).into_iter().map(|x| x as f32).collect();
        for &level in Level::available() {
            let (apart, own) = (Guarded::new(&logits), Guarded::new(&logits));
            let run = |row, out| {
                let (transform, store) = (Transform::divided_by(1.3), StorePolicy::Cached);
                let element = PhantomData::<f32>;
                level.run(LossAndGradient { row, class: length / 2, transform, store, out, element })
            };
            let source = Guarded::new(&logits);
            assert_eq!(run(source.row(), apart.row_mut()), run(own.row(), own.row_mut()));
            assert_eq!(apart.values(), own.values());
        }
    }
}

struct Ranks<'a, E>(Row<'a>, usize, PhantomData<E>);

impl<E: Element> Kernel for Ranks<'_, E> {
    type Output = (f64, f64, usize);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f64, f64, usize) {
        let mut found = Statistics::default();
        found.read::<S, E::Real>(simd, 0, self.0, Some(self.1), Transform::divided_by(0.9));
        (found.above[0], found.entropies(simd, 1)[0], found.leader[0])
    }
}

#[test]
fn ranks_entropy_and_leader_of_rows_with_ties_and_masked_classes() {
    for length in lengths() {
        let mut logits: Vec<f32> = numbers(length, 5, 3.0).into_iter().map(|x| x.round() as f32).collect();
        for masked in logits.iter_mut().skip(3).step_by(17) {
            *masked = f32::NEG_INFINITY;
        }
        let guarded = Guarded::new(&logits);
        let z: Vec<f64> = logits.iter().map(|&x| f64::from(x) / 0.9).collect();
        let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        let terms = z.iter().map(|z| z - log_sum).filter(|log| log.is_finite());
        let entropy: f64 = terms.map(|log| -log.exp() * log).sum();
        let first = (0..length).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        for class in [0, length / 3, length / 2, length - 1] {
            let ahead =
                |other: &usize| logits[*other] > logits[class] || (logits[*other] == logits[class] && *other < class);
            let rank = (0..length).filter(ahead).count();
            for &level in Level::available() {
                let (above, found, leader) = level.run(Ranks(guarded.row(), class, PhantomData::<f32>));
                assert_eq!(above, rank as f64, "{} C={length} class {class}", level.name());
                assert!((found - entropy).abs() < 2e-6 * (1.0 + entropy), "{found} {entropy}");
                assert_eq!(leader, first, "{} C={length}", level.name());
            }
        }
    }
}

struct OfTarget<'a>(Row<'a>, RowMut<'a>, Target<'a>, Transform);

impl Kernel for OfTarget<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let Self(row, out, target, transform) = self;
        target.loss_and_gradient::<S, f32, f32>(simd, row, out, transform, StorePolicy::Cached)
    }
}

/// Logits at the bottom of their range are masks that some models write: they are classes, if poor ones.
#[test]
fn the_lowest_number_is_a_logit() {
    for length in [257, 513, 600, 1000] {
        let mut logits = vec![f32::MIN; length];
        logits[length - 1] = 1.0;
        logits[length - 2] = 1.0;
        let (row, out) = (Guarded::new(&logits), Guarded::new(&logits));
        for &level in Level::available() {
            let target = Target::class(length - 1);
            let loss = level.run(OfTarget(row.row(), out.row_mut(), target, Transform::NONE));
            assert!((loss - 2f64.ln()).abs() < 1e-7, "{} C={length}: {loss}", level.name());
        }
    }
}

/// All parts of a target at once, divided and capped, against the formula.
#[test]
fn every_part_of_a_target_counts() {
    for length in lengths() {
        let logits: Vec<f32> = numbers(length, 8, 9.0).into_iter().map(|x| x as f32).collect();
        let shares: Vec<f64> = numbers(length, 2, 1.0).into_iter().map(f64::abs).collect();
        let numbers = Array::of(&shares, length);
        let source = Source::Numbers(&numbers);
        let dense = Dense { source, row: 0, classes: length, keep: 0.9, uniform: 0.01, weight: Some(&shares) };
        let cases = [(None, 1.0), (None, 1.7), (Some(6.0), 1.0), (Some(20.0), 0.8)];
        for ((softcap, temperature), point) in
            cases.into_iter().flat_map(|case| [None, Some((length / 2, 0.7))].map(|point| (case, point)))
        {
            let transform = Transform::new(temperature, softcap);
            let capped = |x: f64| softcap.map_or(x, |cap: f64| cap * (x / cap).tanh());
            let slope = |x: f64| softcap.map_or(1.0, |cap: f64| 1.0 - (x / cap).tanh().powi(2)) / temperature;
            let z: Vec<f64> = logits.iter().map(|&x| capped(f64::from(x)) / temperature).collect();
            let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            for (uniform, dense) in [(0.0, Some(dense)), (0.02, None)] {
                let target = Target { uniform, dense, point, z_loss: 0.01 };
                let weight = |class: usize| {
                    let own = point.filter(|(own, _)| *own == class).map_or(0.0, |(_, weight)| weight);
                    own + uniform + dense.map_or(0.0, |_| shares[class] * (0.9 * shares[class] + 0.01))
                };
                let mass: f64 = (0..length).map(weight).sum();
                let missed: f64 = z.iter().enumerate().map(|(class, z)| weight(class) * (lse - z)).sum();
                let expected = missed + 0.01 * lse * lse;
                for &level in Level::available() {
                    let (row, out) = (Guarded::new(&logits), Guarded::new(&logits));
                    let loss = level.run(OfTarget(row.row(), out.row_mut(), target, transform));
                    let bound = 1e-6 * (1.0 + mass) * (1.0 + lse.abs());
                    assert!((loss - expected).abs() < bound, "{} C={length}: {loss} {expected}", level.name());
                    for (class, found) in out.values().into_iter().enumerate() {
                        let p = (z[class] - lse).exp();
                        let gradient = ((mass + 0.02 * lse) * p - weight(class)) * slope(f64::from(logits[class]));
                        let bound = 2e-6 * (mass + 0.02 * lse.abs() + 1.0) / temperature;
                        assert!((found - gradient).abs() < bound, "{} C={length}: {found} {gradient}", level.name());
                    }
                }
            }
        }
    }
}
