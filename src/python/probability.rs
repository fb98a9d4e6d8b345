//! What `xent_rs.probability`, which is written in Python, has of this module: arguments as arrays.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use super::arrays::as_array as private_array;
use super::dlpack::is_bare_bfloat16;
use super::guard;

/// An argument called `name` as an array of a dtype that NumPy computes with, of the same memory where it can.
#[pyfunction]
pub(super) fn as_array<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let array = private_array(object, name)?;
        if !is_bare_bfloat16(&array.dtype()) {
            return Ok(array.into_any());
        }
        // The upper half of a float32.
        let bits = array.call_method1("view", ("uint16",))?.call_method1("astype", ("uint32",))?;
        bits.lshift(16)?.call_method1("view", ("float32",))
    })
}
