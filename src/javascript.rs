//! The functions that `python/xent_rs/explore/kernels.js` calls in a WebAssembly module without imports: the only place that
//! knows JavaScript.
//!
//! Nothing is computed here: each function describes arrays in the module's memory and calls the driver of its loss. Arrays are
//! rows of classes, side by side, of float32 or float64, as `size` says: the bytes of a number. Gradients, probabilities and the
//! losses of rows are of the same type, weights are float64, classes are int32. An array that is not given has address 0.
//!
//! JavaScript has checked shapes and options, so a function fails for want of memory alone; it returns whether it did not.

use std::cell::RefCell;

use crate::array::{Array, ArrayMut, Layout};
use crate::dtype::Dtype;
use crate::kernel::focus::Focus;
use crate::loss::binary::{self, Binary};
use crate::loss::cross_entropy;
use crate::loss::labels::Labels;
use crate::loss::statistics::{self, Columns};
use crate::loss::targets::{Problem, Targets};
use crate::loss::{Derivatives, GradOutput, Reduction, softmax as normalized};
use crate::row::Transform;

/// What arrays are aligned to.
const UNIT: usize = 16;

thread_local! {
    /// Where JavaScript puts arrays and finds results.
    static ROOM: RefCell<Vec<[u64; UNIT / 8]>> = const { RefCell::new(Vec::new()) };
}

/// The address of `bytes` bytes, aligned to 16, until the next call; 0 if there is no memory for them.
#[unsafe(no_mangle)]
pub extern "C" fn room(bytes: usize) -> *mut u8 {
    ROOM.with_borrow_mut(|room| {
        let reserved = room.try_reserve_exact(bytes.div_ceil(UNIT));
        reserved.map_or(std::ptr::null_mut(), |()| room.as_mut_ptr().cast())
    })
}

/// The losses of cross-entropy, a number a row, and their gradient.
///
/// Targets are int32 classes if `target_size` is 0, and rows of `ignore_index` do not count; else probabilities of that many bytes.
/// A `softcap` of 0 is none.
///
/// # Safety
/// The arrays lie at these addresses in the room, the results apart from everything else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cross_entropy_with_grad(
    size: usize,
    rows: usize,
    classes: usize,
    logits: *mut u8,
    target_size: usize,
    targets: *mut u8,
    ignore_index: i32,
    weight: *mut u8,
    label_smoothing: f64,
    z_loss: f64,
    softcap: f64,
    temperature: f64,
    focal_gamma: f64,
    poly_epsilon: f64,
    losses: *mut u8,
    gradient: *mut u8,
) -> bool {
    let is_focused = focal_gamma != 0.0 || poly_epsilon != 0.0;
    // SAFETY: the caller's promise.
    unsafe {
        let targets = if target_size == 0 {
            let targets = array(targets, Dtype::I32, rows, 1);
            let labels = Labels::read("targets", &targets, classes, Some(ignore_index.into()), &|| Ok(()));
            let Ok(labels) = labels else { return false };
            Targets::Classes(labels)
        } else {
            Targets::Probabilities(array(targets, dtype(target_size), rows, classes))
        };
        let weight = (!weight.is_null()).then(|| array(weight, Dtype::F64, classes, 1).copy("weight", &|| Ok(())));
        let Ok(weight) = weight.transpose() else { return false };
        let problem = Problem {
            transform: transform(temperature, softcap),
            weight,
            label_smoothing,
            z_loss,
            focus: is_focused.then_some(Focus { gamma: focal_gamma, epsilon: poly_epsilon }),
            ..Problem::new(targets)
        };
        drive(dtype(size), [rows, classes], logits, &problem, losses, gradient)
    }
}

/// The divergence of the softmax of teachers' logits from that of the logits, a number a row, and its gradient.
///
/// # Safety
/// As for [`cross_entropy_with_grad`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kl_divergence_with_grad(
    size: usize,
    rows: usize,
    classes: usize,
    logits: *mut u8,
    target_size: usize,
    target_logits: *mut u8,
    temperature: f64,
    losses: *mut u8,
    gradient: *mut u8,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let teacher = array(target_logits, dtype(target_size), rows, classes);
        let problem = Problem { transform: transform(temperature, 0.0), ..Problem::new(Targets::Teacher(teacher)) };
        drive(dtype(size), [rows, classes], logits, &problem, losses, gradient)
    }
}

/// The losses of binary cross-entropy, elementwise, and their gradient. Weights are float64, one an element.
///
/// # Safety
/// As for [`cross_entropy_with_grad`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn binary_cross_entropy_with_grad(
    size: usize,
    count: usize,
    logits: *mut u8,
    target_size: usize,
    targets: *mut u8,
    weight: *mut u8,
    pos_weight: *mut u8,
    label_smoothing: f64,
    focal_gamma: f64,
    losses: *mut u8,
    gradient: *mut u8,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let weights = |place: *mut u8| (!place.is_null()).then(|| array(place, Dtype::F64, count, 1));
        let problem = Binary {
            logits: array(logits, dtype(size), count, 1),
            targets: array(targets, dtype(target_size), count, 1),
            weight: weights(weight),
            pos_weight: weights(pos_weight),
            ignore_index: None,
            label_smoothing,
            focal_gamma,
        };
        let mut losses = array_mut(losses, dtype(size), count, 1);
        let mut derivatives = derivatives(array_mut(gradient, dtype(size), count, 1));
        let (losses, derivatives) = (Some(&mut losses), Some(&mut derivatives));
        binary::binary_cross_entropy(&problem, Reduction::None, None, losses, derivatives, &|| Ok(())).is_ok()
    }
}

/// The softmax of each row, or its logarithm if `log` is not 0.
///
/// # Safety
/// As for [`cross_entropy_with_grad`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softmax(
    size: usize,
    rows: usize,
    classes: usize,
    logits: *mut u8,
    temperature: f64,
    log: u32,
    out: *mut u8,
) -> bool {
    // SAFETY: the caller's promise.
    let (logits, mut out) =
        unsafe { (array(logits, dtype(size), rows, classes), array_mut(out, dtype(size), rows, classes)) };
    normalized::softmax(&logits, transform(temperature, 0.0), log != 0, &mut out, &|| Ok(())).is_ok()
}

/// What can be told of each row. Its class and the rank of its target are float64; what is said of targets is written if there are
/// int32 `targets`.
///
/// # Safety
/// As for [`cross_entropy_with_grad`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn row_statistics(
    size: usize,
    rows: usize,
    classes: usize,
    logits: *mut u8,
    targets: *mut u8,
    softcap: f64,
    temperature: f64,
    log_sum_exp: *mut u8,
    argmax: *mut u8,
    max_probability: *mut u8,
    entropy: *mut u8,
    target_log_probability: *mut u8,
    target_rank: *mut u8,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let targets = (!targets.is_null()).then(|| array(targets, Dtype::I32, rows, 1));
        let labels = targets.map(|targets| Labels::read("targets", &targets, classes, None, &|| Ok(())));
        let Ok(labels) = labels.transpose() else { return false };
        let numbers = |place| array_mut(place, dtype(size), rows, 1);
        let classes_of = |place| array_mut(place, Dtype::F64, rows, 1);
        let mut target = (numbers(target_log_probability), classes_of(target_rank));
        let columns = Columns {
            log_sum_exp: &mut numbers(log_sum_exp),
            argmax: &mut classes_of(argmax),
            max_probability: &mut numbers(max_probability),
            entropy: &mut numbers(entropy),
            target: labels.is_some().then_some((&mut target.0, &mut target.1)),
        };
        let logits = array(logits, dtype(size), rows, classes);
        statistics::row_statistics(&logits, labels.as_ref(), transform(temperature, softcap), columns, &|| Ok(()))
            .is_ok()
    }
}

/// A softmax loss of each row and its gradient.
///
/// # Safety
/// As for [`cross_entropy_with_grad`].
unsafe fn drive(
    dtype: Dtype,
    [rows, classes]: [usize; 2],
    logits: *mut u8,
    problem: &Problem,
    losses: *mut u8,
    gradient: *mut u8,
) -> bool {
    // SAFETY: the caller's promise.
    let (logits, mut losses, gradient) = unsafe {
        let gradient = array_mut(gradient, dtype, rows, classes);
        (array(logits, dtype, rows, classes), array_mut(losses, dtype, rows, 1), gradient)
    };
    let mut derivatives = derivatives(gradient);
    let (losses, derivatives) = (Some(&mut losses), Some(&mut derivatives));
    cross_entropy::cross_entropy(&logits, problem, Reduction::None, None, losses, derivatives, &|| Ok(())).is_ok()
}

/// The gradient alone, as it is.
fn derivatives(gradient: ArrayMut<'static>) -> Derivatives<'static> {
    Derivatives { gradient, hessian: None, grad_output: GradOutput::Scalar(1.0), given: false }
}

/// What becomes of logits; a `softcap` of 0 is none.
fn transform(temperature: f64, softcap: f64) -> Transform {
    Transform::new(temperature, (softcap != 0.0).then_some(softcap))
}

/// The type of numbers of `size` bytes.
fn dtype(size: usize) -> Dtype {
    if size == Dtype::F64.size() { Dtype::F64 } else { Dtype::F32 }
}

/// Where rows of classes lie side by side.
fn with_layout<T>(base: *mut u8, dtype: Dtype, shape: [usize; 2], make: impl FnOnce(&Layout) -> T) -> T {
    let strides = [(shape[1] * dtype.size()).cast_signed(), dtype.size().cast_signed()];
    make(&Layout { base, dtype, swapped: false, shape: &shape, strides: &strides })
}

/// An array that is read.
///
/// # Safety
/// It lies there until the function that JavaScript called returns.
unsafe fn array(base: *mut u8, dtype: Dtype, rows: usize, classes: usize) -> Array<'static> {
    // SAFETY: the caller's promise.
    with_layout(base, dtype, [rows, classes], |layout| unsafe { Array::new(layout, Some(1)) })
}

/// An array that is written.
///
/// # Safety
/// As for [`array`]; it shares no memory with any other.
unsafe fn array_mut(base: *mut u8, dtype: Dtype, rows: usize, classes: usize) -> ArrayMut<'static> {
    // SAFETY: the caller's promise.
    with_layout(base, dtype, [rows, classes], |layout| unsafe { ArrayMut::new(layout, Some(1)) })
}
