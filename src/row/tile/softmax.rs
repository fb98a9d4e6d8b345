//! The softmax of a tile of rows.

use fearless_simd::Simd;

use super::{Tile, TileMut, Tiled, TiledMut};
use crate::element::Element;
use crate::math::{Boost, Real};
use crate::row::batch::{LogSumExps, MOST_LANES, PerLane};
use crate::row::map::take_back;
use crate::row::transform::{Scale, Value, with_uncapped_mode};
use crate::row::{Transform, per_mass};

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
