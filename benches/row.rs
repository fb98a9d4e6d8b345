//! The row kernels, at every level and dtype, on one thread and one row in cache.
//!
//! `cargo bench --no-default-features --bench row`; a filter such as `loss/float32` picks a part.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fearless_simd::Simd;
use half::{bf16, f16};
use std::marker::PhantomData;

use xent_rs::array::{Array, ArrayMut};
use xent_rs::element::Element;
use xent_rs::row::{Target, Transform};
use xent_rs::rows::{Row, RowMut, StorePolicy};
use xent_rs::simd::{Kernel, Level};

/// Logits between −8 and 8, the same each time.
fn logits<E: Element>(classes: usize) -> Vec<E> {
    let value = |index: usize| ((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64;
    (0..classes).map(|index| E::from_f64(value(index) / f64::from(1 << 20) - 8.0)).collect()
}

struct Loss<'a, E>(Row<'a>, PhantomData<E>);

impl<E: Element> Kernel for Loss<'_, E> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        Target::class(1).loss::<S, E>(simd, self.0, Transform::NONE)
    }
}

struct LossAndGradient<'a, E>(Row<'a>, RowMut<'a>, PhantomData<E>);

impl<E: Element> Kernel for LossAndGradient<'_, E> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        Target::class(1).loss_and_gradient::<S, E, E>(simd, self.0, self.1, Transform::NONE, StorePolicy::Cached)
    }
}

fn of_type<E: Element>(criterion: &mut Criterion) {
    for classes in [10, 1000, 32000] {
        let values = logits::<E>(classes);
        let expected = {
            let exact: Vec<f64> = values.iter().map(|value| value.to_f64()).collect();
            exact.iter().map(|x| (x - exact[1]).exp()).sum::<f64>().ln()
        };
        let mut gradient = values.clone();
        let (values, mut gradient) = (Array::of(&values, classes), ArrayMut::of(&mut gradient, classes));
        let (row, mut rows) = (values.row(0), gradient.all());
        let mut out = rows.row(0);
        let element = PhantomData::<E>;
        for level in Level::available() {
            assert!((level.run(Loss(row, element)) - expected).abs() < 1e-6, "the answer comes first");
            let id = |kernel: &str| BenchmarkId::new(format!("{kernel}/{}/{}", E::DTYPE.name(), level.name()), classes);
            let mut group = criterion.benchmark_group("row");
            group.throughput(Throughput::Bytes((classes * size_of::<E>()) as u64));
            group.bench_function(id("loss"), |bencher| bencher.iter(|| level.run(Loss(row, element))));
            group.bench_function(id("loss and gradient"), |bencher| {
                bencher.iter(|| level.run(LossAndGradient(row, out.reborrow(), element)));
            });
            group.finish();
        }
    }
}

fn benches(criterion: &mut Criterion) {
    of_type::<f32>(criterion);
    of_type::<bf16>(criterion);
    of_type::<f16>(criterion);
    of_type::<f64>(criterion);
}

criterion_group!(rows, benches);
criterion_main!(rows);
