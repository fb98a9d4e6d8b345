//! How NumPy comes to the memory of [`buffers`]: by its own interface for allocators (NEP 49), so that the array owns
//! its memory and is like any other, and what allocated it is also what frees it.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;

use numpy::{PY_ARRAY_API, get_array_module};
use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::buffers;

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
struct Functions {
    set: Set,
    get: Get,
}

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
                Ok(Some(Self { set: table.add(304).cast::<Set>().read(), get: table.add(305).cast::<Get>().read() }))
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

/// Our handler, which leaves to `default`, NumPy's own, whatever is not of [`buffers`].
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

/// Run `make`, in which NumPy takes the memory of large arrays from [`buffers`].
///
/// A handler that a user has set stays in effect.
pub(super) fn with_buffers<T>(py: Python<'_>, make: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
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
// a `pointer` came from this handler's `malloc`, `calloc` or `realloc`, and so from `buffers` or from NumPy's own.

unsafe extern "C" fn malloc(context: *mut c_void, size: usize) -> *mut c_void {
    let buffer = if size < buffers::LARGE { None } else { buffers::take(size) };
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
    let Some(before) = buffers::size(pointer.cast()) else {
        let default = context.cast::<Handler>();
        // SAFETY: see above; the pointer is not of `buffers`.
        return unsafe { ((*default).realloc)((*default).context, pointer, size) };
    };
    // SAFETY: both pieces are apart, as long as is copied, and what NumPy gets in place of the old one.
    unsafe {
        let moved = malloc(context, size);
        if !moved.is_null() {
            std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), moved.cast(), before.min(size));
            buffers::give(pointer.cast());
        }
        moved
    }
}

unsafe extern "C" fn free(context: *mut c_void, pointer: *mut c_void, size: usize) {
    // SAFETY: NumPy frees what no array uses any more.
    if !unsafe { buffers::give(pointer.cast()) } {
        let default = context.cast::<Handler>();
        // SAFETY: see above; the pointer is not of `buffers`.
        unsafe { ((*default).free)((*default).context, pointer, size) };
    }
}
