"""The compiled module: every argument explicit, every default in the public function of the same name."""

from typing import Any, TypedDict, type_check_only

from numpy.typing import ArrayLike, NDArray

__version__: str

__all__ = [
    "InternalError",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "config",
    "cross_entropy",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "evaluate",
    "get_num_threads",
    "kept_memory",
    "kl_divergence",
    "kl_divergence_with_grad",
    "log_softmax",
    "logsumexp",
    "memory_copy",
    "memory_read",
    "panic_for_test",
    "release_memory",
    "row_statistics",
    "selective_log_softmax",
    "set_num_threads",
    "set_simd_level",
    "simd_level",
    "simd_levels",
    "softmax",
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

class InternalError(RuntimeError): ...

def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    temperature: float,
    axis: int,
    reduction: str,
    denominator: float | None,
) -> Any: ...
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    temperature: float,
    axis: int,
    reduction: str,
    denominator: float | None,
    grad_output: ArrayLike | None,
    out: NDArray[Any] | None,
) -> tuple[Any, NDArray[Any]]: ...
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
    temperature: float,
    axis: int,
    reduction: str,
    denominator: float | None,
    out: NDArray[Any] | None,
    hess_out: NDArray[Any] | None,
) -> tuple[Any, NDArray[Any], NDArray[Any]]: ...
def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    ignore_index: int | None,
    label_smoothing: float,
    reduction: str,
    denominator: float | None,
) -> Any: ...
def binary_cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    ignore_index: int | None,
    label_smoothing: float,
    reduction: str,
    denominator: float | None,
    grad_output: ArrayLike | None,
    out: NDArray[Any] | None,
) -> tuple[Any, NDArray[Any]]: ...
def binary_cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    ignore_index: int | None,
    label_smoothing: float,
    reduction: str,
    denominator: float | None,
    out: NDArray[Any] | None,
    hess_out: NDArray[Any] | None,
) -> tuple[Any, NDArray[Any], NDArray[Any]]: ...
def kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    temperature: float,
    axis: int,
    reduction: str,
    sample_weight: ArrayLike | None,
    denominator: float | None,
) -> Any: ...
def kl_divergence_with_grad(
    logits: ArrayLike,
    target_logits: ArrayLike,
    temperature: float,
    axis: int,
    reduction: str,
    sample_weight: ArrayLike | None,
    denominator: float | None,
    grad_output: ArrayLike | None,
    out: NDArray[Any] | None,
) -> tuple[Any, NDArray[Any]]: ...
def logsumexp(logits: ArrayLike, axis: int, keepdims: bool, temperature: float) -> Any: ...
def softmax(logits: ArrayLike, axis: int, temperature: float, out: NDArray[Any] | None) -> NDArray[Any]: ...
def log_softmax(
    logits: ArrayLike, axis: int, temperature: float, out: NDArray[Any] | None
) -> NDArray[Any]: ...
def selective_log_softmax(
    logits: ArrayLike, index: ArrayLike, axis: int, temperature: float
) -> NDArray[Any]: ...
def row_statistics(
    logits: ArrayLike,
    targets: ArrayLike | None,
    axis: int,
    softcap: float | None,
    temperature: float,
    ignore_index: int,
) -> tuple[Any, Any, Any, Any, Any, Any]: ...
def evaluate(
    logits: ArrayLike,
    targets: ArrayLike,
    top_k: tuple[int, ...],
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    temperature: float,
    axis: int,
) -> tuple[float, float, float, list[int], int, int]: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def config() -> Config: ...
def kept_memory() -> int: ...
def release_memory() -> int: ...
def memory_read(array: NDArray[Any]) -> int: ...
def memory_copy(array: NDArray[Any], out: NDArray[Any]) -> None: ...
def panic_for_test() -> None: ...
