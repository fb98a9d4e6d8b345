//! The handlers of [`crate::xla`] for whoever registers them with XLA: JAX, from Python.

use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

use super::guard;
use crate::xla::{HANDLERS, layout};

/// The handlers by the names to register them under.
#[pyfunction]
pub(super) fn xla_handlers(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    // A handler cannot raise: what the environment has to say is said here.
    guard(|| {
        let handlers = PyDict::new(py);
        for handler in HANDLERS {
            // SAFETY: the pointer is that of a function, as XLA expects of a capsule of this name, and Python never unloads
            // what it is in.
            let capsule = unsafe { PyCapsule::new_with_pointer(py, handler.address(), c"xla._CUSTOM_CALL_TARGET") }?;
            handlers.set_item(handler.name, capsule)?;
        }
        Ok(handlers)
    })
}

/// What expressions of C are for XLA's header, by the declarations here.
#[pyfunction]
pub(super) fn xla_layout(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let expressions = PyDict::new(py);
    for (expression, value) in layout() {
        expressions.set_item(expression, value)?;
    }
    Ok(expressions)
}
