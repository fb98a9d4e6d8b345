//! The losses for XLA, and so for JAX: handlers of its foreign function interface, which it calls on its own threads with its own
//! buffers. Logits, probabilities and cotangents are read where they lie; of what is one number a row, classes and which rows count,
//! copies are made; and of rows whose targets are no probabilities. Nothing here knows Python.
//!
//! Logits are [..., classes, inner]: classes along any axis are these three by a change of shape, which moves nothing. What is one
//! a row is [..., inner]. Axes that a `vmap` adds are in front; an argument that it does not map has length 1 there. Whatever has length
//! 1 along an axis is repeated along it.
//!
//! An error would reach the caller long after the call, if at all: XLA works asynchronously. So a target that cannot be one makes
//! the loss of its row NaN, and its gradient, unless the row's cotangent is 0: then the caller left the row out. Errors are for what
//! `xent_rs.jax` never does, and for what nobody can help.

mod abi;
mod call;
mod pages;
mod signed;

use std::ffi::{CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

pub use self::abi::layout;
use self::abi::{ApiVersion, CallFrame, ErrorCreateArgs, MetadataExtension};
use self::call::{Call, Operand};
use crate::array::{Array, ArrayMut};
use crate::error::{Error, Result};
use crate::loss::binary::{Binary, binary_cross_entropy};
use crate::loss::cross_entropy::cross_entropy;
use crate::loss::labels::Labels;
use crate::loss::targets::{Problem, Targets};
use crate::loss::{Check, Derivatives, GradOutput, Reduction};
use crate::simd::Environment;

/// A function that XLA calls.
#[derive(Clone, Copy, Debug)]
pub struct Handler {
    /// The name to register it under.
    pub name: &'static str,
    function: unsafe extern "C" fn(*mut CallFrame) -> *mut abi::Error,
}

impl Handler {
    /// Its address, which is what XLA wants.
    pub fn address(self) -> NonNull<c_void> {
        NonNull::new(self.function as *mut c_void).expect("a function has an address")
    }
}

/// All handlers.
///
/// | name | arguments | result |
/// |---|---|---|
/// | `xent_rs_cross_entropy` | logits, targets, and perhaps which rows count | losses |
/// | `xent_rs_cross_entropy_grad` | logits, targets, perhaps which rows count, and the cotangents of the losses | gradient |
/// | `xent_rs_binary_cross_entropy` | logits, targets | losses |
/// | `xent_rs_binary_cross_entropy_grad` | logits, targets, cotangents of the losses | gradient |
pub const HANDLERS: [Handler; 4] = [
    Handler { name: "xent_rs_cross_entropy", function: softmax_loss },
    Handler { name: "xent_rs_cross_entropy_grad", function: softmax_gradient },
    Handler { name: "xent_rs_binary_cross_entropy", function: binary_loss },
    Handler { name: "xent_rs_binary_cross_entropy_grad", function: binary_gradient },
];

/// Nobody interrupts: Ctrl-C is Python's, which no handler may touch, and a handler that was called is finished.
const NO_CHECK: Check = &|| Ok(());

unsafe extern "C" fn softmax_loss(frame: *mut CallFrame) -> *mut abi::Error {
    // SAFETY: XLA calls it with a frame of its own.
    unsafe { handle(frame, |call| softmax(call, false)) }
}

unsafe extern "C" fn softmax_gradient(frame: *mut CallFrame) -> *mut abi::Error {
    // SAFETY: XLA calls it with a frame of its own.
    unsafe { handle(frame, |call| softmax(call, true)) }
}

unsafe extern "C" fn binary_loss(frame: *mut CallFrame) -> *mut abi::Error {
    // SAFETY: XLA calls it with a frame of its own.
    unsafe { handle(frame, |call| binary(call, false)) }
}

unsafe extern "C" fn binary_gradient(frame: *mut CallFrame) -> *mut abi::Error {
    // SAFETY: XLA calls it with a frame of its own.
    unsafe { handle(frame, |call| binary(call, true)) }
}

/// Answer a call: say which interface this is, if that is asked, or do the work. Nothing unwinds into XLA.
///
/// # Safety
/// The frame and all that it points to are what XLA's interface says, and nobody else writes there during the call.
unsafe fn handle(frame: *mut CallFrame, work: impl FnOnce(Call) -> Result<()>) -> *mut abi::Error {
    // SAFETY: the frame is a valid one, by the promise made to this function; it is not written to.
    let frame = unsafe { &*frame };
    // SAFETY: an extension begins with its base, and one of this type is a `MetadataExtension`, whose `metadata` is there to be
    // written.
    unsafe {
        if let Some(extension) = frame.extension_start.as_ref()
            && extension.r#type == abi::XLA_FFI_Extension_Metadata
        {
            let metadata = (*frame.extension_start.cast::<MetadataExtension>()).metadata;
            (*metadata).api_version = ApiVersion {
                struct_size: size_of::<ApiVersion>(),
                extension_start: std::ptr::null_mut(),
                major_version: abi::XLA_FFI_API_MAJOR,
                minor_version: abi::API_MINOR,
            };
            (*metadata).traits = 0;
            return std::ptr::null_mut();
        }
    }
    if frame.stage != abi::XLA_FFI_ExecutionStage_EXECUTE {
        return std::ptr::null_mut();
    }
    // XLA's threads flush subnormal numbers to 0. What a panic leaves behind is dropped.
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: by the promise made to this function.
        Environment::DEFAULT.run(|| work(unsafe { Call::new(frame) }?))
    }));
    let (code, text) = match result {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(error @ Error::Memory(_))) => (abi::XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, error.to_string()),
        Ok(Err(error)) => (abi::XLA_FFI_Error_Code_INVALID_ARGUMENT, error.to_string()),
        Err(_) => (abi::XLA_FFI_Error_Code_INTERNAL, "internal error; please report it".to_owned()),
    };
    // SAFETY: XLA's functions are there in every call that is to be executed.
    unsafe { report(frame, code, &format!("xent_rs: {text}")) }
}

/// An error of XLA's.
///
/// # Safety
/// The frame's `api` is XLA's.
unsafe fn report(frame: &CallFrame, code: c_int, text: &str) -> *mut abi::Error {
    let message = CString::new(text.replace('\0', " ")).unwrap_or_default();
    let mut args = ErrorCreateArgs {
        struct_size: size_of::<ErrorCreateArgs>(),
        extension_start: std::ptr::null_mut(),
        message: message.as_ptr(),
        errc: code,
    };
    // SAFETY: by the promise made to this function; the message lives until the call returns, and XLA copies it.
    unsafe { ((*frame.api).XLA_FFI_Error_Create)(&raw mut args) }
}

/// The loss of each row, or its gradient.
fn softmax(mut call: Call, gradient: bool) -> Result<()> {
    let Operands { logits, targets, cotangents, counts, result } = Operands::of(&mut call, gradient, true)?;
    let (name, rank) = (if gradient { "gradients" } else { "losses" }, logits.shape().len());
    if rank < 2 {
        return Err(Error::Value(format!("logits have shape {:?}; expected two axes or more", logits.shape())));
    }
    let refused = |result: &Operand, expected: &str| {
        let (result, logits) = (result.shape(), logits.shape());
        Err(Error::Value(format!("{name} have shape {result:?}; expected {expected}, with logits of shape {logits:?}")))
    };
    let expected = rank - usize::from(!gradient);
    if result.shape().len() != expected {
        return refused(result, &format!("{expected} axes"));
    }
    let (axis, classes) = (rank - 2, logits.shape()[rank - 2]);
    if classes == 0 {
        return Err(Error::Value("logits have no class; expected one or more".into()));
    }
    let (mut shape, mut row_shape) = (result.shape().to_vec(), result.shape().to_vec());
    if gradient {
        if row_shape.remove(axis) != classes {
            return refused(result, &format!("{classes} on axis {axis}"));
        }
    } else {
        shape.insert(axis, classes);
    }
    let logits = logits.read("logits", &shape, Some(axis))?;
    let mut problem = Problem::new(if targets.dtype().is_integer() {
        Targets::Classes(Labels::read_or_leave_out(&targets.read("targets", &row_shape, None)?, classes, NO_CHECK)?)
    } else {
        targets.check_floating("targets")?;
        Targets::Probabilities(targets.read("targets", &shape, Some(axis))?)
    });
    if let Some(counts) = counts {
        counts.check_bool("values of where")?;
        problem.sample_weight = Some(counts.read("values of where", &row_shape, None)?.copy("where", NO_CHECK)?);
    }
    let cotangents = cotangents.map(|cotangents| cotangents.read("cotangents", &row_shape, None)).transpose()?;
    let (own_shape, own_axis) = if gradient { (&shape, Some(axis)) } else { (&row_shape, None) };
    let write_all = |problem: &Problem, result: &mut Operand| {
        drive(&logits, problem, cotangents.as_ref(), result.write(name, own_shape, own_axis)?)
    };
    let without_target = match write_all(&problem, result) {
        Ok(()) => problem.rows_without_class(),
        // Not all of them are probabilities.
        Err(Error::Value(_)) => {
            let targets = targets.read("targets", &shape, Some(axis))?;
            let signed::Rows { below_0, nan } = signed::Rows::of(&targets, problem.sample_weight.as_deref())?;
            problem.leave_out(logits.rows(), &below_0)?;
            problem.leave_out(logits.rows(), &nan)?;
            write_all(&problem, result)?;
            let mut out = result.write(name, own_shape, own_axis)?;
            signed::write(&below_0, &logits, &targets, cotangents.as_ref(), &mut out.all())?;
            nan
        }
        Err(error) => return Err(error),
    };
    if without_target.is_empty() {
        return Ok(());
    }
    let mut out = result.write(name, own_shape, own_axis)?;
    let mut out = out.all();
    for row in without_target {
        match &cotangents {
            None => out.set(row, &[f64::NAN]),
            Some(cotangents) if cotangents.number(row) != 0.0 => out.row(row).fill(f64::NAN),
            Some(_) => (), // 0, as of every row that was left out
        }
    }
    Ok(())
}

/// Write the loss of each row, or its gradient if there are cotangents.
fn drive(logits: &Array, problem: &Problem, cotangents: Option<&Array>, mut out: ArrayMut) -> Result<()> {
    match cotangents {
        None => cross_entropy(logits, problem, Reduction::None, None, Some(&mut out), None, NO_CHECK),
        Some(cotangents) => {
            let mut derivatives = derivatives(out, cotangents);
            cross_entropy(logits, problem, Reduction::None, None, None, Some(&mut derivatives), NO_CHECK)
        }
    }
    .map(drop)
}

/// The binary loss of each element, or its gradient.
fn binary(mut call: Call, gradient: bool) -> Result<()> {
    let Operands { logits, targets, cotangents, result, .. } = Operands::of(&mut call, gradient, false)?;
    let shape = result.shape().to_vec();
    if targets.dtype().is_integer() {
        return Err(Error::Type("targets are integers; expected bool or a floating dtype".into()));
    }
    let problem = Binary {
        logits: logits.read("logits", &shape, None)?,
        targets: targets.read("targets", &shape, None)?,
        weight: None,
        pos_weight: None,
        ignore_index: None,
        label_smoothing: 0.0,
        focal_gamma: 0.0,
    };
    let cotangents = cotangents.map(|cotangents| cotangents.read("cotangents", &shape, None)).transpose()?;
    let mut out = result.write(if gradient { "gradients" } else { "losses" }, &shape, None)?;
    match &cotangents {
        None => binary_cross_entropy(&problem, Reduction::None, None, Some(&mut out), None, NO_CHECK)?,
        Some(cotangents) => {
            let mut derivatives = derivatives(out, cotangents);
            binary_cross_entropy(&problem, Reduction::None, None, None, Some(&mut derivatives), NO_CHECK)?
        }
    };
    Ok(())
}

/// A gradient, multiplied by these.
fn derivatives<'a>(gradient: ArrayMut<'a>, cotangents: &Array<'a>) -> Derivatives<'a> {
    // Buffers of XLA that are no results yet may hold anything after an error: nothing is given.
    Derivatives { gradient, hessian: None, grad_output: GradOutput::Each(cotangents.clone()), given: false }
}

/// The operands of a call, by name.
struct Operands<'a, 'b> {
    logits: &'b Operand<'a>,
    targets: &'b Operand<'a>,
    /// Of a gradient.
    cotangents: Option<&'b Operand<'a>>,
    /// Which rows count, if not all do.
    counts: Option<&'b Operand<'a>>,
    result: &'b mut Operand<'a>,
}

impl<'a, 'b> Operands<'a, 'b> {
    /// Those of a call for a gradient, or for losses; perhaps of a loss that can leave rows out.
    fn of(call: &'b mut Call<'a>, gradient: bool, leaves_out: bool) -> Result<Self> {
        let (cotangents, counts) = match (gradient, &call.arguments[..]) {
            (false, [_, _]) => (None, None),
            (false, [_, _, counts]) if leaves_out => (None, Some(counts)),
            (true, [_, _, cotangents]) => (Some(cotangents), None),
            (true, [_, _, counts, cotangents]) if leaves_out => (Some(cotangents), Some(counts)),
            (_, arguments) => {
                let perhaps = if leaves_out { ", perhaps which rows count" } else { "" };
                let last = if gradient { ", cotangents" } else { "" };
                return Err(Error::Value(format!(
                    "there are {} arguments; expected logits, targets{perhaps}{last}",
                    arguments.len()
                )));
            }
        };
        let results = call.results.len();
        let [result] = &mut call.results[..] else {
            return Err(Error::Value(format!("there are {results} results; expected 1")));
        };
        let (logits, targets) = (&call.arguments[0], &call.arguments[1]);
        for (operand, name) in [(Some(logits), "logits"), (cotangents, "cotangents"), (Some(&*result), "results")] {
            operand.map_or(Ok(()), |operand| operand.check_floating(name))?;
        }
        Ok(Self { logits, targets, cotangents, counts, result })
    }
}

#[cfg(test)]
mod tests {
    use super::abi::{Api, Args, Buffer, ExtensionBase, Metadata, Rets};
    use super::*;
    use std::cell::RefCell;
    use std::ffi::CStr;
    use std::ptr::null_mut;

    thread_local! {
        /// The error that was made last: its code and its message.
        static MADE: RefCell<(c_int, String)> = const { RefCell::new((0, String::new())) };
    }

    unsafe extern "C" fn make_error(args: *mut ErrorCreateArgs) -> *mut abi::Error {
        // SAFETY: `report` hands over what XLA asks for.
        let (code, message) = unsafe { ((*args).errc, CStr::from_ptr((*args).message)) };
        MADE.with(|made| *made.borrow_mut() = (code, message.to_string_lossy().into_owned()));
        NonNull::dangling().as_ptr()
    }

    fn version() -> ApiVersion {
        ApiVersion { struct_size: 0, extension_start: null_mut(), major_version: -1, minor_version: -1 }
    }

    fn buffer<T>(dtype: c_int, values: &mut [T], dims: &mut [i64]) -> Buffer {
        let rank = dims.len() as i64;
        let (data, dims) = (values.as_mut_ptr().cast(), dims.as_mut_ptr());
        Buffer { struct_size: size_of::<Buffer>(), extension_start: null_mut(), dtype, data, rank, dims }
    }

    /// Call a function with buffers, the last of which is the result; the error, if there is one.
    fn call(buffers: &mut [Buffer], stage: c_int, work: impl FnOnce(Call) -> Result<()>) -> Option<(c_int, String)> {
        let api = Api {
            struct_size: size_of::<Api>(),
            extension_start: null_mut(),
            api_version: version(),
            internal_api: null_mut(),
            XLA_FFI_Error_Create: make_error,
        };
        let mut places: Vec<*mut c_void> = buffers.iter_mut().map(|buffer| (&raw mut *buffer).cast()).collect();
        let mut types = vec![abi::XLA_FFI_ArgType_BUFFER; places.len()];
        let size = places.len() as i64 - 1;
        let (args, rets) = places.split_at_mut(size as usize);
        let mut frame = CallFrame {
            struct_size: size_of::<CallFrame>(),
            extension_start: null_mut(),
            api: &raw const api,
            ctx: null_mut(),
            stage,
            args: Args {
                struct_size: 0,
                extension_start: null_mut(),
                size,
                types: types.as_mut_ptr(),
                args: args.as_mut_ptr(),
            },
            rets: Rets {
                struct_size: 0,
                extension_start: null_mut(),
                size: 1,
                types: types.as_mut_ptr(),
                rets: rets.as_mut_ptr(),
            },
        };
        // SAFETY: the frame is what the interface says, and nobody else has it.
        let error = unsafe { handle(&raw mut frame, work) };
        (!error.is_null()).then(|| MADE.with(|made| made.borrow().clone()))
    }

    #[test]
    fn a_loss_is_written_where_xla_wants_it() {
        let mut logits = [0f32, 1.0, 2.0, 5.0, 5.0, 5.0];
        let (mut labels, mut losses) = ([2i32, 7], [0f32; 2]);
        let (mut of_logits, mut of_rows) = ([2, 3, 1], [2, 1]);
        let mut of_result = of_rows;
        let mut buffers = [
            buffer(abi::XLA_FFI_DataType_F32, &mut logits, &mut of_logits),
            buffer(abi::XLA_FFI_DataType_S32, &mut labels, &mut of_rows),
            buffer(abi::XLA_FFI_DataType_F32, &mut losses, &mut of_result),
        ];
        let stage = abi::XLA_FFI_ExecutionStage_EXECUTE;
        assert_eq!(call(&mut buffers, stage - 1, |_| panic!("it is not to be executed")), None);
        assert_eq!(call(&mut buffers, stage, |call| softmax(call, false)), None);
        assert!((losses[0] - 0.407_606).abs() < 1e-6, "{losses:?}");
        assert!(losses[1].is_nan());
    }

    #[test]
    #[cfg_attr(target_family = "wasm", ignore = "a panic ends the program there")]
    fn errors_and_panics_are_reported_and_do_not_unwind() {
        let stage = abi::XLA_FFI_ExecutionStage_EXECUTE;
        let (mut values, mut dims) = ([0f32; 4], [4i64]);
        let mut buffers = [buffer(abi::XLA_FFI_DataType_F32, &mut values, &mut dims)];
        let (code, text) = call(&mut buffers, stage, |call| softmax(call, false)).unwrap();
        assert_eq!(code, abi::XLA_FFI_Error_Code_INVALID_ARGUMENT);
        assert!(text.starts_with("xent_rs: there are 0 arguments; expected"), "{text}");
        let full = Err(Error::Memory("none left".into()));
        let expected = (abi::XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "xent_rs: none left".to_owned());
        assert_eq!(call(&mut buffers, stage, |_| full), Some(expected));
        let expected = (abi::XLA_FFI_Error_Code_INTERNAL, "xent_rs: internal error; please report it".to_owned());
        assert_eq!(call(&mut buffers, stage, |_| panic!("of this test")), Some(expected));
        let mut large = [i64::MAX, i64::MAX, 0];
        let mut buffers = [buffer(abi::XLA_FFI_DataType_F32, &mut values, &mut large)];
        let (_, text) = call(&mut buffers, stage, |_| Ok(())).unwrap();
        assert!(text.ends_with("more than fits into memory"), "{text}");
    }

    #[test]
    fn a_question_for_the_version_is_answered_and_nothing_else_looked_at() {
        let mut metadata = Metadata { struct_size: size_of::<Metadata>(), api_version: version(), traits: 9 };
        let extension_base = ExtensionBase {
            struct_size: size_of::<MetadataExtension>(),
            r#type: abi::XLA_FFI_Extension_Metadata,
            next: null_mut(),
        };
        let mut extension = MetadataExtension { extension_base, metadata: &raw mut metadata };
        let list = || (0, null_mut(), null_mut(), null_mut());
        let (size, extension_start, types, args) = list();
        let args = Args { struct_size: 0, extension_start, size, types, args };
        let (size, extension_start, types, rets) = list();
        let rets = Rets { struct_size: 0, extension_start, size, types, rets };
        let mut frame = CallFrame {
            struct_size: size_of::<CallFrame>(),
            extension_start: (&raw mut extension).cast(),
            api: null_mut(),
            ctx: null_mut(),
            stage: abi::XLA_FFI_ExecutionStage_EXECUTE,
            args,
            rets,
        };
        for handler in HANDLERS {
            metadata.api_version = version();
            // SAFETY: the frame is what the interface says, and nobody else has it.
            assert!(unsafe { (handler.function)(&raw mut frame) }.is_null());
            assert_eq!((metadata.api_version.major_version, metadata.api_version.minor_version), (0, abi::API_MINOR));
            assert_eq!(metadata.traits, 0);
        }
    }
}
