//! Threads, levels, kept memory, and what a bug report needs to say; the roofs of `xent-rs bench`.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::integer;
use super::arrays::{check_flat, flat_layout, overlap, private_view};
use super::{detached, guard, memory};
use crate::array::{Array, ArrayMut};
use crate::error::Error;
use crate::loss::bandwidth;
use crate::parallel;
use crate::simd::{self, Environment};

#[pyfunction]
pub(super) fn set_num_threads(n: &Bound<'_, PyAny>) -> PyResult<()> {
    guard(|| {
        // What is negative or beyond all bounds is refused like 0 and like too many.
        let threads = usize::try_from(integer("n", n)?.max(0)).unwrap_or(usize::MAX);
        parallel::set_num_threads(threads).map_err(|error| match error {
            Error::Value(_) if threads == 0 => Error::Value(format!("number of threads is {n}; expected at least 1")),
            error => error,
        })?;
        Ok(())
    })
}

#[pyfunction]
pub(super) fn get_num_threads() -> PyResult<usize> {
    guard(|| Ok(parallel::num_threads().0))
}

#[pyfunction]
pub(super) fn simd_levels() -> Vec<&'static str> {
    simd::Level::available().iter().map(|level| level.name()).collect()
}

#[pyfunction]
pub(super) fn simd_level() -> PyResult<&'static str> {
    guard(|| Ok(simd::level().name()))
}

#[pyfunction]
pub(super) fn set_simd_level(name: &str) -> PyResult<()> {
    guard(|| Ok(simd::set_level(name)?))
}

#[pyfunction]
pub(super) fn config(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let level = simd_level()?;
    let (threads, source) = parallel::num_threads();
    let config = PyDict::new(py);
    config.set_item("version", env!("CARGO_PKG_VERSION"))?;
    config.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    config.set_item("cpu", simd::cpu_name())?;
    config.set_item("simd_level", level)?;
    config.set_item("simd_levels", simd_levels())?;
    config.set_item("num_threads", threads)?;
    config.set_item("num_threads_source", source)?;
    config.set_item("placement", parallel::placement())?;
    config.set_item("keep_memory", memory::keeps()?)?;
    Ok(config)
}

/// Call `function` in the default floating-point environment, for what is computed in Python.
#[pyfunction]
#[pyo3(signature = (function, /, *args, **kwargs))]
pub(super) fn in_default_environment<'py>(
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    Environment::DEFAULT.run(|| function.call(args, kwargs))
}

/// The bytes that are kept for the next results.
#[pyfunction]
pub(super) fn kept_memory() -> PyResult<usize> {
    guard(|| Ok(memory::kept()))
}

/// Give them back to the system, and return how many they were.
#[pyfunction]
pub(super) fn release_memory(py: Python<'_>) -> PyResult<usize> {
    guard(|| Ok(py.detach(memory::release)))
}

/// Read all bytes of a contiguous array; the result depends on every one of them.
#[pyfunction]
pub(super) fn memory_read(py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<u32> {
    guard(|| {
        let (array, mut shape) = (private_view(array.cast()?)?, [0]);
        check_flat(&array)?;
        // SAFETY: `check_flat` found the values side by side; the array is borrowed as long as they are read.
        let values = unsafe { Array::new(&flat_layout(&array, &mut shape), None) };
        detached(py, |check| bandwidth::read(&values, check))
    })
}

/// Write half of each value of a contiguous array, taken as float32, to another.
#[pyfunction]
pub(super) fn memory_copy(py: Python<'_>, array: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<()> {
    guard(|| {
        let (array, out) = (private_view(array.cast()?)?, private_view(out.cast()?)?);
        check_flat(&array)?;
        check_flat(&out)?;
        if overlap(&array, &out)? {
            return Err(Error::Value("out overlaps array; expected memory apart from it".into()).into());
        }
        let (mut shape, mut out_shape) = ([0], [0]);
        let (values, out_values) = (flat_layout(&array, &mut shape), flat_layout(&out, &mut out_shape));
        if values.shape != out_values.shape {
            let text = format!("out has {} values; expected {}", out_values.shape[0], values.shape[0]);
            return Err(Error::Value(text).into());
        }
        // SAFETY: `check_flat` found the values of both side by side, and those of `out` writeable; they do not overlap,
        // and both are borrowed as long as they are used.
        let (values, mut out) = unsafe { (Array::new(&values, None), ArrayMut::new(&out_values, None)) };
        detached(py, |check| bandwidth::copy(&values, &mut out, check))
    })
}
