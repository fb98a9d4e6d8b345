//! The bits of results: the same at every level with fused multiply-adds, and so the same on every machine.
//!
//! `bits.txt` has a hash of the results of each function, option and dtype. It is compared at each such level that the CPU has:
//! with AVX-512 or AVX2 on x86-64, with NEON on AArch64. A change to a kernel may well change it; then
//! `XENT_RS_RENEW_BITS=1 cargo test --no-default-features --lib bits` writes it anew.
//!
//! Of a NaN, what counts is that it is one: the sign and the payload are the CPU's.

use std::fmt::Write;

use fearless_simd::Simd;
use half::{bf16, f16};

use super::binary::{Binary, binary_cross_entropy};
use super::comparison::{Comparison, FIGURES, compare};
use super::cross_entropy::cross_entropy;
use super::evaluation::tally;
use super::hessian::hessian_product;
use super::labels::Labels;
use super::softmax::{log_sum_exps, softmax};
use super::statistics::{Columns, row_statistics};
use super::target_gradient::target_gradient;
use super::targets::{Problem, Targets};
use super::temperature::temperature_gradient;
use super::{Derivatives, GradOutput, Reduction};
use crate::array::{Array, ArrayMut, Layout};
use crate::dtype::Number;
use crate::element::Element;
use crate::kernel::focus::Focus;
use crate::math::is_fused;
use crate::row::Transform;
use crate::simd::{self, Kernel, Level};

/// What was found before.
const KNOWN: &str = include_str!("bits.txt");

/// On both sides of every number at which another kernel begins, and of whole vectors.
const CLASSES: [usize; 22] = [1, 2, 3, 4, 5, 7, 8, 10, 15, 16, 17, 33, 64, 65, 100, 127, 128, 129, 255, 257, 300, 1025];

/// Whether a level has fused multiply-adds.
struct IsFused;

impl Kernel for IsFused {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        is_fused::<S>()
    }
}

/// FNV-1a, of numbers as f64.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, number: f64) {
        let number = if number.is_nan() { f64::NAN } else { number };
        self.add_bytes(&number.to_bits().to_le_bytes());
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn add_all<T: Number>(&mut self, numbers: &[T]) {
        for number in numbers {
            self.add(number.to_f64());
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// From 0 to 1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }
}

/// Rows of numbers, with the classes of a row or the rows of a class side by side.
#[derive(Clone)]
struct Rows<T> {
    values: Vec<T>,
    shape: [usize; 2],
    strides: [isize; 2],
}

impl<T: Number> Rows<T> {
    fn new(shape: [usize; 2], across: bool, mut value: impl FnMut(usize, usize) -> f64) -> Self {
        let [rows, classes] = shape;
        let steps = if across { [1, rows] } else { [classes, 1] };
        let mut values = vec![T::from_f64(0.0); rows * classes];
        for row in 0..rows {
            for class in 0..classes {
                values[row * steps[0] + class * steps[1]] = T::from_f64(value(row, class));
            }
        }
        Self { values, shape, strides: steps.map(|step| (step * size_of::<T>()) as isize) }
    }

    fn layout(&self, base: *mut T) -> Layout<'_> {
        Layout { base: base.cast(), dtype: T::DTYPE, swapped: false, shape: &self.shape, strides: &self.strides }
    }

    fn array(&self) -> Array<'_> {
        // SAFETY: the layout is that of the vector, which is borrowed.
        unsafe { Array::new(&self.layout(self.values.as_ptr().cast_mut()), Some(1)) }
    }

    fn array_mut(&mut self) -> ArrayMut<'_> {
        let base = self.values.as_mut_ptr();
        // SAFETY: the layout is that of the vector, which is borrowed exclusively.
        unsafe { ArrayMut::new(&self.layout(base), Some(1)) }
    }
}

/// Rows of many kinds; with an odd number of classes of special numbers, too.
fn logits<E: Element>(shape: [usize; 2], across: bool, seed: u64) -> Rows<E> {
    let (mut random, classes) = (Random(seed), shape[1]);
    Rows::new(shape, across, |row, class| {
        let number = 12.0 * (random.uniform() + random.uniform() - 1.0);
        match row % 16 {
            2 => [0.0, -0.0, -1.0][(row + class) % 3],
            3 => number * 300.0,
            4 => 2.5,
            5 | 6 => number + if class == row * 7 % classes { 25.0 } else { 0.0 },
            7 => 80.0 + number / 64.0,
            8 if class % 3 == 1 => f64::NEG_INFINITY,
            9 if classes % 2 == 1 && class == row % classes => f64::NAN,
            10 if classes % 2 == 1 && class == row * 3 % classes => f64::INFINITY,
            11 if classes % 2 == 1 => f64::NEG_INFINITY,
            _ => number,
        }
    })
}

/// A hash for each line of the file, in the order in which they are first asked for.
#[derive(Default)]
struct Hashes(Vec<(String, Hash)>);

impl Hashes {
    fn of<T: Number>(&mut self, name: &str) -> &mut Hash {
        let name = format!("{name}, {}", T::DTYPE.name());
        let index = self.0.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            self.0.push((name, Hash::new()));
            self.0.len() - 1
        });
        &mut self.0[index].1
    }

    fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (name, hash)| {
            writeln!(text, "{:016x} {name}", hash.0).expect("there is memory");
            text
        })
    }
}

/// Losses and gradients of a problem, and the Hessian where there is one.
fn solve<E: Element, O: Element>(hash: &mut Hash, rows: &Rows<E>, across: bool, problem: &Problem, hessian: bool) {
    let count = rows.shape[0];
    let mut losses = vec![E::Real::from_f64(0.0); count];
    let mut gradient = Rows::<O>::new(rows.shape, across, |_, _| 0.0);
    let mut second = gradient.clone();
    let scales: Vec<f64> = (0..count).map(|row| 0.5 + row as f64 / 8.0).collect();
    let mut derivatives = Derivatives {
        gradient: gradient.array_mut(),
        hessian: hessian.then(|| second.array_mut()),
        grad_output: if hessian { GradOutput::Each(Array::of(&scales, 1)) } else { GradOutput::Scalar(1.5) },
        given: false,
    };
    let (array, check) = (rows.array(), || Ok(()));
    let mut losses_out = ArrayMut::of(&mut losses, 1);
    let sum =
        cross_entropy(&array, problem, Reduction::None, None, Some(&mut losses_out), Some(&mut derivatives), &check);
    hash.add(sum.expect("targets are fine"));
    // Without a gradient other kernels may be taken.
    hash.add(cross_entropy(&array, problem, Reduction::Mean, None, None, None, &check).expect("as before"));
    hash.add_all(&losses);
    hash.add_all(&gradient.values);
    hash.add_all(&second.values);
}

/// All losses of the softmax family.
fn losses<E: Element>(hashes: &mut Hashes, shape: [usize; 2], across: bool) {
    let [rows, classes] = shape;
    let logits_of = logits::<E>(shape, across, 1);
    let targets: Vec<i64> = (0..rows).map(|row| if row % 9 == 8 { -100 } else { (row * 7 % classes) as i64 }).collect();
    let labels = Labels::read("targets", &Array::of(&targets, 1), classes, Some(-100), &|| Ok(())).expect("classes");
    let mut random = Random(2);
    let probability = |row: usize, class: usize| if (row + class).is_multiple_of(5) { 0.0 } else { random.uniform() };
    let single = Rows::<f32>::new(shape, across, probability);
    let double = Rows::<f64>::new(shape, false, |row, class| f64::from(single.values[row * classes + class]) / 3.0);
    let teacher = logits::<E>(shape, across, 3);
    let weight: Vec<f64> = (0..classes).map(|class| 0.25 + (class % 7) as f64 / 3.0).collect();
    let plain = Problem::new(Targets::Classes(labels));
    let capped = Transform::new(0.75, Some(5.0));
    let focus = Some(Focus { gamma: 1.5, epsilon: 0.5 });
    let sample_weight = Some((0..rows).map(|row| (row % 4) as f64 / 3.0).collect());
    let problems = [
        ("plain", plain.clone()),
        ("temperature", Problem { transform: Transform::divided_by(0.7), ..plain.clone() }),
        ("softcap", Problem { transform: capped, ..plain.clone() }),
        ("weights and smoothing", Problem { weight: Some(weight.clone()), label_smoothing: 0.1, ..plain.clone() }),
        ("z-loss", Problem { z_loss: 1e-3, sample_weight, ..plain.clone() }),
        ("focal", Problem { focus, ..plain.clone() }),
        ("probabilities", Problem::new(Targets::Probabilities(single.array()))),
        (
            "weighted probabilities under a cap",
            Problem { weight: Some(weight), transform: capped, ..Problem::new(Targets::Probabilities(double.array())) },
        ),
        (
            "teacher",
            Problem { transform: Transform::divided_by(2.0), ..Problem::new(Targets::Teacher(teacher.array())) },
        ),
    ];
    let vector = logits::<E>(shape, across, 8);
    for (name, problem) in &problems {
        solve::<E, E>(hashes.of::<E>(name), &logits_of, across, problem, false);
        if problem.focus.is_none() {
            further::<E>(hashes, [&logits_of, &vector], across, problem);
        }
    }
    solve::<E, E>(hashes.of::<E>("Hessian"), &logits_of, across, &plain, true);
    solve::<E, E::Real>(hashes.of::<E>("wider gradient"), &logits_of, across, &plain, false);
}

/// What is written of the logits' shape.
fn into(out: ArrayMut) -> Derivatives {
    Derivatives { gradient: out, hessian: None, grad_output: GradOutput::Scalar(1.5), given: false }
}

/// Derivatives of a problem beyond the gradient, those that it has.
fn further<E: Element>(hashes: &mut Hashes, [rows, vector]: [&Rows<E>; 2], across: bool, problem: &Problem) {
    let (array, check) = (rows.array(), || Ok(()));
    let mut out = Rows::<E>::new(rows.shape, across, |_, _| 0.0);
    let mut of_rows = vec![E::Real::from_f64(0.0); rows.shape[0]];
    if problem.transform.softcap().is_none() {
        let (vector, mut products) = (vector.array(), into(out.array_mut()));
        hessian_product(&array, &vector, problem, Reduction::Mean, None, &mut products, &check)
            .expect("targets are fine");
        hashes.of::<E>("Hessian times vector").add_all(&out.values);
    }
    if let Targets::Probabilities(_) = problem.targets
        && problem.transform.softcap().is_none()
    {
        let mut gradient = into(out.array_mut());
        target_gradient(&array, problem, Reduction::Mean, None, &mut gradient, &check).expect("targets are fine");
        hashes.of::<E>("gradient of targets").add_all(&out.values);
    }
    if !matches!(problem.targets, Targets::Teacher(_)) {
        let mut out = ArrayMut::of(&mut of_rows, 1);
        let sum = temperature_gradient(&array, problem, Reduction::Mean, None, Some(&mut out), &check);
        let hash = hashes.of::<E>("gradient of the temperature");
        hash.add(sum.expect("targets are fine"));
        hash.add_all(&of_rows);
    }
}

/// What else is made of rows.
fn distributions<E: Element>(hashes: &mut Hashes, shape: [usize; 2], across: bool) {
    let [rows, classes] = shape;
    let check = || Ok(());
    let logits_of = logits::<E>(shape, across, 4);
    let array = logits_of.array();
    let targets: Vec<i64> = (0..rows).map(|row| (row * 5 % classes) as i64).collect();
    let labels = Labels::read("targets", &Array::of(&targets, 1), classes, None, &check).expect("classes");
    for (name, log) in [("softmax", false), ("log-softmax", true)] {
        let mut out = Rows::<E>::new(shape, across, |_, _| 0.0);
        softmax(&array, Transform::NONE, log, &mut out.array_mut(), &check).expect("nothing fails");
        hashes.of::<E>(name).add_all(&out.values);
    }
    let mut columns = vec![vec![0.0f64; rows]; 6];
    let mut arrays: Vec<_> = columns.iter_mut().map(|column| ArrayMut::of(column, 1)).collect();
    let [log_sum_exp, argmax, max_probability, entropy, of_target, rank] = &mut arrays[..] else {
        unreachable!("there are six of them")
    };
    let to = Columns { log_sum_exp, argmax, max_probability, entropy, target: Some((of_target, rank)) };
    row_statistics(&array, Some(&labels), Transform::divided_by(1.25), to, &check).expect("nothing fails");
    let mut sums = vec![0.0f64; rows];
    log_sum_exps(&array, Transform::NONE, &mut ArrayMut::of(&mut sums, 1), &check).expect("nothing fails");
    columns.push(sums);
    for column in &columns {
        hashes.of::<E>("statistics").add_all(column);
    }
    let tally =
        tally(&array, &Problem::new(Targets::Classes(labels.clone())), &[1, 3], &check).expect("there is memory");
    let hash = hashes.of::<E>("evaluation");
    for sum in [tally.sums.loss, tally.sums.squared_loss, tally.sums.entropy] {
        let (digits, special) = sum.to_bytes();
        hash.add_bytes(&digits);
        hash.add(special);
    }
    hash.add_all(&tally.hits);
    let candidate = logits::<E>(shape, across, 5);
    let comparison = Comparison {
        models: [array, candidate.array()],
        lies_across: across,
        transform: Transform::NONE,
        labels: Some(labels),
        sample_weight: None,
    };
    let mut figures = vec![0.0f64; rows * FIGURES];
    compare(&comparison, &mut ArrayMut::of(&mut figures, FIGURES), &check).expect("nothing fails");
    hashes.of::<E>("comparison").add_all(&figures);
}

/// The binary losses.
fn binary<E: Element>(hashes: &mut Hashes) {
    for count in [1, 15, 64, 300, 777] {
        let shape = [count, 1];
        let logits_of = logits::<E>(shape, false, 6);
        let mut random = Random(7);
        let hard: Vec<u8> = (0..count).map(|index| u8::from(index % 3 == 0)).collect();
        let soft = Rows::<E>::new(shape, false, |_, _| random.uniform());
        let weight = Rows::<f32>::new(shape, false, |row, _| 0.5 + (row % 5) as f64);
        let plain = Binary {
            logits: logits_of.array(),
            targets: Array::of(&hard, 1),
            weight: None,
            pos_weight: None,
            ignore_index: None,
            label_smoothing: 0.0,
            focal_gamma: 0.0,
        };
        let weighted = Binary {
            targets: soft.array(),
            weight: Some(weight.array()),
            pos_weight: Some(weight.array()),
            label_smoothing: 0.1,
            ..plain.clone()
        };
        let problems = [
            ("binary", plain.clone()),
            ("soft binary", Binary { targets: soft.array(), ..plain.clone() }),
            ("weighted binary", weighted),
            ("focal binary", Binary { focal_gamma: 2.0, ..plain }),
        ];
        for (name, problem) in problems {
            let mut losses = vec![E::Real::from_f64(0.0); count];
            let mut out = [vec![E::from_f64(0.0); count], vec![E::from_f64(0.0); count]];
            let [gradient, hessian] = &mut out;
            let mut derivatives = Derivatives {
                gradient: ArrayMut::of(gradient, 1),
                hessian: (problem.focal_gamma == 0.0).then(|| ArrayMut::of(hessian, 1)),
                grad_output: GradOutput::Scalar(0.75),
                given: false,
            };
            let mut losses_out = ArrayMut::of(&mut losses, 1);
            let derivatives = Some(&mut derivatives);
            let sum =
                binary_cross_entropy(&problem, Reduction::Mean, None, Some(&mut losses_out), derivatives, &|| Ok(()));
            let hash = hashes.of::<E>(name);
            hash.add(sum.expect("targets are fine"));
            hash.add_all(&losses);
            for out in &out {
                hash.add_all(out);
            }
        }
    }
}

fn all<E: Element>(hashes: &mut Hashes) {
    for classes in CLASSES {
        // Two tiles and some rows, or one.
        let rows = if classes < 300 { 37 } else { 19 };
        for across in [false, true] {
            losses::<E>(hashes, [rows, classes], across);
            distributions::<E>(hashes, [rows, classes], across);
        }
    }
    binary::<E>(hashes);
}

#[test]
fn levels_with_fused_multiply_adds_have_the_known_bits() {
    let in_use = simd::level().name();
    for level in Level::available().iter().filter(|level| level.run(IsFused)) {
        simd::set_level(level.name()).expect("it is available");
        let mut hashes = Hashes::default();
        all::<f16>(&mut hashes);
        all::<bf16>(&mut hashes);
        all::<f32>(&mut hashes);
        all::<f64>(&mut hashes);
        let found = hashes.text();
        if std::env::var_os("XENT_RS_RENEW_BITS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/loss/bits.txt"), found).expect("a checkout");
            panic!("bits.txt is that of {} now: run the test again, without the variable", level.name());
        }
        let other: Vec<_> = found.lines().filter(|line| !KNOWN.lines().any(|known| known == *line)).collect();
        assert!(other.is_empty(), "other bits with {}:\n{}", level.name(), other.join("\n"));
        assert_eq!(found.lines().count(), KNOWN.lines().count(), "lines that nothing stands for");
    }
    simd::set_level(in_use).expect("it was in use");
}
