//! Threads, levels, kept memory, and what a bug report needs to say; the roofs for benchmarks; a fault on request for tests.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::integer;
use super::arrays::flat_view;
use super::{detached, guard};
use crate::error::Error;
use crate::loss::bandwidth;
use crate::simd::{self, Environment};
use crate::{buffers, parallel};

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
    guard(|| Ok(buffers::kept()))
}

/// Give them back to the system, and return how many they were.
#[pyfunction]
pub(super) fn release_memory(py: Python<'_>) -> PyResult<usize> {
    guard(|| Ok(py.detach(buffers::release)))
}

/// Read all bytes of a contiguous array; the result depends on every one of them.
#[pyfunction]
pub(super) fn memory_read(py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<u32> {
    guard(|| {
        let (_array, view) = flat_view(array)?;
        detached(py, |check| bandwidth::read(&view, check))
    })
}

/// Write half of each value of a contiguous array, taken as float32, to another.
#[pyfunction]
pub(super) fn memory_copy(py: Python<'_>, array: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<()> {
    guard(|| {
        let ((_array, view), (_out, out)) = (flat_view(array)?, flat_view(out)?);
        if view.classes() != out.classes() {
            let text = format!("out has {} values; expected {}", out.classes(), view.classes());
            return Err(Error::Value(text).into());
        }
        // SAFETY: `flat_view` found both writeable; benchmarks pass two arrays of their own.
        detached(py, |check| unsafe { bandwidth::copy(&view, &out, check) })
    })
}

/// Panic in the pool, as a fault of ours would.
#[pyfunction]
pub(super) fn panic_for_test(py: Python<'_>) -> PyResult<()> {
    guard(|| {
        let work = |chunk: usize| assert!(chunk != 3, "asked for by a test");
        detached(py, |check| parallel::map_chunks(8, 1 << 20, check, work)).map(|_| ())
    })
}
