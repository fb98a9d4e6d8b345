//! The only place that knows Python and NumPy: it looks at dtypes and strides, validates, lets go of the interpreter,
//! calls a driver, and wraps what comes back. Whatever panics below becomes `InternalError` here.

mod arguments;
mod arrays;
mod binary;
mod comparison;
mod conversion;
mod cross_entropy;
mod dlpack;
mod evaluation;
mod hessian;
mod losses;
mod memory;
mod options;
mod probability;
mod settings;
mod shard;
mod softmax;
mod statistics;
mod targets;
mod xla;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock};

use pyo3::exceptions::{PyIndexError, PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::error::{Error, Result};
use crate::loss::Check;
use crate::parallel;
use crate::simd::{self, Environment};

pyo3::create_exception!(xent_rs, InternalError, PyRuntimeError, "A fault of xent_rs itself, never of its caller.");

#[pymodule(gil_used = false)]
mod _xent_rs {
    #[pymodule_export]
    use super::InternalError;
    #[pymodule_export]
    use super::binary::{binary_cross_entropy, binary_cross_entropy_with_grad, binary_cross_entropy_with_grad_hess};
    #[pymodule_export]
    use super::comparison::compare_rows;
    #[pymodule_export]
    use super::cross_entropy::{
        cross_entropy, cross_entropy_with_grad, cross_entropy_with_grad_hess, kl_divergence, kl_divergence_with_grad,
    };
    #[pymodule_export]
    use super::evaluation::{evaluate, exact_sum, loss_sums};
    #[pymodule_export]
    use super::hessian::{
        cross_entropy_hvp, cross_entropy_target_grad, cross_entropy_temperature_grad, kl_divergence_hvp,
    };
    #[pymodule_export]
    use super::options::Keywords;
    #[pymodule_export]
    use super::probability::as_array;
    #[pymodule_export]
    use super::settings::{
        config, get_num_threads, in_default_environment, kept_memory, memory_copy, memory_read, release_memory,
        set_num_threads, set_simd_level, simd_level, simd_levels,
    };
    #[pymodule_export]
    use super::shard::cross_entropy_grad;
    #[pymodule_export]
    use super::softmax::{log_softmax, logsumexp, selective_log_softmax, softmax};
    #[pymodule_export]
    use super::statistics::row_statistics;
    #[pymodule_export]
    use super::xla::{xla_handlers, xla_layout};

    #[pymodule_export]
    #[allow(non_upper_case_globals)] // Python's name
    const __version__: &str = env!("CARGO_PKG_VERSION");
}

/// Follow `XENT_RS_SIMD`, `XENT_RS_NUM_THREADS`, `XENT_RS_PLACEMENT` and `XENT_RS_KEEP_MEMORY`, once. A value that means
/// nothing fails every call, and says so: an import that failed instead could not be reported in one line by the command.
fn follow_environment() -> Result<()> {
    static FOLLOWED: OnceLock<Result<()>> = OnceLock::new();
    let follow = || {
        if let Some(name) = std::env::var_os("XENT_RS_SIMD").filter(|name| !name.is_empty()) {
            simd::set_level(&name.to_string_lossy()).map_err(|error| Error::Value(format!("XENT_RS_SIMD: {error}")))?;
        }
        simd::level();
        parallel::follow_environment()?;
        memory::keeps().map(|_| ())
    };
    FOLLOWED.get_or_init(follow).clone()
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Type(_) => PyTypeError::new_err(text),
            Error::Value(_) => PyValueError::new_err(text),
            Error::Index(_) => PyIndexError::new_err(text),
            Error::Memory(_) => PyMemoryError::new_err(text),
            Error::Interrupted => PyRuntimeError::new_err(text),
        }
    }
}

/// Run a function's body; a panic in it becomes `InternalError`.
fn guard<T>(body: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    follow_environment()?;
    // What a panic leaves behind is dropped: results half made, never state that another call sees.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic");
        Err(InternalError::new_err(format!("internal error: {text}; please report it")))
    })
}

/// Run `work` without the interpreter, in the default floating-point environment; the check it gets asks Python for
/// signals such as Ctrl-C, whose handlers run in the caller's environment.
fn detached<T: Send>(py: Python<'_>, work: impl FnOnce(Check) -> Result<T> + Send) -> PyResult<T> {
    let raised: Mutex<Option<PyErr>> = Mutex::new(None);
    let caller = Environment::current();
    let compute = || {
        let check = || {
            caller.run(|| Python::attach(|py| py.check_signals())).map_err(|error| {
                *raised.lock().expect("one thread uses it") = Some(error);
                Error::Interrupted
            })
        };
        work(&check)
    };
    let result = py.detach(|| Environment::DEFAULT.run(compute));
    result.map_err(|error| raised.into_inner().ok().flatten().unwrap_or_else(|| error.into()))
}
