//! The derivatives of a tile of rows.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::{TOGETHER, Tile, TileMut, TileWeights, Tiled, TiledMut, WeightRoom};
use crate::element::Element;
use crate::math::{Boost, Real, with_vectors_at_a_time};
use crate::row::batch::{LogSumExps, Losses, MOST_LANES, PerLane, Slopes, Targets};
use crate::row::companion::Weights;
use crate::row::map::{can_boost, difference_of, share_lanes, take_back, variance_of};
use crate::row::transform::{CAPPED, PLAIN, SCALED, Scale, Value, with_mode, with_uncapped_mode};
use crate::row::{Transform, per_mass};

/// The gradients of the rows, into `out`; lanes that do not count get zeros.
///
/// Nothing is written, and the result is false, if some lanes need the boost of [`Real::exp`] and others must do
/// without it, which is so when the scales differ by 18 orders of magnitude, or if the mass of a target is infinite.
///
/// # Panics
/// If one of them has more classes.
#[inline(always)]
pub fn gradients<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    tile: Tile,
    mut out: TileMut,
    targets: &Targets,
    slopes: &Slopes,
    transform: Transform,
    weights: &mut Option<WeightRoom>,
) -> bool {
    assert_eq!(tile.classes(), out.classes());
    let plain = targets.dense.is_none() && transform.mode() != CAPPED;
    if let (true, Some(tile), Some(out)) = (plain, tile.stored_as::<R>(), out.stored_as::<R>()) {
        return if transform.mode() == PLAIN {
            gradients_of::<S, R, _, _, PLAIN, false>(simd, tile, out, targets, slopes, transform, weights)
        } else {
            gradients_of::<S, R, _, _, SCALED, false>(simd, tile, out, targets, slopes, transform, weights)
        };
    }
    with_mode!(transform, MODE => {
        gradients_of::<S, R, _, _, MODE, true>(simd, tile, out, targets, slopes, transform, weights)
    })
}

/// How the exponentials of all lanes are boosted, if one way will do.
#[inline(always)]
fn boost_of<R: Real>(factors: &PerLane<f64>) -> Option<Boost> {
    let (mut all, mut none) = (true, true);
    for &factor in factors {
        let boostable = can_boost::<R>(factor);
        all &= boostable || factor == 0.0 || factor.is_nan();
        none &= !boostable;
        if factor.is_infinite() {
            return None;
        }
    }
    if all { Some(Boost::Full) } else { none.then_some(Boost::None) }
}

/// [`gradients`] of tiles of one kind, with `DENSE` of targets that have a weight for each class.
#[inline(never)]
fn gradients_of<S, R, T, O, const MODE: u8, const DENSE: bool>(
    simd: S,
    tile: T,
    mut out: O,
    targets: &Targets,
    slopes: &Slopes,
    transform: Transform,
    weights: &mut Option<WeightRoom>,
) -> bool
where
    S: Simd,
    R: Real + Element<Real = R>,
    T: Tiled<S, R>,
    O: TiledMut<S, R>,
{
    let Some(boost) = boost_of::<R>(&slopes.factor) else { return false };
    let dense = targets.dense.filter(|_| DENSE);
    simd.vectorize(
        #[inline(always)]
        || {
            let mut factor = slopes.factor;
            for factor in &mut factor {
                *factor = take_back::<R>(*factor, boost);
            }
            let scale = Scale::<S, R>::new(simd, transform);
            let kernel = Gradients::<S, R> {
                scale,
                boost,
                reference: scale.value::<MODE>(R::narrow(simd, &slopes.reference)),
                factor: R::narrow(simd, &factor),
                counts: R::narrow(simd, &targets.counts),
                class: R::narrow(simd, &slopes.class),
                own: R::narrow(simd, &slopes.own),
            };
            let classes = tile.classes();
            let uniform = R::narrow(simd, &slopes.uniform);
            let Some(dense) = dense else {
                kernel.write_all::<_, _, MODE>(
                    simd,
                    &tile,
                    &mut out,
                    0..classes,
                    #[inline(always)]
                    |_| uniform,
                );
                return;
            };
            let WeightRoom { rows, block, whole } = weights.get_or_insert_default();
            let filled = whole.take() == Some(dense.row);
            let mut weights = TileWeights::<R>::new(dense, targets.rows, rows);
            for start in (0..classes).step_by(TOGETHER) {
                let here = start..classes.min(start + TOGETHER);
                if !filled {
                    weights.fill(simd, start, here.len(), block);
                }
                for weights in block[..here.len() * R::LANES].chunks_exact_mut(R::LANES) {
                    for (weights, scales) in weights.chunks_exact_mut(8).zip(slopes.scale.chunks_exact(8)) {
                        share_lanes(simd, f64x8::from_slice(simd, scales), weights);
                    }
                }
                kernel.write_all::<_, _, MODE>(
                    simd,
                    &tile,
                    &mut out,
                    here,
                    #[inline(always)]
                    |class| R::narrow(simd, &block[(class - start) * R::LANES..][..R::LANES]),
                );
            }
        },
    );
    true
}

/// [`Slopes`] as lanes.
struct Gradients<S: Simd, R: Real> {
    scale: Scale<S, R>,
    boost: Boost,
    reference: Value<S, R>,
    factor: R::Lanes<S>,
    counts: R::Lanes<S>,
    class: R::Lanes<S>,
    own: R::Lanes<S>,
}

impl<S: Simd, R: Real> Gradients<S, R> {
    /// Write those of some classes, from which their offsets are subtracted.
    #[inline(always)]
    fn write_all<T: Tiled<S, R>, O: TiledMut<S, R>, const MODE: u8>(
        &self,
        simd: S,
        tile: &T,
        out: &mut O,
        classes: Range<usize>,
        offset: impl Fn(usize) -> R::Lanes<S>,
    ) {
        with_vectors_at_a_time!(S, K => {
            let whole = classes.start + classes.len() / K * K;
            for class in (classes.start..whole).step_by(K) {
                self.write::<_, _, MODE, K>(simd, tile, out, class, &offset);
            }
            for class in whole..classes.end {
                self.write::<_, _, MODE, 1>(simd, tile, out, class, &offset);
            }
        });
    }

    /// [`Self::write_all`] of `K` classes.
    #[inline(always)]
    fn write<T: Tiled<S, R>, O: TiledMut<S, R>, const MODE: u8, const K: usize>(
        &self,
        simd: S,
        tile: &T,
        out: &mut O,
        first: usize,
        offset: &impl Fn(usize) -> R::Lanes<S>,
    ) {
        let zero = R::splat(simd, 0.0);
        let mut x = [zero; K];
        for k in 0..K {
            x[k] = tile.load(simd, first + k);
        }
        let capped = self.scale.values::<MODE, true, K>(x);
        let values = capped.map(
            #[inline(always)]
            |(value, _)| value,
        );
        let exp = self.scale.exps::<MODE, K>(values, self.reference, self.boost);
        for k in 0..K {
            let number = R::splat(simd, (first + k) as f64);
            let is_point = self.class.simd_eq(number);
            let gradient = difference_of::<S, R>(x[k], exp[k], self.factor, offset(first + k));
            let gradient = if MODE == CAPPED { gradient * capped[k].1 } else { gradient };
            let gradient = is_point.select(self.own, gradient);
            out.store(simd, first + k, self.counts.simd_gt(zero).select(gradient, zero));
        }
    }
}

/// The softmax of the rows, or, with their `ln total`, its logarithm.
#[inline(always)]
pub fn probabilities<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    tile: Tile,
    mut out: TileMut,
    found: &LogSumExps,
    logs: Option<&PerLane<f64>>,
    transform: Transform,
) {
    assert_eq!(tile.classes(), out.classes());
    if let (Some(tile), Some(out)) = (tile.stored_as::<R>(), out.stored_as::<R>()) {
        return probabilities_of::<S, R, _, _>(simd, tile, out, found, logs, transform);
    }
    probabilities_of::<S, R, _, _>(simd, tile, out, found, logs, transform);
}

/// [`probabilities`] of tiles of one kind.
#[inline(never)]
fn probabilities_of<S: Simd, R: Real, T: Tiled<S, R>, O: TiledMut<S, R>>(
    simd: S,
    tile: T,
    mut out: O,
    found: &LogSumExps,
    logs: Option<&PerLane<f64>>,
    transform: Transform,
) {
    let (mut factors, mut low) = ([0.0; MOST_LANES], [0.0; MOST_LANES]);
    for lane in 0..R::LANES {
        factors[lane] = take_back::<R>(per_mass(1.0, found.own[lane] + found.others[lane]), Boost::Full);
        if let Some(logs) = logs.filter(|logs| logs[lane].is_finite()) {
            low[lane] = logs[lane] - Real::to_f64(<R as Real>::from_f64(logs[lane]));
        }
    }
    simd.vectorize(
        #[inline(always)]
        || {
            with_uncapped_mode!(transform, MODE => {
                let scale = Scale::<S, R>::new(simd, transform);
                let reference = Value::plain(R::narrow(simd, &found.reference));
                let factor = R::narrow(simd, &factors);
                let logs = logs.map(|logs| [R::narrow(simd, logs), R::narrow(simd, &low)]);
                for class in 0..tile.classes() {
                    let value = Value::plain(tile.load(simd, class));
                    let result = match logs {
                        Some(logs) => scale.log::<MODE>(value, reference, logs),
                        None => scale.exp::<MODE>(value, reference, Boost::Full) * factor,
                    };
                    out.store(simd, class, result);
                }
            });
        },
    );
}

/// For each lane `scale` times the diagonal of the Hessian of its row.
#[inline(never)]
pub fn variances<S: Simd, R: Real>(
    simd: S,
    tile: Tile,
    mut out: TileMut,
    targets: &Targets,
    losses: &Losses,
    scales: &PerLane<f64>,
    transform: Transform,
) {
    assert_eq!(tile.classes(), out.classes());
    // Nothing equals NaN.
    let (mut leaders, mut own) = ([f64::NAN; MOST_LANES], [0.0; MOST_LANES]);
    let [mut factors, mut variance_scales] = [[0.0; MOST_LANES]; 2];
    for lane in 0..targets.rows {
        let loss = losses.get(lane, targets);
        factors[lane] = take_back::<R>(loss.softmax(transform).factor, Boost::Full);
        variance_scales[lane] = take_back::<R>(loss.variance_scale(scales[lane], transform), Boost::None);
        if loss.log_sum_exp.is_led() {
            leaders[lane] = loss.log_sum_exp.reference;
            own[lane] = loss.own_variance(scales[lane], transform);
        }
    }
    simd.vectorize(
        #[inline(always)]
        || {
            with_uncapped_mode!(transform, MODE => {
                let scale = Scale::<S, R>::new(simd, transform);
                let reference = Value::plain(R::narrow(simd, &losses.log_sum_exps.reference));
                let (factor, variance_scale) = (R::narrow(simd, &factors), R::narrow(simd, &variance_scales));
                let (leader, own) = (R::narrow(simd, &leaders), R::narrow(simd, &own));
                let zero = R::splat(simd, 0.0);
                let counts = R::narrow(simd, &targets.counts).simd_gt(zero);
                for class in 0..tile.classes() {
                    let x: R::Lanes<S> = Tiled::<S, R>::load(&tile, simd, class);
                    let exp = scale.exp::<MODE>(Value::plain(x), reference, Boost::Full);
                    let variance = variance_of::<S, R>(exp * factor, variance_scale);
                    let variance = x.simd_eq(leader).select(own, variance);
                    TiledMut::<S, R>::store(&mut out, simd, class, counts.select(variance, zero));
                }
            });
        },
    );
}
