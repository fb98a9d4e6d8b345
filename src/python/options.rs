//! The keyword options of all functions. Python declares them (`_options.py`); here they become one struct, by name,
//! each checked as far as it can be without the logits.

use numpy::PyUntypedArray;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::arguments::{self, KindName, integer, not_negative, number, positive};
use super::arrays::as_array;
use super::guard;
use crate::dtype::Number;
use crate::error::Error;
use crate::loss::Reduction;
use crate::row::Transform;
use crate::simd::Environment;

/// The options of one public function: their names and what each is if it is not given.
#[pyclass(frozen, subclass)]
pub(super) struct Keywords {
    function: String,
    defaults: Py<PyDict>,
    scalars: Scalars,
}

/// The options that are no arrays. Where a function has no such option, it is what changes nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalars {
    pub(super) ignore_index: Option<i128>,
    pub(super) label_smoothing: f64,
    pub(super) z_loss: f64,
    pub(super) focal_gamma: f64,
    pub(super) poly_epsilon: f64,
    pub(super) softcap: Option<f64>,
    pub(super) temperature: f64,
    pub(super) kind: KindName,
    /// What the teacher weighs in the mixture, if there is one.
    pub(super) beta: f64,
    pub(super) axis: i128,
    pub(super) keepdims: bool,
    pub(super) reduction: Reduction,
    pub(super) denominator: Option<f64>,
}

/// What the teacher weighs in a mixture by default.
const EVEN: f64 = 0.5;

/// The options of one call.
pub(super) struct Options<'py> {
    pub(super) scalars: Scalars,
    pub(super) weight: Option<Bound<'py, PyUntypedArray>>,
    pub(super) pos_weight: Option<Bound<'py, PyUntypedArray>>,
    pub(super) sample_weight: Option<Bound<'py, PyUntypedArray>>,
    pub(super) grad_output: Option<Bound<'py, PyUntypedArray>>,
    /// Outputs, which are looked at beside the logits.
    pub(super) out: Option<Bound<'py, PyAny>>,
    pub(super) hess_out: Option<Bound<'py, PyAny>>,
}

#[pymethods]
impl Keywords {
    /// `defaults` has every option of the public function `function`, in the order of its signature.
    #[new]
    fn new(function: String, defaults: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut options = Options::new(Scalars::NEUTRAL);
        for (name, value) in defaults {
            if !value.is_none() {
                options.set(name.cast::<PyString>()?.to_str()?, &value)?;
            }
        }
        Ok(Self { function, defaults: defaults.copy()?.unbind(), scalars: options.scalars })
    }

    /// Raise what a call with these options would raise for each by itself.
    fn check(&self, given: &Bound<'_, PyDict>) -> PyResult<()> {
        guard(|| self.options(given).map(|_| ()))
    }
}

impl Keywords {
    /// The options of a call that was given some of them.
    pub(super) fn options<'py>(&self, given: &Bound<'py, PyDict>) -> PyResult<Options<'py>> {
        let mut options = Options::new(self.scalars);
        for (name, value) in given {
            let Some(default) = self.defaults.bind(given.py()).get_item(&name)? else {
                return Err(self.unexpected(&name)?);
            };
            // None is a value where it is the default, and no other.
            if !(value.is_none() && default.is_none()) {
                options.set(name.cast::<PyString>()?.to_str()?, &value)?;
            }
        }
        let Scalars { reduction, denominator, .. } = options.scalars;
        if denominator.is_some() && reduction != Reduction::Mean {
            let text = format!(
                "denominator is given with reduction '{}'; expected reduction 'mean', whose divisor it replaces",
                reduction.name()
            );
            return Err(Error::Value(text).into());
        }
        let Scalars { label_smoothing, kind, beta, .. } = options.scalars;
        if beta != EVEN && kind != KindName::JensenShannon {
            let (beta, kind) = (beta.text(), kind.name());
            let text = format!(
                "beta is {beta} with kind '{kind}'; expected kind 'jensen_shannon', the only one with a mixture"
            );
            return Err(Error::Value(text).into());
        }
        // A binary target is one number, smoothed or not; of classes there would be several.
        let of_classes = self.defaults.bind(given.py()).contains("poly_epsilon")?;
        if let Some((name, value)) = options.scalars.focus().filter(|_| of_classes && label_smoothing != 0.0) {
            let (value, smoothing) = (value.text(), label_smoothing.text());
            let text = format!("{name} is {value} with label_smoothing {smoothing}; expected one of them");
            return Err(Error::Value(text).into());
        }
        Ok(options)
    }

    /// The error for an option that the function does not have, in Python's words.
    fn unexpected(&self, name: &Bound<'_, PyAny>) -> PyResult<PyErr> {
        let py = name.py();
        let similar = py.import("difflib")?.call_method1("get_close_matches", (name, self.defaults.bind(py), 1))?;
        let suggestion = similar.try_iter()?.next().transpose()?;
        let hint = suggestion.map_or_else(String::new, |suggestion| format!(". Did you mean '{suggestion}'?"));
        let text = format!("{}() got an unexpected keyword argument '{name}'{hint}", self.function);
        Ok(PyTypeError::new_err(text))
    }
}

impl Scalars {
    const NEUTRAL: Self = Self {
        ignore_index: None,
        label_smoothing: 0.0,
        z_loss: 0.0,
        focal_gamma: 0.0,
        poly_epsilon: 0.0,
        softcap: None,
        temperature: 1.0,
        kind: KindName::Forward,
        beta: EVEN,
        axis: 0,
        keepdims: false,
        reduction: Reduction::None,
        denominator: None,
    };

    /// What looks at the probability of a class, by its name, if anything does.
    pub(super) fn focus(&self) -> Option<(&'static str, f64)> {
        let options = [("focal_gamma", self.focal_gamma), ("poly_epsilon", self.poly_epsilon)];
        options.into_iter().find(|(_, value)| *value != 0.0)
    }

    pub(super) fn transform(&self) -> Transform {
        Environment::DEFAULT.run(|| Transform::new(self.temperature, self.softcap))
    }
}

impl<'py> Options<'py> {
    fn new(scalars: Scalars) -> Self {
        Self {
            scalars,
            weight: None,
            pos_weight: None,
            sample_weight: None,
            grad_output: None,
            out: None,
            hess_out: None,
        }
    }

    /// Take an option, checked.
    fn set(&mut self, name: &str, value: &Bound<'py, PyAny>) -> PyResult<()> {
        let array = || as_array(value, name).map(Some);
        let scalars = &mut self.scalars;
        match name {
            "weight" => self.weight = array()?,
            "pos_weight" => self.pos_weight = array()?,
            "sample_weight" => self.sample_weight = array()?,
            "grad_output" => self.grad_output = array()?,
            "out" => self.out = Some(value.clone()),
            "hess_out" => self.hess_out = Some(value.clone()),
            "ignore_index" => scalars.ignore_index = Some(integer(name, value)?),
            "label_smoothing" => {
                let is_share = |value| (0.0..=1.0).contains(&value);
                scalars.label_smoothing = number(name, value, "expected a number from 0 to 1", is_share)?;
            }
            "z_loss" => scalars.z_loss = not_negative(name, value)?,
            "focal_gamma" => {
                // No power of more can be told from one of this.
                let is_fine = |value| (0.0..=1e100).contains(&value);
                scalars.focal_gamma = number(name, value, "expected a number from 0 to 1e100", is_fine)?;
            }
            "poly_epsilon" => {
                scalars.poly_epsilon = number(name, value, "expected a finite number", f64::is_finite)?;
            }
            "softcap" => scalars.softcap = Some(positive(name, value)?),
            "temperature" => scalars.temperature = positive(name, value)?,
            "kind" => scalars.kind = arguments::kind(value)?,
            "beta" => {
                let expected = "expected a number above 0 and below 1; kind 'forward' is what others have at 0, 'reverse' \
                                at 1";
                scalars.beta = number(name, value, expected, |value| value > 0.0 && value < 1.0)?;
            }
            "axis" => scalars.axis = integer(name, value)?,
            "keepdims" => scalars.keepdims = value.is_truthy()?,
            "reduction" => scalars.reduction = arguments::reduction(value)?,
            "denominator" => scalars.denominator = Some(not_negative(name, value)?),
            // The evaluator looks at it: what it asks for is more.
            "top_k" => {}
            _ => return Err(PyTypeError::new_err(format!("no function reads the option '{name}'"))),
        }
        Ok(())
    }

    /// The arrays that are read, and what they are called.
    pub(super) fn arrays(&self) -> impl Iterator<Item = (&'static str, &Bound<'py, PyUntypedArray>)> {
        let arrays = [
            ("weight", &self.weight),
            ("pos_weight", &self.pos_weight),
            ("sample_weight", &self.sample_weight),
            ("grad_output", &self.grad_output),
        ];
        arrays.into_iter().filter_map(|(name, array)| Some((name, array.as_ref()?)))
    }
}
