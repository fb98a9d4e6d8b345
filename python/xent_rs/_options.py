"""The options of the public functions: each declared once, with its type, its default and its documentation.

An option is an `Annotated` type, and the options of a function are a `TypedDict` of such. Type checkers read
them in ``**options: Unpack[...]``. `Options` makes of them the signature and the documentation that `help`
shows, and what the compiled module has names and defaults from.
"""

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, SupportsIndex, TypeAlias, TypedDict, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._xent_rs import Keywords

if TYPE_CHECKING:
    from typing_extensions import Self

Function = TypeVar("Function", bound=Callable[..., Any])

Reduction: TypeAlias = Literal["mean", "sum", "none"]
Kind: TypeAlias = Literal["forward", "reverse", "jensen_shannon"]
Real: TypeAlias = float | np.floating[Any] | np.integer[Any]
Floats: TypeAlias = NDArray[np.floating[Any]]


# Each option is its type, its default and its documentation after the name, as numpydoc has it.

# Weights.

ClassWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of C real numbers, optional
    A weight for each class.
    """,
]
SampleWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of real numbers, optional
    A weight for each row: the shape of `logits` without `axis`. A row of weight 0 is left out: it has
    loss 0, whatever its logits, probabilities or teacher hold.
    """,
]
ElementWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of real numbers, optional
    A weight for each element: any shape that broadcasts to that of `logits`. Where it is 0 the loss is 0,
    whatever logit and target are; the mean counts the element all the same.
    """,
]
PositiveWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of real numbers, optional
    A factor of the loss where the target is yes, against rare positives; broadcasts likewise, so that
    C numbers are one for each of C labels in the last axis.
    """,
]
PositiveFactor: TypeAlias = Annotated[
    "Real",
    1.0,
    """float, optional
    A factor of the loss where the label is yes, against rare positives (``scale_pos_weight`` of the
    libraries). It is for one prediction a row.
    """,
]

# Targets. That of PyTorch stands for no target.
_IGNORED = -100

IgnoreIndex: TypeAlias = Annotated[
    "SupportsIndex",
    _IGNORED,
    """int, optional
    Rows with this target have loss 0, whatever their logits hold, and do not count. It does not concern
    probabilities.
    """,
]
UncountedIndex: TypeAlias = Annotated[
    "SupportsIndex",
    _IGNORED,
    """int, optional
    Rows with this target do not count.
    """,
]
UnrankedIndex: TypeAlias = Annotated[
    "SupportsIndex",
    _IGNORED,
    """int, optional
    Rows with this target have `target_log_probability` 0 and `target_rank` -1.
    """,
]
IgnoredElement: TypeAlias = Annotated[
    "SupportsIndex | None",
    None,
    """int, optional
    Elements with this target have loss 0, whatever their logit is, and do not count. By default all
    elements count.
    """,
]
LabelSmoothing: TypeAlias = Annotated[
    "Real",
    0.0,
    """float, optional
    The share ε, 0 to 1, of the target that is spread evenly over all classes.
    """,
]

LabelSmoothingOfTwo: TypeAlias = Annotated[
    "Real",
    0.0,
    """float, optional
    The share ε, 0 to 1, of the target that is spread evenly over yes and no.
    """,
]

FocalGamma: TypeAlias = Annotated[
    "Real",
    0.0,
    """float, optional
    The loss of a row is multiplied by ``(1 - p)**focal_gamma``, p being the probability of its class (focal
    loss); 0 to 1e100. For class indices without `label_smoothing`.
    """,
]
FocalGammaOfTwo: TypeAlias = Annotated[
    "Real",
    0.0,
    """float, optional
    The loss of an element is multiplied by ``(1 - p)**focal_gamma``, p being the probability of its target,
    after the smoothing (focal loss), for targets from 0 to 1; 0 to 1e100.
    """,
]
PolyEpsilon: TypeAlias = Annotated[
    "Real",
    0.0,
    """float, optional
    The loss of a row gets ``poly_epsilon·(1 - p)`` more, p being the probability of its class (PolyLoss).
    For class indices without `label_smoothing`.
    """,
]

# Logits.

ZLoss: TypeAlias = Annotated[
    "Real",
    0.0,
    """float, optional
    Factor of ``lse²``, which keeps the logits from drifting; at least 0.
    """,
]
Softcap: TypeAlias = Annotated[
    "Real | None",
    None,
    """float, optional
    Bounds the logits, smoothly, to ±softcap; positive, and with float32 logits taken as 1e-60 at
    least. A ``-inf`` class stays ``-inf``.
    """,
]
Temperature: TypeAlias = Annotated[
    "Real",
    1.0,
    """float, optional
    Divides the logits, after a softcap if there is one; positive.
    """,
]
DivergenceKind: TypeAlias = Annotated[
    "Kind",
    "forward",
    """{'forward', 'reverse', 'jensen_shannon'}, optional
    Which divergence of the model's probabilities q and the teacher's p: 'forward' KL(p || q), 'reverse'
    KL(q || p), 'jensen_shannon' ``β·KL(p || m) + (1 - β)·KL(q || m)`` with ``m = β·p + (1 - β)·q``. With
    `SparseTargets` it is 'forward'.
    """,
]
Beta: TypeAlias = Annotated[
    "Real",
    0.5,
    """float, optional
    What the teacher weighs in the mixture of 'jensen_shannon': β, above 0 and below 1.
    """,
]
Axis: TypeAlias = Annotated[
    "SupportsIndex",
    -1,
    """int, optional
    The axis of the classes in `logits`; the last by default. (PyTorch's losses have it at 1, SciPy's
    `softmax` and `logsumexp` take all axes by default.)
    """,
]

# Hidden states.

SampleWeightOfStates: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of real numbers, optional
    A weight for each row: the shape of `hidden` without `axis`. A row of weight 0 is left out: it has
    loss 0, whatever its hidden states and probabilities hold.
    """,
]
AxisOfFeatures: TypeAlias = Annotated[
    "SupportsIndex",
    -1,
    """int, optional
    The axis of the features in `hidden`, and of the classes in probabilities; the last by default.
    """,
]
GradientsOut: TypeAlias = Annotated[
    "tuple[NDArray[Any] | None, ...] | None",
    None,
    """tuple of ndarray or None, optional
    Where the gradients of hidden states, weights and bias go, in this order; a new array for each that is
    None. Each has the shape of what it belongs to, and its dtype or the one that is computed in (float32,
    or float64 if hidden states or weights are). The first may be `hidden` itself, which the gradient then
    overwrites; otherwise they share memory with nothing else.
    """,
]

# Dask.

SplitEvery: TypeAlias = Annotated[
    "int | None",
    None,
    """int, optional
    How many chunks' results are merged at a time; by default what Dask is configured for. It changes no bit.
    """,
]

# Results.

MeanOfRows: TypeAlias = Annotated[
    "Reduction",
    "mean",
    """{'mean', 'sum', 'none'}, optional
    The mean, the sum, or each row's loss. The mean of class indices divides by the sum of s·w[y] over the
    rows that are not ignored, which without weights is their number; that of probabilities divides by
    the sum of s.
    """,
]
MeanOfDivergences: TypeAlias = Annotated[
    "Reduction",
    "mean",
    """{'mean', 'sum', 'none'}, optional
    The mean over rows, which divides by the sum of `sample_weight`, their sum, or each row's divergence.
    """,
]
MeanOfElements: TypeAlias = Annotated[
    "Reduction",
    "mean",
    """{'mean', 'sum', 'none'}, optional
    The mean over the elements that are not ignored, whatever their weights, their sum, or each
    element's loss.
    """,
]
Denominator: TypeAlias = Annotated[
    "Real | None",
    None,
    """float, optional
    Replaces the divisor of the mean: a count of tokens under gradient accumulation, say, or the number
    of rows for a mean of sums over labels. At least 0; with 0 the mean is NaN and its gradient 0.
    """,
]
GradOutput: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """float or array_like, optional
    Multiplies the gradient: the derivative of what follows with respect to the loss. A number, or, with
    ``reduction='none'``, one for each loss.
    """,
]
ProductFactor: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """float or array_like, optional
    Multiplies the product: the derivative of what follows with respect to the loss. A number, or, with
    ``reduction='none'``, one for each loss.
    """,
]
GradientOut: TypeAlias = Annotated[
    "NDArray[Any] | None",
    None,
    """ndarray, optional
    Where the gradient goes: an array of the logits' shape, in float32, float16 or bfloat16 for logits of
    these types and in float64 for float64 logits. It may be the logits' array itself, which the gradient
    then overwrites, and must share no memory with an input otherwise. Without it the gradient is new,
    and from 16 MiB on it lies, where it can, in memory that an earlier one left (see `release_memory`).
    """,
]
HessianOut: TypeAlias = Annotated[
    "NDArray[Any] | None",
    None,
    """ndarray, optional
    Where the diagonal of the Hessian goes, under the conditions of `out`; it shares no memory with `out`
    and has its dtype.
    """,
]
ResultOut: TypeAlias = Annotated[
    "NDArray[Any] | None",
    None,
    """ndarray, optional
    Where the result goes: an array of the logits' shape, in float32, float16 or bfloat16 for logits of
    these types and in float64 for float64 logits. It may be the logits' array itself, which the result
    then overwrites, and must share no memory with an input otherwise.
    """,
]
Keepdims: TypeAlias = Annotated[
    "bool",
    False,
    """bool, optional
    Keep `axis`, with length 1.
    """,
]


class CrossEntropyOptions(TypedDict, total=False):
    """What changes the cross-entropy of a row."""

    weight: ClassWeight
    sample_weight: SampleWeight
    ignore_index: IgnoreIndex
    label_smoothing: LabelSmoothing
    z_loss: ZLoss
    softcap: Softcap
    temperature: Temperature
    focal_gamma: FocalGamma
    poly_epsilon: PolyEpsilon
    axis: Axis


class LinearCrossEntropyOptions(TypedDict, total=False):
    """What changes the cross-entropy of a row of hidden states."""

    weight: ClassWeight
    sample_weight: SampleWeightOfStates
    ignore_index: IgnoreIndex
    label_smoothing: LabelSmoothing
    z_loss: ZLoss
    softcap: Softcap
    temperature: Temperature
    focal_gamma: FocalGamma
    poly_epsilon: PolyEpsilon
    axis: AxisOfFeatures


class HessianOptions(TypedDict, total=False):
    """Those of them for which there is a Hessian."""

    weight: ClassWeight
    sample_weight: SampleWeight
    ignore_index: IgnoreIndex
    label_smoothing: LabelSmoothing
    temperature: Temperature
    axis: Axis


class HessianProductOptions(TypedDict, total=False):
    """Those of them for which there is a Hessian, off its diagonal too."""

    weight: ClassWeight
    sample_weight: SampleWeight
    ignore_index: IgnoreIndex
    label_smoothing: LabelSmoothing
    z_loss: ZLoss
    temperature: Temperature
    axis: Axis


class TargetGradientOptions(TypedDict, total=False):
    """Those of them that change the derivative by probabilities."""

    weight: ClassWeight
    sample_weight: SampleWeight
    label_smoothing: LabelSmoothing
    temperature: Temperature
    axis: Axis


class ShardOptions(TypedDict, total=False):
    """Those of them that a shard of the classes can have."""

    weight: ClassWeight
    sample_weight: SampleWeight
    ignore_index: IgnoreIndex
    label_smoothing: LabelSmoothing
    z_loss: ZLoss
    softcap: Softcap
    temperature: Temperature
    axis: Axis


class BinaryCrossEntropyOptions(TypedDict, total=False):
    """What changes the binary cross-entropy of an element."""

    weight: ElementWeight
    pos_weight: PositiveWeight
    ignore_index: IgnoredElement
    label_smoothing: LabelSmoothingOfTwo
    focal_gamma: FocalGammaOfTwo


class BinaryHessianOptions(TypedDict, total=False):
    """Those of them for which there is a second derivative."""

    weight: ElementWeight
    pos_weight: PositiveWeight
    ignore_index: IgnoredElement
    label_smoothing: LabelSmoothingOfTwo


class ObjectiveOptions(TypedDict, total=False):
    """What changes an objective of gradient boosting."""

    weight: ClassWeight
    pos_weight: PositiveFactor
    ignore_index: IgnoreIndex
    label_smoothing: LabelSmoothing
    temperature: Temperature


class KlDivergenceOptions(TypedDict, total=False):
    """What changes the divergence of a row."""

    kind: DivergenceKind
    beta: Beta
    temperature: Temperature
    axis: Axis
    sample_weight: SampleWeight


class ForwardKlDivergenceOptions(TypedDict, total=False):
    """Those of KL(teacher || model) alone."""

    temperature: Temperature
    axis: Axis
    reduction: MeanOfDivergences
    sample_weight: SampleWeight
    denominator: Denominator


class AllKlDivergenceOptions(TypedDict, total=False):
    """All options of `kl_divergence`, in the order of its signature."""

    kind: DivergenceKind
    beta: Beta
    temperature: Temperature
    axis: Axis
    reduction: MeanOfDivergences
    sample_weight: SampleWeight
    denominator: Denominator


class MeanOptions(TypedDict, total=False):
    """What becomes of the losses of rows."""

    reduction: MeanOfRows
    denominator: Denominator


class MeanOfElementsOptions(TypedDict, total=False):
    """What becomes of the losses of elements."""

    reduction: MeanOfElements
    denominator: Denominator


class GradientOptions(TypedDict, total=False):
    """What a gradient is multiplied by, and where it goes."""

    grad_output: GradOutput
    out: GradientOut


class ProductOptions(TypedDict, total=False):
    """What a Hessian times a vector is multiplied by, and where it goes."""

    grad_output: ProductFactor
    out: ResultOut


class LinearGradientOptions(TypedDict, total=False):
    """What the gradients of hidden states, weights and bias are multiplied by, and where they go."""

    grad_output: GradOutput
    out: GradientsOut


class DerivativesOptions(TypedDict, total=False):
    """Where a gradient and the diagonal of a Hessian go."""

    out: GradientOut
    hess_out: HessianOut


# Type checkers see reduction and denominator apart from the other options: they say what the result is.


class CrossEntropyGradientOptions(CrossEntropyOptions, GradientOptions, total=False):
    """The other options of `cross_entropy_with_grad`."""


class LinearCrossEntropyGradientOptions(LinearCrossEntropyOptions, LinearGradientOptions, total=False):
    """The other options of `linear_cross_entropy_with_grad`."""


class CrossEntropyHessianOptions(HessianOptions, DerivativesOptions, total=False):
    """The other options of `cross_entropy_with_grad_hess`."""


class CrossEntropyHvpOptions(HessianProductOptions, MeanOptions, ProductOptions, total=False):
    """The options of `cross_entropy_hvp`."""


class KlDivergenceHvpOptions(ForwardKlDivergenceOptions, ProductOptions, total=False):
    """The options of `kl_divergence_hvp`."""


class CrossEntropyTargetGradientOptions(TargetGradientOptions, MeanOptions, GradientOptions, total=False):
    """The options of `cross_entropy_target_grad`."""


class ShardGradientOptions(ShardOptions, MeanOptions, GradientOptions, total=False):
    """The options of `cross_entropy_grad`."""


class BinaryCrossEntropyGradientOptions(BinaryCrossEntropyOptions, GradientOptions, total=False):
    """The other options of `binary_cross_entropy_with_grad`."""


class BinaryCrossEntropyHessianOptions(BinaryHessianOptions, DerivativesOptions, total=False):
    """The other options of `binary_cross_entropy_with_grad_hess`."""


class KlDivergenceGradientOptions(KlDivergenceOptions, GradientOptions, total=False):
    """The other options of `kl_divergence_with_grad`."""


class LogSumExpOptions(TypedDict, total=False):
    """The options of `logsumexp`."""

    axis: Axis
    keepdims: Keepdims
    temperature: Temperature


class SelectionOptions(TypedDict, total=False):
    """The options of `selective_log_softmax`."""

    axis: Axis
    temperature: Temperature


class SoftmaxOptions(SelectionOptions, total=False):
    """The options of `softmax` and `log_softmax`."""

    out: ResultOut


class RowStatisticsOptions(TypedDict, total=False):
    """The options of `row_statistics`."""

    axis: Axis
    softcap: Softcap
    temperature: Temperature
    ignore_index: UnrankedIndex


class SplitOptions(TypedDict, total=False):
    """How a Dask graph is built."""

    split_every: SplitEvery


class Options(Keywords):
    """All options of one public function, in the order of its signature; the compiled module reads its base.

    Parameters
    ----------
    function : str
        The function's name.
    *families : type
        The `TypedDict` classes that have its options.
    """

    def __new__(cls, function: str, *families: type) -> "Self":
        """Read the declarations."""
        declared = {name: hint for family in families for name, hint in family.__annotations__.items()}
        defaults = {name: hint.__metadata__[0] for name, hint in declared.items()}
        self = super().__new__(cls, function, defaults)
        self.defaults = defaults
        self.parameters = [
            inspect.Parameter(name, _KEYWORD, default=defaults[name], annotation=_type_text(hint))
            for name, hint in declared.items()
        ]
        self.documentation = "".join(
            f"{name} : {inspect.cleandoc(hint.__metadata__[1])}".replace("\n", "\n    ") + "\n"
            for name, hint in declared.items()
        )
        return self

    defaults: dict[str, Any]
    parameters: list[inspect.Parameter]
    documentation: str

    def describe(self, function: Function) -> Function:
        """Write the options into the signature and the documentation of what takes ``**options``."""
        # Of a class that is its initializer, of which `inspect` takes the signature without `self`.
        taking: Any = vars(function)["__init__"] if isinstance(function, type) else function
        signature = inspect.signature(taking)
        own = [
            argument for argument in signature.parameters.values() if argument.kind != argument.VAR_KEYWORD
        ]
        taking.__signature__ = signature.replace(parameters=own + self.parameters)
        # What it names is for type checkers, and not there for `typing.get_type_hints`.
        taking.__annotations__.pop("options", None)
        if function.__doc__:  # there is none with python -OO
            text = inspect.cleandoc(function.__doc__)
            marker = re.compile(r"^\*\*options\n(?:    .*\n)*", re.MULTILINE)
            function.__doc__ = marker.sub(lambda _: self.documentation, text)
        return function


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _type_text(hint: Any) -> str:
    """Return the type of an option as a signature shows it."""
    return cast(str, hint.__origin__.__forward_arg__)
