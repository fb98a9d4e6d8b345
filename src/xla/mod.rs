//! The losses for XLA, and so for JAX: handlers of its foreign function interface, which it calls on its own threads with its own
//! buffers. Nothing is copied, and nothing here knows Python.
//!
//! Logits are [..., classes, inner]: classes along any axis are these three by a change of shape, which moves nothing. What is one
//! a row is [..., inner]. Axes that a `vmap` adds are in front; an argument that it does not map has length 1 there.
//!
//! An error would reach the caller long after the call, if at all: XLA works asynchronously. So a target that cannot be one makes
//! the loss of its row NaN, and its gradient, unless the row's cotangent is 0: then the caller left the row out. Errors are for what
//! `xent_rs.jax` never does, and for what nobody can help.

mod abi;
mod call;
mod pages;

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
/// | `xent_rs_cross_entropy_grad` | logits, targets, cotangents of the losses, and perhaps which rows count | gradient |
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
    let Operands { logits, targets, cotangents, counts, result } = Operands::of(&mut call, gradient)?;
    let (name, rank) = (if gradient { "gradients" } else { "losses" }, logits.shape().len());
    if rank < 2 || result.shape().len() + usize::from(!gradient) != rank {
        let (logits, result) = (logits.shape(), result.shape());
        return Err(Error::Value(format!(
            "logits have shape {logits:?} and {name} {result:?}; expected two axes or more"
        )));
    }
    let (axis, classes) = (rank - 2, logits.shape()[rank - 2]);
    let (mut shape, mut row_shape) = (result.shape().to_vec(), result.shape().to_vec());
    if gradient {
        row_shape.remove(axis);
    } else {
        shape.insert(axis, classes);
    }
    let logits = logits.read("logits", &shape, Some(axis))?;
    let targets = if targets.dtype().is_integer() {
        Targets::Classes(Labels::read_or_leave_out(&targets.read("targets", &row_shape, None)?, classes, NO_CHECK)?)
    } else {
        targets.check_floating("targets")?;
        Targets::Probabilities(targets.read("targets", &shape, Some(axis))?)
    };
    let mut problem = Problem::new(targets);
    if let Some(counts) = counts {
        problem.sample_weight = Some(counts.read("where", &row_shape, None)?.copy("where", NO_CHECK)?);
    }
    let cotangents = cotangents.map(|cotangents| cotangents.read("cotangents", &row_shape, None)).transpose()?;
    let (own_shape, own_axis) = if gradient { (&shape, Some(axis)) } else { (&row_shape, None) };
    let mut drive = |problem: &Problem| {
        let mut out = result.write(name, own_shape, own_axis)?;
        let Some(cotangents) = &cotangents else {
            return cross_entropy(&logits, problem, Reduction::None, None, Some(&mut out), None, NO_CHECK);
        };
        let mut derivatives = derivatives(out, cotangents);
        cross_entropy(&logits, problem, Reduction::None, None, None, Some(&mut derivatives), NO_CHECK)
    };
    let without_target = match drive(&problem) {
        Ok(_) => problem.rows_without_class(),
        Err(Error::Value(_)) => {
            let rows = problem.rows_without_distribution(logits.rows(), classes);
            problem.leave_out(logits.rows(), &rows)?;
            drive(&problem)?;
            rows
        }
        Err(error) => return Err(error),
    };
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

/// The binary loss of each element, or its gradient.
fn binary(mut call: Call, gradient: bool) -> Result<()> {
    let Operands { logits, targets, cotangents, counts: None, result } = Operands::of(&mut call, gradient)? else {
        return Err(Error::Value("there is one argument too many".into()));
    };
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
    /// Those of a call for a gradient, or for losses.
    fn of(call: &'b mut Call<'a>, gradient: bool) -> Result<Self> {
        let (cotangents, counts) = match (gradient, &call.arguments[..]) {
            (false, [_, _]) => (None, None),
            (false, [_, _, counts]) => (None, Some(counts)),
            (true, [_, _, cotangents]) => (Some(cotangents), None),
            (true, [_, _, cotangents, counts]) => (Some(cotangents), Some(counts)),
            (_, arguments) => {
                let expected = "logits, targets, cotangents for a gradient, and perhaps which rows count";
                return Err(Error::Value(format!("there are {} arguments; expected {expected}", arguments.len())));
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
