"""The compiled module. Its functions take all options of a public one, and those that a call gives."""

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeAlias, TypedDict, TypeVar, type_check_only

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self, disjoint_base

from ._sparse_targets import SparseTargets

_Floats: TypeAlias = NDArray[np.floating[Any]]
_Integers: TypeAlias = NDArray[np.int64]
_Options: TypeAlias = Mapping[str, Any]
_Doubles: TypeAlias = NDArray[np.float64]
_Flags: TypeAlias = NDArray[np.bool_]
#: Of each row: loss, entropy, the largest probability, whether the target has it.
_OfModel: TypeAlias = tuple[_Doubles, _Doubles, _Doubles, _Flags, _Doubles]
#: A whole number of 2**-1074, in two's complement, the lowest byte first, and the sum of what is not finite.
_Exact: TypeAlias = tuple[bytes, float]

_P = ParamSpec("_P")
_T = TypeVar("_T")

__version__: str

__all__ = [
    "InternalError",
    "Keywords",
    "__version__",
    "as_array",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_grad_hess",
    "compare_rows",
    "config",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_hvp",
    "cross_entropy_target_grad",
    "cross_entropy_temperature_grad",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "evaluate",
    "exact_sum",
    "get_num_threads",
    "in_default_environment",
    "kept_memory",
    "kl_divergence",
    "kl_divergence_hvp",
    "kl_divergence_with_grad",
    "log_softmax",
    "logsumexp",
    "loss_sums",
    "memory_copy",
    "memory_read",
    "release_memory",
    "row_statistics",
    "selective_log_softmax",
    "set_num_threads",
    "set_simd_level",
    "simd_level",
    "simd_levels",
    "softmax",
    "xla_handlers",
    "xla_layout",
]

@type_check_only
class Config(TypedDict):
    version: str
    profile: str
    cpu: str
    simd_level: str
    simd_levels: list[str]
    num_threads: int
    num_threads_source: str
    placement: bool
    keep_memory: bool

class InternalError(RuntimeError): ...

@disjoint_base
class Keywords:
    def __new__(cls, function: str, defaults: dict[str, Any]) -> Self: ...
    def check(self, given: _Options) -> None: ...

def as_array(object: ArrayLike, name: str) -> NDArray[Any]: ...
def cross_entropy(
    logits: ArrayLike, targets: ArrayLike | SparseTargets, keywords: Keywords, options: _Options
) -> float | _Floats: ...
def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike | SparseTargets, keywords: Keywords, options: _Options
) -> tuple[float | _Floats, _Floats]: ...
def cross_entropy_with_grad_hess(
    logits: ArrayLike, targets: ArrayLike | SparseTargets, keywords: Keywords, options: _Options
) -> tuple[float | _Floats, _Floats, _Floats]: ...
def cross_entropy_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    lse: ArrayLike,
    shard: tuple[int, int],
    keywords: Keywords,
    options: _Options,
) -> _Floats: ...
def cross_entropy_hvp(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    vector: ArrayLike,
    keywords: Keywords,
    options: _Options,
) -> _Floats: ...
def cross_entropy_target_grad(
    logits: ArrayLike, targets: ArrayLike, keywords: Keywords, options: _Options
) -> _Floats: ...
def cross_entropy_temperature_grad(
    logits: ArrayLike, targets: ArrayLike | SparseTargets, keywords: Keywords, options: _Options
) -> float | _Floats: ...
def binary_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, keywords: Keywords, options: _Options
) -> float | _Floats: ...
def binary_cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, keywords: Keywords, options: _Options
) -> tuple[float | _Floats, _Floats]: ...
def binary_cross_entropy_with_grad_hess(
    logits: ArrayLike, targets: ArrayLike, keywords: Keywords, options: _Options
) -> tuple[float | _Floats, _Floats, _Floats]: ...
def kl_divergence(
    logits: ArrayLike, target_logits: ArrayLike | SparseTargets, keywords: Keywords, options: _Options
) -> float | _Floats: ...
def kl_divergence_with_grad(
    logits: ArrayLike, target_logits: ArrayLike | SparseTargets, keywords: Keywords, options: _Options
) -> tuple[float | _Floats, _Floats]: ...
def kl_divergence_hvp(
    logits: ArrayLike,
    target_logits: ArrayLike | SparseTargets,
    vector: ArrayLike,
    keywords: Keywords,
    options: _Options,
) -> _Floats: ...
def logsumexp(logits: ArrayLike, keywords: Keywords, options: _Options) -> _Floats: ...
def softmax(logits: ArrayLike, keywords: Keywords, options: _Options) -> _Floats: ...
def log_softmax(logits: ArrayLike, keywords: Keywords, options: _Options) -> _Floats: ...
def selective_log_softmax(
    logits: ArrayLike, index: ArrayLike, keywords: Keywords, options: _Options
) -> _Floats: ...
def row_statistics(
    logits: ArrayLike, targets: ArrayLike | None, keywords: Keywords, options: _Options
) -> tuple[_Floats, _Integers, _Floats, _Floats, _Floats | None, _Integers | None]: ...
def evaluate(
    logits: ArrayLike, targets: ArrayLike, top_k: tuple[int, ...], keywords: Keywords, options: _Options
) -> tuple[list[_Exact], list[_Exact] | None, list[int], int, int, int, int]: ...
def compare_rows(
    reference: ArrayLike,
    candidate: ArrayLike,
    targets: ArrayLike | None,
    keywords: Keywords,
    options: _Options,
) -> tuple[int, _Flags, _Doubles, _Doubles, _Doubles, _OfModel, _OfModel]: ...
def loss_sums(
    logits: ArrayLike, targets: ArrayLike, keywords: Keywords, options: _Options
) -> list[_Exact]: ...
def exact_sum(values: ArrayLike) -> _Exact: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def config() -> Config: ...
def in_default_environment(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T: ...
def kept_memory() -> int: ...
def release_memory() -> int: ...
def memory_read(array: NDArray[Any]) -> int: ...
def memory_copy(array: NDArray[Any], out: NDArray[Any]) -> None: ...
def xla_handlers() -> dict[str, Any]: ...
def xla_layout() -> dict[str, int]: ...
