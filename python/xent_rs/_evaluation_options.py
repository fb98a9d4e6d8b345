"""The options of `evaluate`, `compare` and their batches: what they share with losses, and their own."""

from collections.abc import Iterable
from typing import Annotated, SupportsIndex, TypeAlias, TypedDict

from numpy.typing import ArrayLike

from ._options import (
    Axis,
    FocalGamma,
    LabelSmoothing,
    PolyEpsilon,
    Softcap,
    Temperature,
    UncountedIndex,
    ZLoss,
)

# Evaluation.

TopK: TypeAlias = Annotated[
    "Iterable[SupportsIndex]",
    (1, 5),
    """iterable of int, optional
    The ``k`` for which the result holds the share of rows whose target is among the ``k`` largest logits.
    """,
]
EvaluatedClassWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of C real numbers, optional
    A weight for each class in the loss; it is copied. Accuracy, `top_k` and entropy count rows alike.
    """,
]
EvaluatedSampleWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of real numbers, optional
    A weight for each row in the loss: the shape of `logits` without `axis`. A row of weight 0 does not
    count; accuracy, `top_k` and entropy count all others alike.
    """,
]

LinearWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of float16, bfloat16, float32 or float64, optional
    The weights of the model's last layer, its head, of shape (C, K): a row for each class. `logits` are
    then hidden states of K features along `axis`, and what is evaluated is
    ``hidden @ linear_weight.T + linear_bias``, of which 256 to 1,024 rows are in memory at a time.
    """,
]
LinearBias: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of float16, bfloat16, float32 or float64, optional
    The bias of that layer, C numbers; ``-inf`` masks a class.
    """,
]

# Comparison.

ComparedTopK: TypeAlias = Annotated[
    "Iterable[SupportsIndex]",
    (5, 10),
    """iterable of int, optional
    The ``k`` for which the result holds the share of rows in which the top class of one model is among the
    ``k`` largest logits of the other.
    """,
]
ComparedClassWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of C real numbers, optional
    A weight for each class in the losses and their change; it is copied. It needs targets, and concerns
    nothing else.
    """,
]
ComparedSampleWeight: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of real numbers, optional
    A weight for each row in all means of both models: the shape of `reference` without `axis`. A row of
    weight 0 does not count. Quantiles and extremes, and each model's accuracy, entropy and calibration
    error, count all others alike.
    """,
]
Groups: TypeAlias = Annotated[
    "ArrayLike | None",
    None,
    """array_like of integers or strings, optional
    The document, window or user that each row belongs to: the shape of `reference` without `axis`. Standard
    errors are then those of rows that depend on each other within a group.
    """,
]
PairedLinearWeight: TypeAlias = Annotated[
    "ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None",
    None,
    """array_like of float16, bfloat16, float32 or float64, or a tuple of two, optional
    The weights of the last layer, the head, of both models or of each, of shape (C, K): a row for each
    class. `reference` and `candidate` are then hidden states of K features along `axis`, and what is compared
    is ``hidden @ linear_weight.T + linear_bias``, of which 256 to 1,024 rows are in memory at a time. In a
    tuple each model has its own, with a K of its own, and one that is given by logits has None.
    """,
]
PairedLinearBias: TypeAlias = Annotated[
    "ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None",
    None,
    """array_like of float16, bfloat16, float32 or float64, or a tuple of two, optional
    The bias of that layer, C numbers, for both models that have one or for each; ``-inf`` masks a class.
    """,
]


class EvaluatorOptions(TypedDict, total=False):
    """The options of `Evaluator`."""

    top_k: TopK
    weight: EvaluatedClassWeight
    ignore_index: UncountedIndex
    label_smoothing: LabelSmoothing
    z_loss: ZLoss
    softcap: Softcap
    temperature: Temperature
    focal_gamma: FocalGamma
    poly_epsilon: PolyEpsilon
    axis: Axis


class EvaluateLogitsOptions(TypedDict, total=False):
    """The options of `Evaluator` and of its batches of logits."""

    top_k: TopK
    weight: EvaluatedClassWeight
    sample_weight: EvaluatedSampleWeight
    ignore_index: UncountedIndex
    label_smoothing: LabelSmoothing
    z_loss: ZLoss
    softcap: Softcap
    temperature: Temperature
    focal_gamma: FocalGamma
    poly_epsilon: PolyEpsilon
    axis: Axis


class EvaluateOptions(EvaluateLogitsOptions, total=False):
    """The options of `evaluate`: those of `Evaluator` and of its batches."""

    linear_weight: LinearWeight
    linear_bias: LinearBias


class ComparerOptions(TypedDict, total=False):
    """The options of `Comparer`."""

    top_k: ComparedTopK
    weight: ComparedClassWeight
    ignore_index: UncountedIndex
    softcap: Softcap
    temperature: Temperature
    axis: Axis


class CompareLogitsOptions(TypedDict, total=False):
    """The options of `Comparer` and of its batches of logits."""

    top_k: ComparedTopK
    weight: ComparedClassWeight
    sample_weight: ComparedSampleWeight
    ignore_index: UncountedIndex
    softcap: Softcap
    temperature: Temperature
    axis: Axis
    groups: Groups


class CompareOptions(CompareLogitsOptions, total=False):
    """The options of `compare`: those of `Comparer` and of its batches."""

    linear_weight: PairedLinearWeight
    linear_bias: PairedLinearBias
