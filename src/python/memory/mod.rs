//! Where large results lie: in memory that an earlier one left, if they can. This belongs to the binding and is no
//! layer of the core: a driver writes to whatever memory it is given, and without this one everything works, only slower.
//!
//! The memory is that of [`store`]. NumPy comes to it by its own interface for allocators (NEP 49), so that the array
//! owns its memory and is like any other, and what allocated it is also what frees it. `XENT_RS_KEEP_MEMORY=0` leaves
//! all results to NumPy's allocator.

mod store;

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

use numpy::{PY_ARRAY_API, get_array_module};
use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::error::{Error, Result};

/// The bytes that are kept for the next results.
pub(super) fn kept() -> usize {
    store::kept()
}

/// Give back to the system what is kept, and return how many bytes that were.
pub(super) fn release() -> usize {
    store::release()
}

/// Whether results leave their memory to the next.
///
/// # Errors
/// [`Error::Value`] if `XENT_RS_KEEP_MEMORY` is set to something else than 0 or 1.
pub(super) fn keeps() -> Result<bool> {
    static KEEPS: OnceLock<Result<bool>> = OnceLock::new();
    let read = || match std::env::var_os("XENT_RS_KEEP_MEMORY").unwrap_or_default().to_string_lossy().as_ref() {
        "" | "1" => Ok(true),
        "0" => Ok(false),
        text => Err(Error::Value(format!("XENT_RS_KEEP_MEMORY is '{text}'; expected 0 or 1"))),
    };
    KEEPS.get_or_init(read).clone()
}

/// NumPy's `PyDataMem_Handler`, version 1.
#[repr(C)]
struct Handler {
    name: [c_char; 127],
    version: u8,
    context: *mut c_void,
    malloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
    calloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    realloc: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, *mut c_void, usize),
}

/// What NumPy calls the capsule around one.
const CAPSULE: &CStr = c"mem_handler";

/// The handler in effect unless a user sets another.
const DEFAULT: &CStr = c"default_allocator";

/// How NumPy 1.22 numbers its interface, the first with handlers.
const FIRST_VERSION: u32 = 0xf;

/// `PyDataMem_SetHandler` and `PyDataMem_GetHandler`: both return a new reference, or null with an exception set.
///
/// The crate `numpy` lists both and binds neither, since it supports older NumPy; so they are taken from NumPy's table of
/// functions by their places in it, which are part of its binary interface and never change
/// (`numpy/_core/code_generators/numpy_api.py` has them as 304 and 305).
struct Functions {
    set: Set,
    get: Get,
}

const SET: usize = 304;
const GET: usize = 305;

type Set = unsafe extern "C" fn(*mut PyObject) -> *mut PyObject;
type Get = unsafe extern "C" fn() -> *mut PyObject;

impl Functions {
    /// NumPy's; `None` if it is older than handlers are.
    fn of_numpy(py: Python<'_>) -> PyResult<Option<&Self>> {
        static FUNCTIONS: PyOnceLock<Option<Functions>> = PyOnceLock::new();
        let load = || {
            // SAFETY: the call takes and changes nothing.
            if unsafe { PY_ARRAY_API.PyArray_GetNDArrayCFeatureVersion(py) } < FIRST_VERSION {
                return Ok(None);
            }
            let capsule = get_array_module(py)?.getattr(intern!(py, "_ARRAY_API"))?;
            // SAFETY: the capsule is NumPy's table of functions, which lives as long as the process; from that version
            // on it has these two at these places.
            unsafe {
                let table = ffi::PyCapsule_GetPointer(capsule.as_ptr(), std::ptr::null()).cast::<*const c_void>();
                if table.is_null() {
                    return Err(PyErr::fetch(py));
                }
                Ok(Some(Self { set: table.add(SET).cast::<Set>().read(), get: table.add(GET).cast::<Get>().read() }))
            }
        };
        FUNCTIONS.get_or_try_init(py, load).map(Option::as_ref)
    }

    fn get<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: `py` shows that the interpreter is attached; for the rest see `Functions`.
        unsafe { Bound::from_owned_ptr_or_err(py, (self.get)()) }
    }

    /// Put `handler` in effect in this thread's context and return the one before.
    fn set<'py>(&self, handler: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: as above; the call keeps a reference of its own to the capsule.
        unsafe { Bound::from_owned_ptr_or_err(handler.py(), (self.set)(handler.as_ptr())) }
    }
}

/// The handler in a capsule.
fn in_capsule(capsule: &Bound<'_, PyAny>) -> PyResult<NonNull<Handler>> {
    // SAFETY: the object is live; what is no such capsule gives null and an exception.
    let handler = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), CAPSULE.as_ptr()) };
    NonNull::new(handler.cast()).ok_or_else(|| PyErr::fetch(capsule.py()))
}

/// Our handler, which leaves to `default`, NumPy's own, whatever is not of [`store`].
fn ours(py: Python<'_>, default: NonNull<Handler>) -> PyResult<&Bound<'_, PyAny>> {
    static OURS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let make = || {
        let mut name = [0; 127];
        for (to, from) in name.iter_mut().zip(*b"xent_rs") {
            *to = from as c_char;
        }
        let handler = Handler { name, version: 1, context: default.as_ptr().cast(), malloc, calloc, realloc, free };
        // SAFETY: arrays may live as long as the process, and so does the handler.
        let capsule = unsafe { ffi::PyCapsule_New(Box::into_raw(Box::new(handler)).cast(), CAPSULE.as_ptr(), None) };
        // SAFETY: a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(py, capsule) }.map(Bound::unbind)
    };
    Ok(OURS.get_or_try_init(py, make)?.bind(py))
}

/// Run `make`, which makes a result of so many bytes: NumPy takes the memory of a large one from [`store`].
///
/// A handler that a user has set stays in effect.
pub(super) fn for_result<T>(py: Python<'_>, bytes: usize, make: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    if bytes < store::LARGE || !keeps()? {
        return make();
    }
    let Some(functions) = Functions::of_numpy(py)? else { return make() };
    let current = in_capsule(&functions.get(py)?)?;
    // SAFETY: handlers live as long as an array may, and a name ends with 0.
    if unsafe { CStr::from_ptr((&raw const (*current.as_ptr()).name).cast()) } != DEFAULT {
        return make();
    }
    let before = functions.set(ours(py, current)?)?;
    let result = make();
    let restored = functions.set(&before);
    result.and_then(|result| restored.map(|_| result))
}

// What NumPy calls, from any thread that is attached. `context` is NumPy's own handler, and lives as long as NumPy;
// a `pointer` came from this handler's `malloc`, `calloc` or `realloc`, and so from `store` or from NumPy's own.

unsafe extern "C" fn malloc(context: *mut c_void, size: usize) -> *mut c_void {
    let buffer = if size < store::LARGE { None } else { store::take(size) };
    buffer.map_or_else(
        || {
            let default = context.cast::<Handler>();
            // SAFETY: see above.
            unsafe { ((*default).malloc)((*default).context, size) }
        },
        |buffer| buffer.as_ptr().cast(),
    )
}

unsafe extern "C" fn calloc(context: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let default = context.cast::<Handler>();
    // SAFETY: see above.
    unsafe { ((*default).calloc)((*default).context, count, size) }
}

unsafe extern "C" fn realloc(context: *mut c_void, pointer: *mut c_void, size: usize) -> *mut c_void {
    let Some(before) = store::size(pointer.cast()) else {
        let default = context.cast::<Handler>();
        // SAFETY: see above; the pointer is not of `store`.
        return unsafe { ((*default).realloc)((*default).context, pointer, size) };
    };
    // SAFETY: both pieces are apart, as long as is copied, and what NumPy gets in place of the old one.
    unsafe {
        let moved = malloc(context, size);
        if !moved.is_null() {
            std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), moved.cast(), before.min(size));
            store::give(pointer.cast());
        }
        moved
    }
}

unsafe extern "C" fn free(context: *mut c_void, pointer: *mut c_void, size: usize) {
    // SAFETY: NumPy frees what no array uses any more.
    if !unsafe { store::give(pointer.cast()) } {
        let default = context.cast::<Handler>();
        // SAFETY: see above; the pointer is not of `store`.
        unsafe { ((*default).free)((*default).context, pointer, size) };
    }
}
